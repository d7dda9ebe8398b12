"""The worlds in which policies are evaluated, recovered from a data set's metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from trajgen.core.errors import DataError
from trajgen.core.protocols import Policy
from trajgen.data import store
from trajgen.data.gym import register_worlds, spec
from trajgen.data.minari import missing
from trajgen.data.options import DataOptions
from trajgen.data.pointmaze import GOAL_RADIUS, MAZES, grid
from trajgen.data.waypoints import WaypointController

if TYPE_CHECKING:
    import gymnasium


@dataclass(frozen=True)
class World:
    """A world to evaluate in.

    ``bounds`` holds, by name, the returns that count as 0 and 100 of a normalised score. ``controller`` makes
    a noise-free reference policy that acts on the world's own observations. ``walls`` are rectangles
    (x, y, width, height) of the world's plane, in its units, for drawing.
    """

    name: str
    make_env: Callable[[], gymnasium.Env[Any, Any]]
    max_steps: int
    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)
    controller: Callable[[], Policy] | None = None
    walls: list[tuple[float, float, float, float]] | None = None
    goal_radius: float | None = None
    goal_key: str | None = None
    achieved_key: str | None = None

    def success(self, observation: Any, info: Mapping[str, Any]) -> np.ndarray | None:
        """Whether each environment is at its goal after a step: an episode that ever was has succeeded.

        Args:
            observation: as the environment returned it, batched or not.
            info: the same of the step's information; its entry "success" counts before the distance.

        Returns:
            Booleans, (B,) or (); None if this world does not say.
        """
        if "success" in info:
            return np.asarray(info["success"], dtype=bool)
        if self.goal_radius is None or self.goal_key is None or self.achieved_key is None:
            return None
        offset = np.asarray(observation[self.achieved_key]) - np.asarray(observation[self.goal_key])
        return np.asarray(np.linalg.norm(offset, axis=-1) <= self.goal_radius)


def world_for(options: DataOptions) -> World:
    """The evaluation world of a data set, from its metadata alone.

    Raises:
        DataError: if the set is not on this machine, or names no world that can be built here.
    """
    import gymnasium

    if not store.folder(options.id).is_dir():
        raise missing(options.id, options.maker)
    about = store.metadata(options.id)
    env_spec = _spec(options, about)
    if options.max_episode_steps is not None:
        env_spec.max_episode_steps = options.max_episode_steps
    if env_spec.max_episode_steps is None:
        raise DataError(
            "An evaluation episode must have an end.",
            got=f"world {env_spec.id!r} without a time limit",
            fix="data.max_episode_steps=1000",
        )

    def make_env() -> gymnasium.Env[Any, Any]:
        return gymnasium.make(env_spec)

    bounds = {}
    if about.get("ref_min_score") is not None and about.get("ref_max_score") is not None:
        bounds["minari"] = (float(about["ref_min_score"]), float(about["ref_max_score"]))
    extra: dict[str, Any] = {}
    maze = next((maze for maze in MAZES.values() if maze.env_id == env_spec.id), None)
    if maze is not None:
        env = make_env()
        cells = grid(env.unwrapped)
        env.close()
        extra = {"controller": lambda: WaypointController(cells), "walls": cells.walls()}
        if env_spec.max_episode_steps == maze.max_steps:  # a return means something else in longer episodes
            bounds[maze.bounds_name] = maze.bounds
    return World(
        name=env_spec.id,
        make_env=make_env,
        max_steps=env_spec.max_episode_steps,
        bounds=bounds | options.bounds,
        goal_radius=options.goal_radius or (GOAL_RADIUS if maze else None),
        goal_key=options.goal_key,
        achieved_key=options.achieved_key,
        **extra,
    )


def _spec(options: DataOptions, about: Mapping[str, Any]) -> Any:
    """The Gymnasium spec of the evaluation world."""
    if options.env_id is not None:
        return spec(options.env_id)
    from gymnasium.envs.registration import EnvSpec

    text = about.get("eval_env_spec") or about.get("env_spec")
    if text is None:
        raise DataError(
            "A data set must name the world that it was recorded in.",
            got=f"data set {options.id!r} without one",
            fix="data.env_id=ID of a Gymnasium world",
        )
    register_worlds()
    for old in ('"order_enforce": true,', '"apply_api_compatibility": false,', '"autoreset": false,'):
        text = text.replace(old, "")  # fields that Gymnasium 1.0 dropped
    try:
        return EnvSpec.from_json(text)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise store.damaged(options.id, f"the world of its metadata: {error}") from error
