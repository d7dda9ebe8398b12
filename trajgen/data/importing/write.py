"""Recorded episodes, checked one by one, and then written as a Minari data set."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trajgen.core.errors import DataError
from trajgen.core.types import Space
from trajgen.data import minari, store
from trajgen.data.episodes import Array, Episode, checked
from trajgen.data.hdf5 import READ_ERRORS
from trajgen.data.importing.options import ImportOptions
from trajgen.data.importing.source import Source, complete
from trajgen.data.importing.spaces import ACHIEVED, GOAL, STATE, box, env_spec_for, observations_of

DAMAGE = (*READ_ERRORS, EOFError, MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error, struct.error)
"""What reading a source raises that is no data of its format."""
NAMED = 10
"""Episodes that an error names beside the first."""


@dataclass(frozen=True)
class Imported:
    """What was written: ``lines`` say how a preset reads it."""

    id: str
    episodes: int
    steps: int
    terminated: int
    about: str
    lines: tuple[str, ...]


def unreadable(place: str, error: Exception) -> DataError:
    """The error for a source, or a part of one, that cannot be read."""
    text = str(error).partition("\n")[0] or type(error).__name__
    return DataError(
        "A source must be readable, and hold what it declares.",
        expected="a whole file of its format",
        got=f"{place}: {text}",
        fix="bring it over again, or name its format: format=…",
    )


def write(source: Source, options: ImportOptions, name: str) -> Imported:
    """Checks all episodes of a source, and then writes them.

    Args:
        source: read twice, an episode at a time.
        options: of the import.
        name: of the source, for messages.

    Raises:
        DataError: naming episode and field of what is wrong, before anything is written; if the id is taken; or if
            the world of the options has other observations or actions.
    """
    if not options.force:
        store.refuse_existing(options.id)
    space, steps, terminated, numbers = _check(source, options, name)
    env_spec = None if options.env is None else env_spec_for(options.env, space, options)

    def buffers() -> Iterator[dict[str, Any]]:
        for number in numbers:
            episode, names = _read(source, number, options, name)
            yield _buffer(episode, checked(episode, space, _place(source, number, name), names, _mend(number)))

    minari.save(
        options.id,
        buffers(),
        env_spec=env_spec,
        eval_env_spec=env_spec,
        observation_space=observations_of(space, options),
        action_space=box(np.array(space.action_low), np.array(space.action_high)),
        description=" ".join(filter(None, [f"Imported from {name}.", source.about])),
        algorithm="imported",
        force=options.force,
    )
    return Imported(options.id, len(numbers), steps, terminated, source.about, _lines(options))


def _check(source: Source, options: ImportOptions, name: str) -> tuple[Space, int, int, list[int]]:
    """Widths and bounds of the data, their steps and terminals, and the numbers of the episodes to write."""
    unknown = [number for number in options.skip if not 0 <= number < len(source)]
    numbers = [number for number in range(len(source)) if number not in set(options.skip)]
    if not numbers or unknown:
        raise DataError(
            "Episodes that are left out are among those of the source, and not all of them.",
            expected=f"numbers from 0 to {len(source) - 1}" if len(source) else "a source with episodes",
            got=f"{name}: {len(source)} episodes, skip={list(options.skip)}",
            fix="change skip, or name another source",
        )
    space: Space | None = None
    steps = terminated = 0
    low = high = np.zeros(0)
    wrong: dict[int, DataError] = {}
    for number in numbers:
        try:
            episode, names = _read(source, number, options, name)
            if space is None:
                space = _widths(episode, names, _place(source, number, name))
                low, high = np.full(space.action_dim, np.inf), np.full(space.action_dim, -np.inf)
            fields = checked(episode, space, _place(source, number, name), names, _mend(number))
        except DataError as error:
            wrong[number] = error
            continue
        low, high = np.minimum(low, fields["actions"].min(0)), np.maximum(high, fields["actions"].max(0))
        steps += len(episode)
        terminated += episode.terminated
    if wrong:
        raise _all_of(wrong)
    if space is None:  # there is an episode, and none was wrong
        raise RuntimeError("no episode was read")
    if (low >= -1).all() and (high <= 1).all():  # actions that are scaled, as they mostly are
        low, high = np.full_like(low, -1), np.full_like(high, 1)
    return replace(space, action_low=tuple(low.tolist()), action_high=tuple(high.tolist())), steps, terminated, numbers


def _place(source: Source, number: int, name: str) -> str:
    return f"{name}, episode {number} ({source.label(number)})"


def _mend(number: int) -> str:
    return f"mend the source, or leave the episode out: skip=[{number}]"


def _read(source: Source, number: int, options: ImportOptions, name: str) -> tuple[Episode, Mapping[str, str]]:
    """An episode without gaps, and what its source calls the fields."""
    place = _place(source, number, name)
    try:
        raw = source.read(number)
        return complete(raw, options, place, _mend(number)), raw.names
    except DAMAGE as error:
        raise unreadable(place, error) from error


def _widths(episode: Episode, names: Mapping[str, str], place: str) -> Space:
    """The widths of the first episode, which all others must have."""
    widths = {}
    for field in ("states", "actions", "goals", "achieved"):
        values = getattr(episode, field)
        if values is not None and np.ndim(values) != 2:
            raise DataError(
                "States, actions and goals are vectors.",
                expected="shape (n, ·)",
                got=f"{place}, field {names.get(field, field)!r}: shape {np.shape(values)}",
                fix="name other entries: state=…, action=…, goal=…",
            )
        widths[field] = 0 if values is None else np.shape(values)[1]
    return Space(state_dim=widths["states"], action_dim=widths["actions"], goal_dim=widths["goals"])


def _all_of(wrong: Mapping[int, DataError]) -> DataError:
    """One error for all episodes that are wrong: the first in full, the others by number."""
    first, *others = wrong
    error = wrong[first]
    if not others:
        return error
    out = f"mend the source, or leave all of them out: skip=[{','.join(map(str, wrong))}]"
    more = ", ".join(map(str, others[:NAMED])) + (" …" if len(others) > NAMED else "")
    return DataError(
        error.rule,
        expected=error.expected,
        got=f"{error.got}; {len(others)} more are wrong: episodes {more}",
        fix=out if error.fix == _mend(first) else error.fix,
    )


def _buffer(episode: Episode, fields: Mapping[str, Array]) -> dict[str, Any]:
    """An episode as Minari's EpisodeBuffer takes it."""
    last = np.arange(len(episode)) == len(episode) - 1
    observations: Any = fields["states"]
    if "goals" in fields:
        observations = {STATE: fields["states"], GOAL: fields["goals"]}
        observations |= {ACHIEVED: fields["achieved"]} if "achieved" in fields else {}
    return {
        "observations": observations,
        "actions": fields["actions"],
        "rewards": fields["rewards"].astype(np.float64),
        "terminations": last & episode.terminated,
        "truncations": last & (not episode.terminated),
    }


def _lines(options: ImportOptions) -> tuple[str, ...]:
    """How a preset reads the set."""
    lines = [f"id: {options.id}"]
    if options.has_goals:
        lines += [f"state_key: {STATE}", f"goal_key: {GOAL}"]
        if options.achieved is not None:
            lines.append(f"achieved_key: {ACHIEVED}")
        lines.append("goals: " + ("hindsight" if options.achieved is not None else "dataset"))
        lines += ["relabel_ratio: 1.0"] if options.goal is None else []  # where an episode ended was not asked for
    return tuple(lines)
