"""Episodes end to end in contiguous arrays, checked as they come in."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trajgen.core.errors import DataError
from trajgen.core.types import Space
from trajgen.security import NUMBER_KINDS

Array = np.ndarray[Any, np.dtype[Any]]

WIDTHS = {
    "states": "state_dim",
    "actions": "action_dim",
    "rewards": None,
    "goals": "goal_dim",
    "achieved": "goal_dim",
    "images": "image_shape",
}
"""For each field of an episode, the entry of `Space` that holds its width or shape; a reward is a scalar."""
IMAGES, PIXEL = "images", np.uint8
"""The field that stays in its own type; all others become 32-bit floats."""
STEPWISE = ("actions", "rewards")
"""Fields with a row per step; the others have one more, for the final observation."""
FIX = "make or download the data set again, or write it anew without this episode"
ROUNDED = 1e-3
"""Largest rounding error of a 32-bit float, as a share of a feature's range in an episode, that loses nothing."""
NOISE = 1e-6
"""Largest range of a feature, as a share of its size, that is noise about a constant, as for the normalizer."""
LARGE = 2.0**14
"""Size of a feature from which a range of a hundredth is no noise about a constant."""
OBSERVED = ("states", "goals", "achieved")
"""Fields of which an offset can be subtracted, since a policy can subtract it of an observation."""


@dataclass(frozen=True)
class Episode:
    """One raw episode of n steps; ``terminated`` is false after a timeout, when the task was not over."""

    states: Array  # (n+1, S)
    actions: Array  # (n, A)
    rewards: Array  # (n,)
    terminated: bool = False
    goals: Array | None = None  # (n+1, G) the desired goal when the row's action was taken
    achieved: Array | None = None  # (n+1, G)
    images: Array | None = None  # (n+1, height, width, channels) uint8

    def __len__(self) -> int:
        return len(self.rewards)


@dataclass(frozen=True)
class Episodes:
    """All episodes of a data set end to end, in float32; images, until they are encoded, in uint8.

    An episode of n steps takes n+1 of the M rows; its last row is the final observation, whose action and
    reward are zero and not real.
    """

    name: str
    space: Space
    states: Array  # (M, S)
    actions: Array  # (M, A)
    rewards: Array  # (M,)
    goals: Array | None  # (M, G)
    achieved: Array | None  # (M, G)
    starts: Array  # (E,) first row of each episode
    lengths: Array  # (E,) steps
    terminated: Array  # (E,) bool
    images: Array | None = None  # (M, height, width, channels)
    stitched: int = 0  # how many of them, the last ones, are put together from pieces of the others

    @property
    def ends(self) -> Array:
        """(E,) the row of each episode's final observation."""
        return self.starts + self.lengths

    @property
    def steps(self) -> int:
        """The number of environment steps."""
        return int(self.lengths.sum())

    def __len__(self) -> int:
        return len(self.starts)

    @classmethod
    def collect(
        cls,
        raw: Iterable[Episode],
        *,
        name: str,
        space: Space,
        rows: int | None = None,
        allocate: Callable[[str, tuple[int, ...]], Array] | None = None,
        rounding: Rounding | None = None,
    ) -> Episodes:
        """Checks the episodes one by one and lays them end to end; the source is read once, as a stream.

        Args:
            raw: the episodes.
            name: name of the data set, for messages.
            space: the widths that the data must have, and the offsets that are subtracted.
            rows: M, where it is known; else all raw episodes are in memory at once.
            allocate: an array of zeros for a field, of its type and a shape; None for memory.
            rounding: is told what was rounded; None to warn of what was lost.

        Raises:
            DataError: naming data set, episode and field, if a length, a width or a type is wrong, a number
                is not finite, an episode has no step or other fields than the first, or there is no episode.
        """
        if rows is None:
            raw = list(raw)
            rows = sum(len(np.atleast_1d(episode.rewards)) + 1 for episode in raw)
        arrays: dict[str, Array] = {}
        watch = rounding or Rounding()
        lengths, terminated, at = [], [], 0
        for number, episode in enumerate(raw):
            origin = f"data set {name!r}, episode {number}"
            fields = checked(episode, space, origin, rounding=watch)
            if number == 0:
                make = allocate or (lambda field, shape: np.zeros(shape, type_of(field)))
                arrays = {field: make(field, (rows, *values.shape[1:])) for field, values in fields.items()}
            if fields.keys() != arrays.keys():
                got = f"{origin}: {', '.join(fields)}"
                raise DataError(
                    "All episodes of a data set have the same fields.", expected=", ".join(arrays), got=got, fix=FIX
                )
            for field, values in fields.items():  # the row after the last step stays zero where a field has none
                arrays[field][at : at + len(values)] = values
            at += len(episode) + 1
            lengths.append(len(episode))
            terminated.append(bool(episode.terminated))
        if not lengths:
            fix = "make or download it again, with force=true"
            raise DataError(f"A data set must hold at least one episode, and {name!r} is empty.", fix=fix)
        if rounding is None:
            watch.warn(f"data set {name!r}")
        steps = np.array(lengths, dtype=np.int64)
        fields_or_none: dict[str, Any] = {field: arrays.get(field) for field in WIDTHS}
        return cls(
            name=name,
            space=space,
            starts=np.concatenate([[0], np.cumsum(steps + 1)[:-1]]),
            lengths=steps,
            terminated=np.array(terminated),
            **fields_or_none,
        )


def collect_centered(
    read: Callable[[], Iterable[Episode]],
    collect: Callable[[Iterable[Episode], Space, Rounding], Episodes],
    space: Space,
    goal_state: Sequence[int] = (),
) -> Episodes:
    """The episodes of a source, read again without the offsets of features whose steps 32-bit floats do not hold.

    Args:
        read: the episodes, as a stream.
        collect: lays them end to end, as `Episodes.collect`.
        space: of the data.
        goal_state: indices of the state that a goal sets.
    """
    rounding = Rounding()
    episodes = collect(read(), space, rounding)
    centered = rounding.centers(space, goal_state)
    if centered != space:
        rounding = Rounding()
        episodes = collect(read(), centered, rounding)
    rounding.warn(f"data set {episodes.name!r}")
    return episodes


def type_of(field: str) -> type[np.generic]:
    """The type of a field's numbers."""
    return PIXEL if field == IMAGES else np.float32


def shape_of(field: str, rows: int, space: Space) -> tuple[int, ...]:
    """The shape of a field with so many rows."""
    width = WIDTHS[field]
    return (rows, *(() if width is None else np.atleast_1d(getattr(space, width)).tolist()))


class Rounding:
    """Watches what 32-bit floats lose of a data set's numbers: steps of a large offset, as of seconds since 1970."""

    def __init__(self) -> None:
        self._ranges: dict[str, list[Array]] = {}  # field: low, high, largest range of an episode, worst error

    def see(self, field: str, values: Array, rounded: Array) -> None:
        """Takes in a field (n, ...) of an episode, before and after it was rounded."""
        if values.dtype.itemsize <= 4 and values.dtype.kind == "f":
            return
        low, high = values.min(0).astype(np.float64), values.max(0).astype(np.float64)
        error = np.zeros_like(low)
        if (2.0**-24 * np.maximum(np.abs(low), np.abs(high)) > ROUNDED * (high - low)).any():  # it may be too large
            error = np.abs(values - rounded.astype(np.float64)).max(0)
        ranges = self._ranges.get(field, [low, high, high - low, error])
        self._ranges[field] = [
            np.minimum(ranges[0], low),
            *(np.maximum(before, new) for before, new in zip(ranges[1:], (high, high - low, error), strict=True)),
        ]

    def lost(self, field: str) -> Array:
        """Whether the steps of each feature of a field (n,) are lost, by more than noise about a constant."""
        low, high, within, error = map(np.atleast_1d, self._ranges.get(field, [np.zeros(0)] * 4))
        size = np.minimum(np.maximum(np.abs(low), np.abs(high)), LARGE)
        steps = np.where(within > 0, within, high - low)
        return (high - low > NOISE * size) & (error > ROUNDED * steps)

    def centers(self, space: Space, goal_state: Sequence[int] = ()) -> Space:
        """The space with offsets for the features whose steps are lost, if there are any.

        Args:
            space: of the data.
            goal_state: indices of the state that a goal sets, which then have one offset.
        """
        offsets = {field: self._middle(field) for field in OBSERVED}
        state, goal = offsets["states"], offsets["goals"] if offsets["goals"].any() else offsets["achieved"]
        if space.goal_dim and len(goal_state) == space.goal_dim and len(state):
            goal = state[list(goal_state)]
        return replace(
            space,
            state_offset=tuple(state.tolist()) if state.any() else (),
            goal_offset=tuple(goal.tolist()) if goal.any() else (),
        )

    def _middle(self, field: str) -> Array:
        lost = self.lost(field)
        return np.where(lost, np.add(*self._ranges[field][:2]) / 2, 0.0) if len(lost) else np.zeros(0)

    def warn(self, origin: str, without: Sequence[str] = ()) -> None:
        """Warns of the features whose steps are lost, but for some fields."""
        for field in self._ranges.keys() - set(without):
            lost = np.flatnonzero(self.lost(field))
            if len(lost):
                low, high = (np.atleast_1d(each)[lost[0]] for each in self._ranges[field][:2])
                warnings.warn(
                    f"{origin}, field {field!r}: 32-bit floats do not hold the steps of feature {lost[0]}, from "
                    f"{low:g} to {high:g}"
                    + (f", and of {len(lost) - 1} more" if len(lost) > 1 else "")
                    + "; subtract an offset from it, or divide the data into sets of shorter ranges.",
                    stacklevel=3,
                )


def checked(
    episode: Episode,
    space: Space,
    origin: str,
    names: Mapping[str, str] | None = None,
    fix: str = FIX,
    rounding: Rounding | None = None,
) -> dict[str, Array]:
    """The fields of an episode as float32, (n, ·) where there is one per step and (n+1, ·) elsewhere.

    Args:
        episode: as it was read.
        space: the widths that it must have, and the offsets that are subtracted.
        origin: what the episode is called in messages.
        names: what a field is called there, where it was read under another name.
        fix: the way out.
        rounding: is told what was rounded.

    Raises:
        DataError: naming origin and field, if something is wrong with it.
    """
    steps = len(np.atleast_1d(episode.rewards))
    if not steps:
        raise DataError("An episode must have at least one step.", got=f"{origin}: no rewards", fix=fix)
    fields = {}
    offsets = {"states": space.state_offset, "goals": space.goal_offset, "achieved": space.goal_offset}
    for field in WIDTHS:
        values = getattr(episode, field)
        if values is None:
            continue
        values, where = np.asarray(values), f"{origin}, field {(names or {}).get(field, field)!r}"
        if values.dtype.kind not in NUMBER_KINDS:
            raise DataError("Data must be numbers.", got=f"{where}: {values.dtype}", fix=fix)
        shape = shape_of(field, steps + (field not in STEPWISE), space)
        if values.shape != shape:
            raise DataError(
                "An episode of n steps has n actions and rewards, n+1 observations, and its set's widths.",
                expected=f"shape {shape} for {steps} steps",
                got=f"{where}: shape {values.shape}",
                fix=fix,
            )
        if field == IMAGES:
            fields[field] = require_pixels(values, where)
            continue
        if offset := offsets.get(field):
            values = values.astype(np.float64) - offset
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as such
            rounded = values.astype(np.float32, copy=False)
        if not np.isfinite(rounded).all():
            row = int(np.argwhere(~np.isfinite(rounded))[0][0])
            raise DataError("Data must be finite in 32-bit floats.", got=f"{where}, row {row}: {rounded[row]}", fix=fix)
        if rounding is not None:
            rounding.see(field, values, rounded)
        fields[field] = rounded
    return fields


def require_pixels(values: Array, where: str) -> Array:
    """The values, if they are those of images in uint8.

    Raises:
        DataError: if they are of another type, with what to do.
    """
    if values.dtype != PIXEL:
        fix = "np.round(255 * images).astype(np.uint8) of images from 0 to 1, where they are recorded"
        raise DataError("Images are of uint8, from 0 to 255.", got=f"{where}: {values.dtype}", fix=fix)
    return values
