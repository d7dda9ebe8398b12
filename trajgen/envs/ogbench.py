"""OGBench's environments (arXiv 2410.20092), which Gymnasium knows once its package is imported."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from trajgen.core.errors import ConfigError
from trajgen.envs.gym import OGBENCH


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
    return env_id.removeprefix(OGBENCH)


class GoalInObservation(gymnasium.Wrapper):
    """Adds the goal to the observation, which OGBench gives in the info of a reset alone.

    An observation is then a dictionary with the entries observation, achieved_goal and desired_goal.

    Args:
        env: an environment of OGBench, reset with ``options={"task_id": 1}`` (to 5) for one of its test goals.
        goal_state: indices of the observation that a goal sets.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], goal_state: Sequence[int]) -> None:
        super().__init__(env)
        self.goal_state = list(goal_state)
        space: Any = env.observation_space
        self._type = space.dtype
        part = Box(space.low[self.goal_state], space.high[self.goal_state], dtype=space.dtype)
        self.observation_space = Dict({"observation": space, "achieved_goal": part, "desired_goal": part})
        self._goal = np.zeros(len(self.goal_state))
        self._numpy_state = np.random.RandomState().get_state()
        self._teleports = env.spec is not None and "teleport" in env.spec.id

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode, whose start and goal follow from the seed, or from the random state of the last one."""
        if seed is not None:
            self._numpy_state = np.random.RandomState(seed % 2**32).get_state()
            self.env.unwrapped.action_space.seed(seed)  # it draws from it and does not seed it
        with self._private_numpy_state():
            observation, info = self.env.reset(seed=seed, options=options)
        self._goal = np.asarray(info["goal"])[self.goal_state]
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
        position, goal = observation[self.goal_state].astype(self._type), self._goal.astype(self._type)
        return {"observation": observation, "achieved_goal": position, "desired_goal": goal}
