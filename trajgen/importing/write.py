"""Recorded episodes, checked one by one, and then written as a Minari data set."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trajgen.core.errors import DataError
from trajgen.core.types import Space
from trajgen.data import minari, store
from trajgen.data.episodes import OBSERVED, Array, Episode, Rounding, checked, require_pixels
from trajgen.data.hdf5 import READ_ERRORS
from trajgen.data.presets import ACHIEVED, GOAL, preset_text
from trajgen.importing.options import ImportOptions
from trajgen.importing.source import Source, complete

DAMAGE = (*READ_ERRORS, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, struct.error)
"""What reading a source raises that does not hold data of its format."""
NAMED = 10
"""Episodes that an error names beside the first."""
STATE = "observation"
"""Entries of the observations of a set with goals, as in gymnasium-robotics."""


@dataclass(frozen=True)
class Imported:
    """What was written: ``preset`` is the text of one that reads it."""

    id: str
    episodes: int
    steps: int
    terminated: int
    about: str
    preset: str


def unreadable(origin: str, error: Exception) -> DataError:
    """The error for a source, or a part of one, that cannot be read."""
    text = str(error).partition("\n")[0] or type(error).__name__
    fix = "copy it again, or name its format: format=…"
    return DataError("A source must be readable, and hold what it declares.", got=f"{origin}: {text}", fix=fix)


def write(source: Source, options: ImportOptions, name: str) -> Imported:
    """Checks all episodes of a source, and then writes them.

    Args:
        source: read twice, an episode at a time.
        options: of the import.
        name: of the source, for messages.

    Raises:
        DataError: naming episode and field of what is wrong, before anything is written; if the id is taken; or if
            the environment of the options has other observations or actions.
    """
    if not options.force:
        store.refuse_existing(options.id)
    space, lengths, terminated, numbers, wide, shapes = _check(source, options, name)
    observations, env_spec = _observation_space(space, options, wide, shapes), None
    if options.env is not None:
        env_spec, low, high = _env_spec(options.env, space, observations)
        space = replace(space, action_low=low, action_high=high)
    elif min(space.action_low) >= -1 and max(space.action_high) <= 1:  # normalized actions
        space = replace(space, action_low=(-1.0,) * space.action_dim, action_high=(1.0,) * space.action_dim)

    def buffers() -> Iterator[dict[str, Any]]:
        for number in numbers:
            episode, images, names = _read(source, number, options, name)
            fields = checked(episode, space, _origin(source, number, name), names, _fix(number))
            exact = {field: np.asarray(getattr(episode, field), np.float64) for field in fields if field in wide}
            yield _buffer(episode, fields | exact, images)

    minari.save(
        options.id,
        buffers(),
        env_spec=env_spec,
        eval_env_spec=env_spec,
        observation_space=observations,
        action_space=_box(np.array(space.action_low), np.array(space.action_high)),
        description=" ".join(filter(None, [f"Imported from {name}.", source.about])),
        algorithm="imported",
        force=options.force,
    )
    preset = _preset(options, max(lengths), space, list(shapes))
    return Imported(options.id, len(numbers), sum(lengths), terminated, source.about, preset)


Shapes = dict[str, tuple[int, ...]]


def _check(
    source: Source, options: ImportOptions, name: str
) -> tuple[Space, list[int], int, list[int], list[str], Shapes]:
    """Widths and bounds, steps of each episode, how many ended by a terminal, and the numbers of those to write.

    The last two name the fields whose steps 32-bit floats do not hold, and the shapes of images.
    """
    if not len(source):
        raise DataError("A source holds at least one episode.", got=f"{name}: 0 episodes")
    numbers = [number for number in range(len(source)) if number not in set(options.skip)]
    if not numbers or any(not 0 <= number < len(source) for number in options.skip):
        raise DataError(
            "Episodes that are left out are among those of the source, and not all of them.",
            expected=f"numbers from 0 to {len(source) - 1}",
            got=f"{name}: {len(source)} episodes, skip={list(options.skip)}",
        )
    space: Space | None = None
    terminated, lengths = 0, []
    low = high = np.zeros(0)
    shapes: Shapes = {}
    errors: dict[int, DataError] = {}
    rounding, is_discrete = Rounding(), options.actions == "auto"
    for number in numbers:
        origin = _origin(source, number, name)
        try:
            episode, images, names = _read(source, number, options, name)
            if space is None:
                space, shapes = _widths(episode, names, origin), {key: each.shape[1:] for key, each in images.items()}
                low, high = np.full(space.action_dim, np.inf), np.full(space.action_dim, -np.inf)
            fields = checked(episode, space, origin, names, _fix(number), rounding)
            _check_images(images, shapes, origin)
        except DataError as error:
            errors[number] = error
            continue
        actions = fields["actions"]
        low, high = np.minimum(low, actions.min(0)), np.maximum(high, actions.max(0))
        is_discrete &= np.asarray(episode.actions).dtype.kind in "iub" or _is_number_of_action(actions)
        lengths.append(len(episode))
        terminated += episode.terminated
    if errors:
        raise _all_of(errors)
    if space is None:  # there is an episode, and none was wrong
        raise RuntimeError("no episode was read")
    if is_discrete and (low < high).any():
        raise DataError(
            "Actions must be vectors of real numbers.",
            got=f"{name}: whole numbers from {low.min():g} to {high.max():g}, as those of discrete actions",
            fix="actions=continuous if they are not; Minari sets with a space of discrete actions are read as they are",
        )
    rounding.warn(name, without=OBSERVED)
    space = replace(space, action_low=tuple(low.tolist()), action_high=tuple(high.tolist()))
    wide = [field for field in OBSERVED if rounding.lost(field).any()]
    return space, lengths, terminated, numbers, wide, shapes


def _check_images(images: Mapping[str, Array], shapes: Shapes, origin: str) -> None:
    """Raises a DataError for images of another type or shape than those of the first episode."""
    for key, values in images.items():
        where = f"{origin}, field {key!r}"
        require_pixels(values, where)
        if values.shape[1:] != shapes[key]:
            got = f"{where}: {values.shape[1:]}"
            raise DataError("All images of an entry have one shape.", expected=shapes[key], got=got)


def _is_number_of_action(actions: Array) -> bool:
    """Whether all numbers are 0, 1, 2, …, as those of discrete actions and of their one-hot codes are."""
    return bool(((actions >= 0) & (actions == np.floor(actions))).all())


def _origin(source: Source, number: int, name: str) -> str:
    label, episode = source.label(number), f"episode {number}"
    return f"{name}, {episode}" + (f" ({label})" if label != episode else "")


def _fix(number: int) -> str:
    return f"correct the source, or leave the episode out: skip=[{number}]"


def _read(
    source: Source, number: int, options: ImportOptions, name: str
) -> tuple[Episode, dict[str, Array], Mapping[str, str]]:
    """A complete episode, its images by entry, and the source's names of its fields."""
    origin = _origin(source, number, name)
    try:
        raw = source.read(number)
        return *complete(raw, options, origin, _fix(number)), raw.names
    except DAMAGE as error:
        raise unreadable(origin, error) from error


def _widths(episode: Episode, names: Mapping[str, str], origin: str) -> Space:
    """The widths of the first episode, which all others must have."""
    widths = {}
    for field in ("states", "actions", "goals", "achieved"):
        values = getattr(episode, field)
        if values is not None and np.ndim(values) != 2:
            got = f"{origin}, field {names.get(field, field)!r}: shape {np.shape(values)}"
            fix = "name other entries: state=…, action=…, goal=…"
            raise DataError("States, actions and goals are vectors.", got=got, fix=fix)
        widths[field] = 0 if values is None else np.shape(values)[1]
    return Space(state_dim=widths["states"], action_dim=widths["actions"], goal_dim=widths["goals"])


def _all_of(errors: Mapping[int, DataError]) -> DataError:
    """One error for all episodes that are wrong: the first in full, the others by number."""
    first, *others = errors
    error = errors[first]
    if not others:
        return error
    skip = f"correct the source, or leave all of them out: skip=[{','.join(map(str, errors))}]"
    more = ", ".join(map(str, others[:NAMED])) + (" …" if len(others) > NAMED else "")
    got = "; ".join(filter(None, [str(error.got or ""), f"{len(others)} more are wrong: episodes {more}"]))
    return DataError(error.rule, expected=error.expected, got=got, fix=skip if error.fix == _fix(first) else error.fix)


def _buffer(episode: Episode, fields: Mapping[str, Array], images: Mapping[str, Array]) -> dict[str, Any]:
    """The arguments of Minari's EpisodeBuffer for an episode."""
    last = np.arange(len(episode)) == len(episode) - 1
    observations: Any = fields["states"]
    if "goals" in fields or images:
        names = {STATE: "states", GOAL: "goals", ACHIEVED: "achieved"}
        entries = {name: fields[field] for name, field in names.items() if field in fields}
        observations = {name: values for name, values in entries.items() if values.shape[1]} | dict(images)
    return {
        "observations": observations,
        "actions": fields["actions"],
        "rewards": fields["rewards"].astype(np.float64),
        "terminations": last & episode.terminated,
        "truncations": last & (not episode.terminated),
    }


def _preset(options: ImportOptions, longest: int, space: Space, images: list[str]) -> str:
    entries: dict[str, Any] = {}
    if options.has_goals or images:
        entries["state_key"] = STATE if space.state_dim else []
    entries |= {"image_key": images[0] if len(images) == 1 else images} if images else {}
    if options.has_goals:
        entries["goal_key"] = GOAL
        entries |= {"achieved_key": ACHIEVED} if options.achieved is not None else {}
        entries["goals"] = "hindsight" if options.achieved is not None else "dataset"
        entries |= {"relabel_ratio": 1.0} if options.goal is None else {}  # where an episode ended was not its goal
    return preset_text(options.id, longest, entries)


def _observation_space(space: Space, options: ImportOptions, wide: Collection[str], shapes: Shapes) -> Any:
    """The space of the observations; the fields in ``wide`` are of 64-bit floats, images have these shapes."""
    from gymnasium import spaces

    def unbounded(field: str, width: int) -> Any:
        dtype = np.float64 if field in wide else np.float32
        return spaces.Box(-np.inf, np.inf, (width,), dtype)

    if not options.has_goals and not shapes:
        return unbounded("states", space.state_dim)
    entries = {STATE: unbounded("states", space.state_dim)} if space.state_dim else {}
    entries |= {name: spaces.Box(0, 255, shape, np.uint8) for name, shape in shapes.items()}
    entries |= {GOAL: unbounded("goals", space.goal_dim)} if options.has_goals else {}
    entries |= {ACHIEVED: unbounded("achieved", space.goal_dim)} if options.achieved is not None else {}
    return spaces.Dict(entries)


def _box(low: Array, high: Array) -> Any:
    from gymnasium import spaces

    return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)


def _env_spec(env: str, space: Space, observations: Any) -> tuple[Any, tuple[float, ...], tuple[float, ...]]:
    """The spec of the evaluation environment, and the bounds of its actions.

    Raises:
        DataError: if it is not known, cannot be made, or does not fit the data.
    """
    from trajgen.envs.eval_env import require_same_spaces
    from trajgen.envs.gym import make_env, portable, spec

    env_spec = portable(spec(env))
    made_env = make_env(env_spec)
    made_env.close()
    require_same_spaces(f"env={env}", made_env, observations, space)
    return env_spec, *(tuple(map(float, bound)) for bound in (made_env.action_space.low, made_env.action_space.high))
