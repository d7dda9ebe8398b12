"""The worlds in which policies are evaluated, recovered from a data set's metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from trajgen.core.errors import DataError
from trajgen.core.observations import Key, entry
from trajgen.core.protocols import Policy
from trajgen.data import store
from trajgen.data.minari import missing
from trajgen.data.options import DataOptions
from trajgen.data.success import SuccessRule
from trajgen.envs.gym import OGBENCH, register_envs, spec
from trajgen.envs.pointmaze import GOAL_RADIUS, MAZES, grid
from trajgen.envs.waypoints import WaypointController

if TYPE_CHECKING:
    import gymnasium

WITH_A_MAP = ("PointMaze_", "AntMaze_")
"""How the ids of worlds begin that have cells and walls."""


@dataclass(frozen=True)
class EvalEnv:
    """A world to evaluate in.

    ``bounds`` holds, by name, the returns that count as 0 and 100 of a normalized score. ``controller`` makes
    a noise-free reference policy that acts on the world's own observations. ``walls`` are rectangles
    (x, y, width, height) of the world's plane, in its units, for drawing. ``resets`` are options that episodes are
    reset with, in turn.
    """

    name: str
    make_env: Callable[[], gymnasium.Env[Any, Any]]
    max_steps: int
    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)
    controller: Callable[[], Policy] | None = None
    walls: list[tuple[float, float, float, float]] | None = None
    goal_radius: float | None = None
    state_key: Key = "observation"
    goal_key: str | None = None
    achieved_key: str | None = None
    rule: SuccessRule = field(default_factory=SuccessRule)
    resets: tuple[Mapping[str, Any], ...] = ()
    one_goal: bool = False
    """Whether all goals lie in the same place, or in the same cell of a maze."""

    def reset(self, environment: gymnasium.Env[Any, Any], seed: int) -> tuple[Any, dict[str, Any]]:
        """Starts the episode of a seed in an environment of this world; returns its observation and information."""
        options = dict(self.resets[seed % len(self.resets)]) if self.resets else None
        return environment.reset(seed=seed, options=options)

    def state(self, observation: Any) -> Any:
        """The state in an observation, batched or not; None if it is a dictionary without it."""
        if not isinstance(observation, Mapping):
            return observation
        if self.state_key is None:
            return None
        try:
            return entry(observation, self.state_key)
        except KeyError:
            return None

    def success(self, observation: Any, info: Mapping[str, Any]) -> np.ndarray | None:
        """Whether each environment is at its goal after a step; `SuccessRule` says how often it must be.

        Args:
            observation: as the environment returned it, batched or not.
            info: the same of the step's information; what it says counts before the distance.

        Returns:
            Booleans, (B,) or (); None if this world does not say.
        """
        said = self.rule.reached(info)
        if said is not None:
            return said
        if self.goal_radius is None or self.goal_key is None or self.achieved_key is None:
            return None
        offset = np.asarray(entry(observation, self.achieved_key)) - np.asarray(entry(observation, self.goal_key))
        return np.asarray(np.linalg.norm(offset, axis=-1) <= self.goal_radius)


def make_eval_env(options: DataOptions) -> EvalEnv:
    """The evaluation world of a data set, from its metadata alone.

    Raises:
        DataError: if the set is not on this machine, or names no world that can be built here.
    """
    import gymnasium

    if not store.folder(options.id).is_dir():
        raise missing(options.id, options.maker)
    about = store.metadata(options.id)
    env_spec = _spec(options, about)
    env_spec.kwargs.update(options.env_options)
    if options.max_episode_steps is not None:
        env_spec.max_episode_steps = options.max_episode_steps
    if env_spec.max_episode_steps is None:
        raise DataError(
            "An evaluation episode must have an end.",
            got=f"world {env_spec.id!r} without a time limit",
            fix="data.max_episode_steps=1000",
        )

    def make_env() -> gymnasium.Env[Any, Any]:
        made = gymnasium.make(env_spec)
        if (options.env_id or "").startswith(OGBENCH):
            from trajgen.envs.ogbench import GoalShown

            return GoalShown(made, options.goal_state)
        return made

    bounds = {}
    if about.get("ref_min_score") is not None and about.get("ref_max_score") is not None:
        bounds["minari"] = (float(about["ref_min_score"]), float(about["ref_max_score"]))
        if bounds["minari"] in options.bounds.values():
            bounds.clear()
    extra: dict[str, Any] = {}
    if env_spec.id.startswith(WITH_A_MAP):
        env = make_env()
        inner: Any = env.unwrapped
        cells = grid(inner)
        extra = {"walls": cells.walls(), "one_goal": len(inner.maze.unique_goal_locations) == 1}
        env.close()
    maze = next((maze for maze in MAZES.values() if maze.env_id == env_spec.id), None)
    if maze is not None:
        extra["controller"] = lambda: WaypointController(cells)
        if env_spec.max_episode_steps == maze.max_steps:  # a return means something else in longer episodes
            bounds[maze.bounds_name] = maze.bounds
    return EvalEnv(
        name=env_spec.id,
        make_env=make_env,
        max_steps=env_spec.max_episode_steps,
        bounds=options.bounds | bounds,  # what is asked for by name comes first
        goal_radius=options.goal_radius or (GOAL_RADIUS if maze else None),
        state_key=options.state_key,
        goal_key=options.goal_key,
        achieved_key=options.achieved_key,
        rule=options.success,
        resets=options.resets,
        **extra,
    )


def has_eval_env(options: DataOptions) -> bool:
    """Whether there is a world to evaluate in: one that is asked for, or that of the data."""
    return options.env_id is not None or _text(store.metadata(options.id)) is not None


def _text(about: Mapping[str, Any]) -> str | None:
    text: str | None = about.get("eval_env_spec") or about.get("env_spec")
    return text


def _spec(options: DataOptions, about: Mapping[str, Any]) -> Any:
    """The Gymnasium spec of the evaluation world."""
    if options.env_id is not None:
        return spec(options.env_id)
    from gymnasium.envs.registration import EnvSpec

    text = _text(about)
    if text is None:
        raise DataError(
            "A policy is evaluated in a world.",
            expected="one that the data set names, or data.env_id",
            got=f"data set {options.id!r} without one",
            fix="data.env_id=ID of a Gymnasium world",
        )
    register_envs()
    for old in ('"order_enforce": true,', '"apply_api_compatibility": false,', '"autoreset": false,'):
        text = text.replace(old, "")  # fields that Gymnasium 1.0 dropped
    try:
        found = EnvSpec.from_json(text)
        if not isinstance(found.kwargs, dict):
            raise TypeError("its options have no names")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise store.damaged(options.id, f"the world of its metadata: {error}") from error
    return found
