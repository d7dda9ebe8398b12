"""Sources of recorded episodes, which every format is turned into, and what is missing in them filled in."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trajgen.core.errors import DataError, nearest
from trajgen.data.episodes import Array, Episode
from trajgen.importing.options import ImportOptions

TERMINALS = ("terminals", "terminal", "terminations", "termination", "terminated", "is_terminal")
"""Names of marks that the task ended with a step."""
TIMEOUTS = ("timeouts", "timeout", "truncations", "truncation", "truncated", "is_truncated", "timelimit.truncated")
"""Names of marks that the recording ended with a step."""
ENDS = ("episode_terminals", "episode_ends", "ends", "dones", "done", "is_last", "last")
"""Names of marks that an episode ended, without the reason."""
NEXT = ("next_observations", "next_obs")
"""Names of the observations that the steps led to."""
STARTS = ("is_first", "first", "episode_starts", "episode_start", "starts")
"""Names of marks that an episode began."""
COUNTERS = ("frame_index", "step_index", "timestep", "timesteps", "time_step", "elapsed_steps", "step", "steps", "t")
"""Names of columns that count the steps of an episode."""
INFOS = ("infos/", "info/")
"""Groups whose entries are marks as well."""
GIT_LFS = b"version https://git-lfs"
ROUNDING = 1e-5
"""Difference of an observation from the one that it should be, as a share of the largest, that is rounding."""


@dataclass(frozen=True)
class Recorded:
    """An episode of n steps as its source holds it; observations have n or n+1 rows.

    ``final``, ``final_achieved`` and ``final_images`` are of the observation after the last step, where the source has
    it in another array. ``names`` are the source's names of the fields, for messages.
    """

    states: Array  # (n, S) or (n+1, S)
    actions: Array  # (n, A)
    rewards: Array | None = None  # (n,)
    terminated: bool = False
    final: Array | None = None  # (S,)
    goals: Array | None = None  # (n, G) or (n+1, G)
    achieved: Array | None = None  # (n, G) or (n+1, G)
    final_achieved: Array | None = None  # (G,)
    names: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, Array] = field(default_factory=dict)  # by entry, (n, ...) or (n+1, ...)
    final_images: Mapping[str, Array] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        get: Callable[[str], Any],
        columns: Mapping[str, tuple[str, ...]],
        origin: str,
        *,
        images: Iterable[str] = (),
        **rest: Any,
    ) -> Recorded:
        """An episode whose entries ``get`` reads by name; what is None in ``rest`` is left out."""
        if columns.get("achieved") == columns["states"]:
            rest["final_achieved"] = rest.get("final")
        if not columns["states"]:
            rest["states"] = np.zeros((len(np.asarray(get(columns["actions"][0]))) + 1, 0), np.float32)
            columns = {name: entries for name, entries in columns.items() if name != "states"}
        fields = {
            name: joined([get(entry) for entry in entries], entries, origin)
            if name == "states"
            else np.asarray(get(entries[0]))
            for name, entries in columns.items()
            if rest.get(name, ...) is not None
        }
        rest["images"] = {name: np.asarray(get(name)) for name in images}
        return cls(names={name: "+".join(entries) for name, entries in columns.items()}, **(fields | rest))


class Source(Protocol):
    """Episodes that can be read one by one, and again."""

    about: str
    """Facts beside the numbers, for the description of the set."""

    def __len__(self) -> int: ...

    def label(self, number: int) -> str:
        """Where episode ``number`` is found in the source."""
        ...

    def read(self, number: int) -> Recorded: ...


class Arrays:
    """Episodes as mappings of arrays: observations, actions, rewards, marks of ends, next observations.

    Args:
        episode: reads the mapping of an episode.
        labels: where each episode is found.
        options: names of other entries.
    """

    about = ""

    def __init__(
        self, episode: Callable[[int], Mapping[str, Any]], labels: Sequence[str], options: ImportOptions
    ) -> None:
        self._episode, self._labels, self._options = episode, labels, options

    def __len__(self) -> int:
        return len(self._labels)

    def label(self, number: int) -> str:
        return self._labels[number]

    def read(self, number: int) -> Recorded:
        arrays, options, origin = self._episode(number), self._options, self._labels[number]
        columns = options.columns(("observations",), "actions", "rewards")

        def get(name: str) -> Any:
            if name not in arrays:
                raise absent(name, list(arrays), origin)
            return arrays[name]

        rest: dict[str, Any] = {} if columns["rewards"][0] in arrays else {"rewards": None}
        steps = len(np.asarray(get(columns["actions"][0])))
        following = next_name(arrays) if columns["states"] == ("observations",) else None
        after = None if following is None else get(following)
        if after is not None and len(after) != steps:
            raise DataError(f"{origin}, field {following!r}: shape {np.shape(after)}, for {steps} steps.")
        if after is not None and options.cut == "auto" and steps > 1:
            jumps, _ = is_followed(np.asarray(after)[:-1], np.asarray(get("observations"))[1:steps])
            if jumps.any():
                row = int(np.flatnonzero(jumps)[0])
                got = f"{origin}, row {row}: the next row is not its next observation"
                raise DataError("An episode goes on from row to row.", got=got, fix="cut it there; or cut=marks")
        rest["final"] = None if after is None else np.asarray(after)[-1]
        rest["terminated"] = _terminated(arrays, steps, options, origin)
        return Recorded.read(get, columns, origin, images=options.named_images, **rest)


def _terminated(arrays: Mapping[str, Any], steps: int, options: ImportOptions, origin: str) -> bool:
    """Whether the marks of one episode say that the task ended; one mark may stand for the episode."""
    last: dict[str, bool] = {}
    for kind, names in (("terminal", TERMINALS), ("timeout", TIMEOUTS), ("end", ENDS)):
        for name in matching(names, arrays):
            marks = flags(np.atleast_1d(arrays[name]), f"{origin}, field {name!r}")
            if len(marks) not in (1, steps) or (
                marks[:-1].any() and not (kind == "terminal" and options.cut != "auto")
            ):
                raise DataError(
                    f"An episode has one mark, or a mark for each of {steps} steps, set at the last one alone.",
                    got=f"{origin}, field {name!r}: {len(marks)} marks, set at {np.flatnonzero(marks)[:5].tolist()}",
                    fix="import a table of many episodes as one file; cut=timeouts takes terminals that stay set",
                )
            last[kind] = last.get(kind, False) or bool(marks[-1])
    if last.get("end") and not (last.get("timeout") or "terminal" in last or options.ends != "data"):
        if "timeout" not in last:
            raise unknown_reason(origin)
        return True  # it ended, and not by a timeout
    return last.get("terminal", False)


IMAGE = "image "
"""Before the name of an entry that is an image, among the parts of observations."""


def complete(raw: Recorded, options: ImportOptions, origin: str, fix: str) -> tuple[Episode, dict[str, Array]]:
    """An episode with a final observation, rewards and an end, according to the options; and its images by entry.

    Raises:
        DataError: naming origin and field, if the numbers of rows do not fit, or rewards are missing.
    """
    names, actions, rewards = raw.names, np.asarray(raw.actions), raw.rewards
    actions = actions[:, None] if actions.ndim == 1 else actions
    rewards = rewards[:, 0] if rewards is not None and rewards.shape[1:] == (1,) else rewards
    steps = len(actions)
    if options.rewards == "data" and rewards is None:
        raise DataError(
            f"Training needs rewards, and {origin} has no {names.get('rewards', 'rewards')!r}.",
            fix="reward=ENTRY; or rewards=last for demonstrations that succeed; or rewards=zero for goals in hindsight",
        )
    if rewards is not None and len(np.atleast_1d(rewards)) != steps:
        shapes = f"shape {np.shape(rewards)}; {names.get('actions', 'actions')!r}: shape {np.shape(raw.actions)}"
        got = f"{origin}, field {names.get('rewards', 'rewards')!r}: {shapes}"
        raise DataError(f"There are {steps} rewards for {steps} actions.", got=got, fix=fix)
    terminated = {"data": raw.terminated, "terminal": True, "timeout": False}[options.ends]
    parts: dict[str, Any] = {"states": raw.states, "goals": raw.goals, "achieved": raw.achieved}
    parts |= {IMAGE + name: values for name, values in raw.images.items()}
    for name, values in parts.items():
        axes = 4 if name.startswith(IMAGE) else 2
        if values is not None and (np.ndim(values) != axes or len(values) not in (steps, steps + 1)):
            rule = f"Observations have the shape ({steps} or {steps + 1}, ·) for {steps} actions."
            got = f"{origin}, field {names.get(name, name)!r}: shape {np.shape(values)}"
            raise DataError(rule, got=got, fix=fix)
    if parts["goals"] is not None and len(parts["goals"]) == steps:
        parts["goals"] = _extended(parts["goals"])
    finals = {"states": raw.final, "achieved": raw.final_achieved}
    finals |= {IMAGE + name: image for name, image in raw.final_images.items()}
    for name, last in finals.items():
        if last is not None and len(parts[name]) == steps:
            parts[name] = _extended(parts[name], last)
    if isinstance(options.achieved, tuple):
        parts["achieved"] = _taken(parts["states"], options.achieved, origin)
    is_short = any(values is not None and len(values) == steps for values in parts.values())
    if is_short:  # a final state would not belong to a repeated image or place
        parts = {name: None if values is None else values[:steps] for name, values in parts.items()}
    if is_short and (options.final == "repeat" or (options.final == "auto" and terminated)):
        parts = {name: None if values is None else _extended(values) for name, values in parts.items()}
    elif is_short:
        steps -= 1
        actions, rewards = actions[:-1], None if rewards is None else rewards[:-1]
        terminated = options.ends == "terminal"  # the step that ended the task is dropped
    if parts["goals"] is None and parts["achieved"] is not None:
        parts["goals"] = np.repeat(parts["achieved"][-1:], steps + 1, axis=0)
    if options.rewards != "data" or rewards is None:
        rewards = np.zeros(steps)
        rewards[-1:] = options.rewards == "last"
    images = {name.removeprefix(IMAGE): parts.pop(name) for name in [*parts] if name.startswith(IMAGE)}
    return Episode(actions=actions, rewards=rewards, terminated=terminated, **parts), images


def joined(parts: Sequence[Any], names: Sequence[str], origin: str) -> Array:
    """Arrays (n, ·) side by side; those of one number a step (n,) too.

    Raises:
        DataError: if one is no array of vectors, or their lengths differ.
    """
    columns = [np.asarray(part)[:, None] if np.ndim(part) == 1 else np.asarray(part) for part in parts]
    for name, part in zip(names, columns, strict=True):
        if part.ndim != 2 or len(part) != len(columns[0]):
            got = f"{origin}, field {name!r}: shape {part.shape}, beside {len(columns[0])} rows of {names[0]!r}"
            fix = "name other entries: state=[…]"
            raise DataError("The entries of a state are vectors, one for each step.", got=got, fix=fix)
    return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)


def is_followed(after: Array, following: Array) -> tuple[Array, Array]:
    """Whether the observations that steps led to surely differ from the next rows (n, ...), and surely are the same."""
    after, following = (np.asarray(values, np.float64).reshape(len(values), -1) for values in (after, following))
    with np.errstate(invalid="ignore"):
        difference, size = np.abs(after - following), np.where(np.isfinite(following), np.abs(following), 0).max(0)
        jumps = (difference > ROUNDING * size) & np.isfinite(difference)
        return jumps.any(1), (difference <= ROUNDING * size).all(1)


def matching(names: Sequence[str], entries: Iterable[str]) -> list[str]:
    """The entries of these names, in capitals or not, and in a group of infos too."""
    return [entry for entry in entries if _base(entry) in names]


def next_name(entries: Container[str]) -> str | None:
    """The entry of the observations that the steps led to, if there is one."""
    return next((name for name in NEXT if name in entries), None)


def _base(entry: str) -> str:
    entry = entry.lower()
    return next((entry.removeprefix(group) for group in INFOS if entry.startswith(group)), entry)


def require_content(path: Path) -> None:
    """Raises an OSError for a pointer of Git LFS in the place of a file."""
    with path.open("rb") as file:
        if file.read(len(GIT_LFS)) == GIT_LFS:
            raise OSError(f"{path.name} is a pointer of Git LFS, and 'git lfs pull' fetches the file itself")


def flags(values: Array, where: str) -> Array:
    """Marks (n,) as booleans.

    Raises:
        DataError: if one is neither 0 nor 1.
    """
    values = np.asarray(values)
    values = values.reshape(len(values), math.prod(values.shape[1:]))
    wrong = np.flatnonzero(((values != 0) & (values != 1)).any(1)) if values.shape[1] == 1 else np.array([0])
    if len(wrong):
        got = f"{where}, row {int(wrong[0])}: {values[wrong[0]]}"
        raise DataError("An end is marked by 0 or 1, one mark for each row.", got=got, fix="correct the source")
    return values[:, 0].astype(bool)


def absent(name: str, names: Sequence[str], origin: str) -> DataError:
    """The error for an entry that is not in the source."""
    return DataError(
        f"There is no {name!r} in {origin}.",
        expected=f"an entry among {', '.join(sorted(names)[:30])}",
        fix=f"state=…, action=…, reward=… or goal=… take other names; {nearest(name, names)}",
    )


def unknown_reason(origin: str) -> DataError:
    """The error for marks that episodes ended that leave open why."""
    return DataError(
        f"{origin} marks where episodes end, and not why: the task was over, or the recording stopped.",
        fix=f"ends=terminal or ends=timeout; or {TERMINALS[0]!r} or {TIMEOUTS[0]!r} beside them",
    )


def _extended(values: Array, last: Array | None = None) -> Array:
    return np.concatenate([values, values[-1:] if last is None else np.asarray(last)[None]])


def _taken(states: Array, indices: tuple[int, ...], origin: str) -> Array:
    width = np.shape(states)[-1] if np.ndim(states) else 0
    if any(not 0 <= index < width for index in indices):
        raise DataError(f"{origin}: achieved={list(indices)} are indices of the state, from 0 to {width - 1}.")
    return states[..., list(indices)]
