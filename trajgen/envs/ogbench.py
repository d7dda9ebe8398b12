"""OGBench's environments (arXiv 2410.20092), which Gymnasium knows once its package is imported."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from trajgen.core.errors import ConfigError
from trajgen.envs.gym import OGBENCH, make_env

VISUAL_POINT = {f"visual-pointmaze-{size}-v0": size for size in ("medium", "large", "giant")}
"""The point mazes in the images of OGBench's visual mazes, which it registers for its ant alone; without shadows."""


def register(env_id: str) -> str:
    """Registers OGBench's environments with Gymnasium; returns the id without the prefix that it has here.

    Raises:
        ConfigError: if its package is not installed.
    """
    try:
        importlib.import_module("ogbench")
    except ImportError as error:
        raise ConfigError(
            f"{env_id} comes with the package ogbench: {error}.", fix="pip install 'trajgen[ogbench]'"
        ) from error
    name = env_id.removeprefix(OGBENCH)
    if name in VISUAL_POINT and name not in gymnasium.registry:
        entry = f"{__name__}:{make_visual_point_maze.__name__}"
        gymnasium.register(name, entry, max_episode_steps=1000, kwargs={"maze_type": VISUAL_POINT[name]})
    return name


def make_visual_point_maze(**options: Any) -> gymnasium.Env[Any, Any]:
    """A point maze of OGBench in images (64, 64, 3), without shadows, which take a CPU seven eighths of the time.

    Args:
        options: of OGBench's ``make_maze_env``, such as maze_type and terminate_at_goal.
    """
    import mujoco
    from ogbench.locomaze.maze import make_maze_env

    drawing = {"ob_type": "pixels", "render_mode": "rgb_array", "width": 64, "height": 64}
    env = make_maze_env("point", "maze", **drawing, **options)
    env.custom_renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
    return env


def make_with_goals(env_spec: Any, goal_state: Sequence[int] = ()) -> GoalInObservation:
    """An environment of OGBench with its goal in the observation.

    Args:
        env_spec: of the environment.
        goal_state: indices of the state that a goal sets; none for OGBench's own short goals, which visual ones have.
    """
    if not goal_state:
        env_spec = copy.deepcopy(env_spec)
        env_spec.kwargs["use_oracle_rep"] = True
    return GoalInObservation(make_env(env_spec), goal_state)


@runtime_checkable
class Maze(Protocol):
    """What OGBench's mazes say of their cells."""

    maze_map: np.ndarray
    """Rows of 0 (free) and 1 (wall)."""

    def ij_to_xy(self, ij: tuple[int, int]) -> tuple[float, float]:
        """The center of a cell, by its row and column."""
        ...


def walls(env: Any) -> list[tuple[float, float, float, float]] | None:
    """The wall cells of an unwrapped maze, as rectangles (left x, lower y, width, height); None of what is no maze."""
    if not isinstance(env, Maze):
        return None
    side = env.ij_to_xy((0, 1))[0] - env.ij_to_xy((0, 0))[0]
    centers = [env.ij_to_xy((row, column)) for row, column in np.argwhere(env.maze_map == 1).tolist()]
    return [(x - side / 2, y - side / 2, side, side) for x, y in centers]


class GoalInObservation(gymnasium.Wrapper):
    """Adds the goal to the observation, which OGBench gives in the info of a reset alone.

    An observation is then a dictionary with the entries observation, achieved_goal and desired_goal.

    Args:
        env: an environment of OGBench, reset with ``options={"task_id": 1}`` (to 5) for one of its test goals.
        goal_state: indices of the observation that a goal sets; none for goals as OGBench's ``use_oracle_rep=True``
            gives them: the positions of what is to be moved.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], goal_state: Sequence[int]) -> None:
        super().__init__(env)
        self.goal_state = list(goal_state)
        self._numpy_state = np.random.RandomState().get_state()
        self._teleports = env.spec is not None and "teleport" in env.spec.id
        space: Any = env.observation_space
        if self.goal_state:
            part = Box(space.low[self.goal_state], space.high[self.goal_state], dtype=space.dtype)
        else:
            with self._private_numpy_state():
                env.reset()  # before it, nothing has a position
            part = Box(-np.inf, np.inf, self._position(None).shape, np.float64)
        self._type = part.dtype
        self.observation_space = Dict({"observation": space, "achieved_goal": part, "desired_goal": part})
        self._goal = np.zeros(part.shape)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode, whose start and goal follow from the seed, or from the random state of the last one."""
        if seed is not None:
            self._numpy_state = np.random.RandomState(seed % 2**32).get_state()
            self.env.unwrapped.action_space.seed(seed)  # it draws from it and does not seed it
        with self._private_numpy_state():
            observation, info = self.env.reset(seed=seed, options=options)
        if self.goal_state:
            self._goal = np.asarray(info["goal"])[self.goal_state]
        else:
            self._goal = np.asarray(info.get("goal", self._position(observation)))  # recording data has no goal
        return self._with_goal(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Takes a step; reward and success are the environment's."""
        with self._private_numpy_state() if self._teleports else nullcontext():  # no other step is random
            observation, reward, terminated, truncated, info = self.env.step(action)
        return self._with_goal(observation), reward, terminated, truncated, info

    @contextmanager
    def _private_numpy_state(self) -> Iterator[None]:
        """Gives the environment, which draws from numpy's global state, a state of its own."""
        before = np.random.get_state()
        np.random.set_state(self._numpy_state)
        try:
            yield
        finally:
            self._numpy_state = np.random.get_state()
            np.random.set_state(before)

    def _with_goal(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        position, goal = self._position(observation).astype(self._type), self._goal.astype(self._type)
        return {"observation": observation, "achieved_goal": position, "desired_goal": goal}

    def _position(self, observation: Any) -> np.ndarray:
        """What is compared with the goal."""
        if self.goal_state:
            return np.asarray(observation[self.goal_state])
        inner: Any = self.env.unwrapped
        is_arm = hasattr(inner, "compute_oracle_observation")
        return np.asarray(inner.compute_oracle_observation() if is_arm else inner.get_xy())
