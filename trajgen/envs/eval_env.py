"""The environments in which policies are evaluated, recovered from a data set's metadata."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from trajgen.core.choices import choices_of, is_vector
from trajgen.core.errors import CheckpointError, DataError
from trajgen.core.observations import Key, entry, join_images
from trajgen.data import store
from trajgen.data.options import DataOptions, EnvShift, SuccessRule
from trajgen.envs import chain
from trajgen.envs.gym import OGBENCH, make_env, register_envs, spec
from trajgen.envs.maze_images import WRAPPER, image_side, with_images
from trajgen.envs.pointmaze import GOAL_RADIUS, MAZES, grid
from trajgen.envs.shift import SHIFTED, shift_of, shift_words, shifted
from trajgen.envs.strangers import check_options, trusted
from trajgen.envs.waypoints import WaypointController

if TYPE_CHECKING:
    import gymnasium

    from trajgen.core.planning import Policy
    from trajgen.core.types import Space

WITH_A_MAP = ("PointMaze_", "AntMaze_")
"""Prefixes of the ids of environments that have cells and walls."""
IN_ANOTHER_MAZE = (
    "was recorded in another maze than the one that it names for the evaluation: their maps have walls in other cells"
)
TRUE_OBSERVATION = "true_observation"
"""Entry of a step's info with what is observed without noise, where a disturbance adds some."""
TOLERANCE = 1e-3
"""How far actions of the data may lie outside of an environment's box, as a share of it."""


@dataclass(frozen=True)
class EnvRecord:
    """What a run folder keeps of the environment that its data set names, so that it can be evaluated without the set.

    Args:
        id: of an environment that is registered.
        options: with which it is made.
        max_episode_steps: its time limit.
        bounds: the data set's returns that count as 0 and 100 of a normalized score.
        image_side: pixels of a side of the images that are drawn of it (`trajgen.envs.maze_images`).
        shift: of its physics.
    """

    id: str
    options: dict[str, Any] = field(default_factory=dict)
    max_episode_steps: int | None = None
    bounds: list[float] | None = None
    image_side: int | None = None
    shift: EnvShift = field(default_factory=EnvShift)


@dataclass(frozen=True)
class EvalEnv:
    """An evaluation environment.

    ``bounds`` are, by name, the returns that count as 0 and 100 of a normalized score. ``controller`` makes a
    noise-free reference policy that acts on the environment's own observations. ``walls`` are rectangles
    (x, y, width, height) in its units, for drawing. ``resets`` are options that episodes are reset with, in turn.
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
    """Whether all goals lie in the same position, or in the same cell of a maze."""
    replayed_episodes: int = 0
    """How many recorded episodes it replays, whatever the actions are (`trajgen.envs.replay`); 0 if it simulates."""

    def reset(self, env: gymnasium.Env[Any, Any], seed: int) -> tuple[Any, dict[str, Any]]:
        """Starts the episode of a seed in an environment that this one made; returns its observation and info."""
        options = dict(self.resets[seed % len(self.resets)]) if self.resets else None
        return env.reset(seed=seed, options=options)

    def state(self, observation: Any) -> Any:
        """The state in an observation, batched or not; None if it is a dictionary without it."""
        if not isinstance(observation, Mapping):
            return observation
        if not self.state_key:
            return None
        try:
            return entry(observation, self.state_key)
        except KeyError:
            return None

    def success(self, observation: Any, info: Mapping[str, Any]) -> np.ndarray | None:
        """Whether a step is good, by the info that `SuccessRule` names, by default else by the distance to the goal.

        Args:
            observation: as the environment returned it, batched or not.
            info: of the step.

        Returns:
            Booleans, (B,) or (); None if this environment does not report it.
        """
        if self.rule.info in info:
            value = info[self.rule.info]
            value = len(value) if isinstance(value, list | tuple | set) else value
            return np.asarray(np.asarray(value, dtype=np.float64) >= self.rule.at_least)
        is_default = self.rule.info == SuccessRule.info
        if not is_default or self.goal_radius is None or self.goal_key is None or self.achieved_key is None:
            return None
        observation = info.get(TRUE_OBSERVATION, observation)
        offset = np.asarray(entry(observation, self.achieved_key)) - np.asarray(entry(observation, self.goal_key))
        return np.asarray(np.linalg.norm(offset, axis=-1) <= self.goal_radius)

    def require_fits(self, env: gymnasium.Env[Any, Any], space: Space) -> None:
        """Raises a DataError if an environment that this one made does not fit what the data hold.

        Args:
            env: the environment.
            space: of the data.
        """
        from gymnasium import spaces

        box: Any = spaces.Box(-np.inf, np.inf, (space.vector_dim,), np.float32)
        has_entries = bool(space.state_key or space.image_key or space.goal_dim)
        observations: Any = env.observation_space
        for key, width in ((space.state_key, space.vector_dim), (space.goal_key, space.goal_dim)):
            if has_entries and key:
                _require_part(self.name, observations, "observations", partial(entry, key=key), (width,))
        require_same_spaces(self.name, env, spaces.Dict() if has_entries or space.image_shape else box, space)
        if space.image_shape:
            _require_part(
                self.name, observations, "images", partial(join_images, key=space.image_key), space.image_shape
            )


def make_eval_env(options: DataOptions, recorded: EnvRecord | None = None) -> EvalEnv:
    """The evaluation environment of a data set, from its metadata alone.

    Args:
        options: of the data.
        recorded: what a run folder says of the environment, for a set that is not on this machine.

    Raises:
        DataError: if the set is not on this machine, or names no environment that can be made here.
        CheckpointError: if what a run folder says names a file, or a module that is not imported.
    """
    if store.folder(options.id).is_dir():
        about = store.metadata(options.id)
        env_spec = _spec(options, about)
        if options.env_id is None and is_in_another_maze(options.id):
            warnings.warn(f"The data set {options.id!r} {IN_ANOTHER_MAZE}.", stacklevel=2)
    elif recorded is not None:
        check_options(recorded.id, recorded.options, CheckpointError)
        about = {"ref_min_score": recorded.bounds[0], "ref_max_score": recorded.bounds[1]} if recorded.bounds else {}
        is_same = options.env_id in (None, recorded.id)
        env_spec = spec(
            options.env_id or recorded.id, max_episode_steps=recorded.max_episode_steps if is_same else None
        )
        env_spec.kwargs.update(recorded.options if is_same else {})
        env_spec = with_images(env_spec, recorded.image_side) if is_same and recorded.image_side else env_spec
        env_spec = shifted(env_spec, recorded.shift) if is_same else env_spec
    else:
        raise store.missing(options.id)
    env_spec.kwargs.update(options.env_options)
    env_spec = shifted(env_spec, options.shift)
    if options.max_episode_steps is not None:
        env_spec.max_episode_steps = options.max_episode_steps
    if env_spec.max_episode_steps is None:
        raise DataError(
            f"An evaluation episode must have an end, and {env_spec.id!r} has no time limit.",
            fix="data.max_episode_steps=1000",
        )

    is_ogbench = (options.env_id or "").startswith(OGBENCH)

    def make() -> gymnasium.Env[Any, Any]:
        if is_ogbench:
            from trajgen.envs.ogbench import make_with_goals

            return make_with_goals(env_spec, options.goal_state)
        env: gymnasium.Env[Any, Any] = make_env(env_spec)
        return env

    bounds = dict(options.bounds)  # those of the options come first
    optional: dict[str, Any] = {}
    if env_spec.id.startswith(WITH_A_MAP):
        env = make()
        inner: Any = env.unwrapped
        cells = grid(inner)
        is_state = image_side(env_spec) is None or options.state_key == "observation"
        optional = {"walls": cells.walls() if is_state else None}  # plans of other states are not drawn over a map
        optional |= {"one_goal": len(inner.maze.unique_goal_locations) == 1}
        env.close()
    elif is_ogbench and options.goal_state[:2] == (0, 1):  # the state starts with the position
        from trajgen.envs.ogbench import walls

        env = make()
        optional = {"walls": walls(env.unwrapped)}
        env.close()
    maze = next((maze for maze in MAZES.values() if maze.env_id == env_spec.id), None)
    if maze is not None:
        optional["controller"] = lambda: WaypointController(cells)
        own_map, map_of_it = env_spec.kwargs.get("maze_map"), spec(maze.env_id).kwargs.get("maze_map")
        is_known = own_map is None or map_of_it is None or _walls(own_map) == _walls(map_of_it)
        if is_known and env_spec.max_episode_steps == maze.max_steps:  # else a return means something else
            bounds.setdefault(maze.bounds_name, maze.bounds)
    if env_spec.id == chain.ENV_ID:
        system = chain.chain(env_spec.kwargs.get("masses"))
        optional["controller"] = lambda: chain.OptimalController(system)
        if env_spec.max_episode_steps == chain.EPISODE_STEPS:
            bounds = {**bounds, **{name: pair for name, pair in system.bounds.items() if name not in bounds}}
    if about.get("ref_min_score") is not None and about.get("ref_max_score") is not None:
        reference = (float(about["ref_min_score"]), float(about["ref_max_score"]))
        bounds |= {} if reference in bounds.values() else {"minari": reference}
    return EvalEnv(
        name=f"{env_spec.id}{shift_words(env_spec, options.shift.blocked)}",
        make_env=make,
        max_steps=env_spec.max_episode_steps,
        bounds=bounds,
        goal_radius=options.goal_radius or (GOAL_RADIUS if maze else None),
        state_key=options.state_key,
        goal_key=options.goal_key,
        achieved_key=options.achieved_key,
        rule=options.success,
        resets=options.resets,
        **optional,
    )


def record_env(options: DataOptions) -> EnvRecord | None:
    """What a run folder keeps of the environment that a data set on this machine names.

    None where it names none, and where a wrapper is part of it that the folder cannot keep.
    """
    about = store.metadata(options.id)
    if options.env_id is None and _spec_text(about) is None:
        return None
    scores = [about.get("ref_min_score"), about.get("ref_max_score")]
    bounds = None if None in scores else [float(score) for score in scores if score is not None]
    if options.env_id is not None:
        return EnvRecord(options.env_id, bounds=bounds)
    env_spec = _spec(options, about)
    if {wrapper.name for wrapper in env_spec.additional_wrappers} - {SHIFTED, WRAPPER}:
        return None
    side, shift = image_side(env_spec), shift_of(env_spec)
    return EnvRecord(env_spec.id, env_spec.kwargs, env_spec.max_episode_steps, bounds, side, shift)


def has_eval_env(options: DataOptions) -> bool:
    """Whether there is an evaluation environment: one that the options name, or that of the data."""
    return options.env_id is not None or _spec_text(store.metadata(options.id)) is not None


def require_same_spaces(name: str, env: Any, observations: Any, space: Space) -> None:
    """Raises a DataError unless an environment has the observations of the data, and actions of their width and range.

    Args:
        name: of the environment, for messages.
        env: it.
        observations: the space of the data's observations; of a dictionary, entries may be missing.
        space: of the data, with the bounds of their actions.
    """
    fix = "name another environment, or none"
    if not _is_like(observations, env.observation_space):
        got = f"{name}: {env.observation_space}"
        expected = f"observations like {observations}"
        raise DataError("The environment has other observations than the data.", expected=expected, got=got, fix=fix)
    box = env.action_space
    if space.choices:
        if choices_of(box) != space.choices:
            raise DataError(
                "The environment has other actions than the data.",
                expected=f"{space.choices} choices",
                got=f"{name}: {box}",
                fix=fix,
            )
        return
    if not is_vector(box) or box.shape != (space.action_dim,):
        expected = f"a Box of {space.action_dim} real numbers"
        raise DataError(
            "The environment has other actions than the data.", expected=expected, got=f"{name}: {box}", fix=fix
        )
    if not space.action_low:
        return
    low, high = np.asarray(space.action_low), np.asarray(space.action_high)
    slack = TOLERANCE * np.where(np.isfinite(box.high - box.low), box.high - box.low, 1.0)
    below, above = np.isfinite(low) & (low < box.low - slack), np.isfinite(high) & (high > box.high + slack)
    outside = np.flatnonzero(below | above)
    if len(outside):
        index = outside[0]
        raise DataError(
            "Actions of the data lie outside of the environment's box.",
            expected=f"action {index} from {box.low[index]:g} to {box.high[index]:g}, as in {name}",
            got=f"{low[index]:g} to {high[index]:g}",
            fix="rescale the actions; or train with data.action_limits=data, if none of them lies outside; or another "
            "environment",
        )


def _require_part(name: str, observations: Any, kind: str, read: Callable[[Any], Any], shape: tuple[int, ...]) -> None:
    """Raises a DataError unless a part of an environment's observations has the shape of that of the data."""
    try:
        part = np.asarray(read(_zeros(observations)))
        got = f"{part.dtype} of shape {part.shape}"
        fits = part.shape == shape and (kind != "images" or part.dtype == np.uint8)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        got, fits = f"none, {error}", False
    if not fits:
        raise DataError(
            f"The environment has other {kind} than the data.",
            expected=f"{'uint8' if kind == 'images' else 'numbers'} of shape {shape}",
            got=f"{name}: {got}",
            fix="name another environment, or none",
        )


def _zeros(space: Any) -> Any:
    """An observation of zeros."""
    if hasattr(space, "spaces"):
        return {name: _zeros(part) for name, part in space.spaces.items()}
    return np.zeros(space.shape, space.dtype)


def _is_like(space: Any, other: Any) -> bool:
    """Whether a space has at least the entries of the data's space, in the same widths."""
    if hasattr(space, "spaces"):
        return all(
            name in getattr(other, "spaces", {}) and _is_like(part, other[name]) for name, part in space.spaces.items()
        )
    return bool(space.shape == other.shape) and np.issubdtype(other.dtype or object, np.number)


def _spec_text(about: Mapping[str, Any]) -> str | None:
    text: str | None = about.get("eval_env_spec") or about.get("env_spec")
    return text


def _spec(options: DataOptions, about: Mapping[str, Any]) -> Any:
    """The Gymnasium spec of the evaluation environment."""
    if options.env_id is not None:
        return spec(options.env_id)
    text = _spec_text(about)
    if text is None:
        raise DataError(
            f"The data set {options.id!r} names no evaluation environment.",
            fix="data.env_id=ID of a Gymnasium environment",
        )
    return trusted(_read_spec(options.id, text))


def is_in_another_maze(id: str) -> bool:
    """Whether a data set was recorded in another maze than the one that it names for the evaluation.

    Raises:
        DataError: if its metadata cannot be read.
    """
    about = store.metadata(id)
    specs = [_read_spec(id, about[key]) for key in ("env_spec", "eval_env_spec") if about.get(key)]
    maps = [each.kwargs.get("maze_map") for each in specs]
    if len(specs) < 2 or None in maps or specs[0].id != specs[1].id:
        return False
    return _walls(maps[0]) != _walls(maps[1])


def _walls(maze_map: Any) -> list[list[bool]]:
    return [[cell == 1 for cell in row] for row in maze_map]


def _read_spec(id: str, text: str) -> Any:
    from gymnasium.envs.registration import EnvSpec

    register_envs()
    for old in ('"order_enforce": true,', '"apply_api_compatibility": false,', '"autoreset": false,'):
        text = text.replace(old, "")  # fields that Gymnasium 1.0 dropped
    try:
        env_spec = EnvSpec.from_json(text)
        if not isinstance(env_spec.kwargs, dict):
            raise TypeError("its options have no names")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise store.damaged(id, f"the environment of its metadata: {error}") from error
    return env_spec
