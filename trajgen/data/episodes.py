"""Episodes end to end in contiguous arrays, checked as they come in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trajgen.core.errors import DataError
from trajgen.core.types import Space

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Episode:
    """One raw episode of n steps.

    ``terminated`` says that the last step ended the task; false is a timeout, after which the world went on.
    """

    states: Array  # (n+1, S)
    actions: Array  # (n, A)
    rewards: Array  # (n,)
    terminated: bool = False
    goals: Array | None = None  # (n+1, G) the goal in force when the row's action was taken
    achieved: Array | None = None  # (n+1, G)

    def __len__(self) -> int:
        return len(self.rewards)


@dataclass(frozen=True)
class Episodes:
    """All episodes of a data set end to end, in float32.

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
    ) -> Episodes:
        """Checks the episodes one by one and lays them end to end; the source is read once, as a stream.

        Args:
            raw: the episodes.
            name: name of the data set, for messages.
            space: the widths that the data must have.
            rows: M, if it is known; else the source is held whole before it is laid out.
            allocate: an array of zeros in float32 for the field and the shape given; None for memory.

        Raises:
            DataError: naming data set, episode and field, if a length, a width or a type is wrong, a number
                is not finite, an episode has no step or other fields than the first, or there is no episode.
        """
        if rows is None:
            raw = list(raw)
            rows = sum(len(np.atleast_1d(episode.rewards)) + 1 for episode in raw)
        arrays: dict[str, Array] = {}
        lengths, terminated, at = [], [], 0
        for number, episode in enumerate(raw):
            place = f"data set {name!r}, episode {number}"
            fields = checked(episode, space, place)
            if number == 0:
                make = allocate or _zeros
                arrays = {field: make(field, (rows, *values.shape[1:])) for field, values in fields.items()}
            if fields.keys() != arrays.keys():
                raise DataError(
                    "All episodes of a data set have the same fields.",
                    expected=", ".join(arrays),
                    got=f"{place}: {', '.join(fields)}",
                    fix=MEND,
                )
            for field, values in fields.items():  # the row after the last step stays zero where a field has none
                arrays[field][at : at + len(values)] = values
            at += len(episode) + 1
            lengths.append(len(episode))
            terminated.append(bool(episode.terminated))
        if not lengths:
            raise DataError(
                "A data set must hold at least one episode.",
                expected="one episode or more",
                got=f"data set {name!r} is empty",
                fix="make or download it again, with force=true",
            )
        steps = np.array(lengths, dtype=np.int64)
        return cls(
            name=name,
            space=space,
            starts=np.concatenate([[0], np.cumsum(steps + 1)[:-1]]),
            lengths=steps,
            terminated=np.array(terminated),
            states=arrays["states"],
            actions=arrays["actions"],
            rewards=arrays["rewards"],
            goals=arrays.get("goals"),
            achieved=arrays.get("achieved"),
        )


def _zeros(field: str, shape: tuple[int, ...]) -> Array:
    return np.zeros(shape, np.float32)


WIDTHS = {
    "states": "state_dim",
    "actions": "action_dim",
    "rewards": None,
    "goals": "goal_dim",
    "achieved": "goal_dim",
}
"""For each field of an episode, the entry of `Space` that holds its width; a reward is a scalar."""

STEPWISE = ("actions", "rewards")
"""Fields with a row per step; the others have one more, for the final observation."""

MEND = "make or download the data set again, or write it anew without this episode"


NUMBERS = "fiub"
"""Kinds of numpy types that are numbers."""


def checked(
    episode: Episode, space: Space, place: str, names: Mapping[str, str] | None = None, mend: str = MEND
) -> dict[str, Array]:
    """The fields of an episode as float32, (n, ·) where there is one per step and (n+1, ·) elsewhere.

    Args:
        episode: as it was read.
        space: the widths that it must have.
        place: what the episode is called in messages.
        names: what a field is called there, where it was read under another name.
        mend: the way out.

    Raises:
        DataError: naming place and field, if something is wrong with it.
    """
    steps = len(np.atleast_1d(episode.rewards))
    if not steps:
        raise DataError(
            "An episode must have at least one step.", expected="one step or more", got=f"{place}: no rewards", fix=mend
        )
    fields = {}
    for field, width in WIDTHS.items():
        values = getattr(episode, field)
        if values is None:
            continue
        values, where = np.asarray(values), f"{place}, field {(names or {}).get(field, field)!r}"
        if values.dtype.kind not in NUMBERS:
            raise DataError(
                "Data must be numbers.",
                expected="a float or integer type",
                got=f"{where}: {values.dtype}",
                fix=mend,
            )
        shape: tuple[int, ...] = (steps + (field not in STEPWISE),)
        if width is not None:
            shape += (getattr(space, width),)
        if values.shape != shape:
            raise DataError(
                "An episode of n steps has n actions and rewards, n+1 observations, and its set's widths.",
                expected=f"shape {shape} for {steps} steps",
                got=f"{where}: shape {values.shape}",
                fix=mend,
            )
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as such
            values = values.astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0][0])
            raise DataError(
                "Data must be finite in 32-bit floats.",
                expected="no NaN and no infinity",
                got=f"{where}, row {row}: {values[row]}",
                fix=mend,
            )
        fields[field] = values
    return fields
