"""Episodes end to end in contiguous arrays, checked as they come in."""

from __future__ import annotations

from collections.abc import Iterable
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
    def collect(cls, raw: Iterable[Episode], *, name: str, space: Space) -> Episodes:
        """Checks the episodes one by one and lays them end to end; the source is read once, as a stream.

        Args:
            raw: the episodes.
            name: name of the data set, for messages.
            space: the widths that the data must have.

        Raises:
            DataError: naming data set, episode and field, if a length, a width or a type is wrong, a number
                is not finite, an episode has no step, or there is no episode.
        """
        columns: dict[str, list[Array]] = {field: [] for field in WIDTHS}
        lengths, terminated = [], []
        for number, episode in enumerate(raw):
            for field, values in _checked(episode, space, f"data set {name!r}, episode {number}").items():
                columns[field].append(values)
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
        # One field after the other, each freeing its parts, so that the data are never held twice.
        joined: dict[str, Any] = {
            field: np.concatenate(parts) if (parts := columns.pop(field)) else None for field in WIDTHS
        }
        return cls(
            name=name,
            space=space,
            starts=np.concatenate([[0], np.cumsum(steps + 1)[:-1]]),
            lengths=steps,
            terminated=np.array(terminated),
            **joined,
        )


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


def _checked(episode: Episode, space: Space, place: str) -> dict[str, Array]:
    """The fields of an episode as float32, each with n+1 rows."""
    steps = len(np.atleast_1d(episode.rewards))
    if not steps:
        raise DataError("An episode must have at least one step.", got=f"{place}: no rewards", fix="remove the episode")
    fields = {}
    for field, width in WIDTHS.items():
        values = getattr(episode, field)
        if values is None:
            continue
        values, where = np.asarray(values), f"{place}, field {field!r}"
        if values.dtype.kind not in "fiub":
            raise DataError(
                "Data must be numbers.",
                expected="a float or integer type",
                got=f"{where}: {values.dtype}",
                fix=MEND,
            )
        shape: tuple[int, ...] = (steps + (field not in STEPWISE),)
        if width is not None:
            shape += (getattr(space, width),)
        if values.shape != shape:
            raise DataError(
                "An episode of n steps has n actions and rewards, n+1 observations, and its set's widths.",
                expected=f"shape {shape} for {steps} steps",
                got=f"{where}: shape {values.shape}",
                fix=MEND,
            )
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as such
            values = values.astype(np.float32)
        if not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0][0])
            raise DataError(
                "Data must be finite in 32-bit floats.",
                expected="no NaN and no infinity",
                got=f"{where}, row {row}: {values[row]}",
                fix=MEND,
            )
        if field in STEPWISE:
            values = np.concatenate([values, np.zeros_like(values[:1])])
        fields[field] = values
    return fields
