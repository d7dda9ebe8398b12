"""One table of many episodes, row by row, cut where they end."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from trajgen.core.errors import DataError
from trajgen.data.episodes import Array
from trajgen.importing.options import ImportOptions
from trajgen.importing.source import (
    COUNTERS,
    ENDS,
    NEXT,
    STARTS,
    TERMINALS,
    TIMEOUTS,
    Recorded,
    absent,
    flags,
    is_followed,
    matching,
    next_name,
    unknown_reason,
)

EPISODE_IDS = ("episode_index", "episode_id", "episode_ids", "traj_id", "traj_ids", "trajectory_id")
"""Names of columns that number the episodes."""
VALID = "valids"
COUNTS = 0.5
"""Share of the rows at which a column must go up to be a count of steps."""
BLOCK = 2**16
JUMP = 10.0
"""From how many times the median on a step of the observations is a jump."""


class Table:
    """Episodes that lie end to end in arrays of the same length, as D4RL's and OGBench's do.

    Args:
        shapes: of all entries.
        rows: reads the rows [first, last) of an entry.
        options: names of entries, and how to cut.
        origin: name of the source in messages.
        about: facts beside the numbers.
        final_rows: whether the row that is marked as an end is the final observation of an episode that ran out of
            time, and no step, as in OGBench's files.

    Raises:
        DataError: if an entry is missing or of another length, a mark is not 0 or 1, or the ends of episodes are not
            marked, or are contradicted by the next observations.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        rows: Callable[[str, int, int], Array],
        options: ImportOptions,
        origin: str,
        *,
        about: str = "",
        final_rows: bool = False,
    ) -> None:
        final_rows |= VALID in shapes and not matching((*NEXT, *TIMEOUTS), shapes)
        self._rows, self._options, self._origin, self._final_rows = rows, options, origin, final_rows
        self.about = about
        self._columns = options.columns(("observations",), "actions", "rewards")
        (action,), (reward,) = self._columns["actions"], self._columns["rewards"]
        if options.rewards != "data" or (reward not in shapes and options.reward is None):
            self._columns.pop("rewards")
        self._next = next_name(shapes) if "observations" in shapes else None
        names = [name for names in self._columns.values() for name in names]
        names += options.named_images
        names += [] if self._next is None else [self._next, "observations"]
        for name in names:
            if name not in shapes:
                raise absent(name, list(shapes), origin)
        self._total = shapes[action][0] if shapes[action] else 0
        for name in names:
            if shapes[name][:1] != (self._total,):
                raise self._wrong_length(name, shapes[name])
        self._terminal, ends = self._ends(shapes)
        stops = np.flatnonzero(ends) + 1
        if self._total and (not len(stops) or stops[-1] != self._total):
            stops = np.append(stops, self._total)  # the last episode was still going on
        self._first, self._stop = np.concatenate([[0], stops[:-1]]).astype(int), stops

    def __len__(self) -> int:
        return len(self._stop)

    def label(self, number: int) -> str:
        return f"rows {self._first[number]} to {self._stop[number] - 1}"

    def read(self, number: int) -> Recorded:
        first, stop = int(self._first[number]), int(self._stop[number])
        is_marked = bool(self._terminal[stop - 1])
        is_final = self._final_rows and is_marked

        def get(name: str) -> Any:
            is_step = name in (*self._columns["actions"], *self._columns.get("rewards", ()))
            return self._rows(name, first, stop - (is_final and is_step))

        following = self._next if self._columns["states"] == ("observations",) else None
        final = None if following is None else self._rows(following, stop - 1, stop)[-1]
        terminated = is_marked and not self._final_rows
        rest: dict[str, Any] = {"terminated": terminated, "final": final, "images": self._options.named_images}
        return Recorded.read(get, self._columns, self.label(number), **rest)

    def _ends(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Array, Array]:
        """Whether the task, and whether an episode, ended with each row."""
        options, total = self._options, self._total
        terminal, timeout, end = (self._marks(names, shapes) for names in (TERMINALS, TIMEOUTS, ENDS))
        if self._final_rows and VALID in shapes:
            terminal = end = ~flags(self._rows(VALID, 0, total), f"{self._origin}, field {VALID!r}")
        none = np.zeros(total, bool)
        if terminal is None and end is not None:
            if timeout is None and options.ends == "data":
                raise unknown_reason(self._origin)
            terminal = end & ~(none if timeout is None else timeout)
        elif terminal is not None and timeout is not None and (timeout & terminal).sum() == timeout.sum() > 0:
            warnings.warn(
                f"{self._origin} marks each of its {timeout.sum():,} timeouts as a terminal too, so the task counts as "
                "over there; ends=timeout reads all ends as timeouts.",
                stacklevel=3,
            )
        marked = np.any([marks for marks in (terminal, timeout, end) if marks is not None] or [none], axis=0)
        if options.cut == "timeouts":
            if timeout is None:
                raise absent(TIMEOUTS[0], list(shapes), self._origin)
            ends = timeout
        else:
            stays = marked & ~(none if timeout is None else timeout & ~(none if terminal is None else terminal))
            ends = marked if options.cut == "marks" else marked | self._breaks(marked, stays, shapes)
        if options.episode_steps is not None:
            begins = np.concatenate([[0], np.flatnonzero(ends) + 1])
            for first, last in zip(begins, [*begins[1:], total], strict=True):
                ends[first + options.episode_steps - 1 : last : options.episode_steps] = True
        elif (
            total
            and not ends.any()
            and options.cut == "auto"
            and any(marks is not None for marks in (terminal, timeout, end))
        ):
            warnings.warn(
                f"{self._origin} marks no end, so its {total:,} rows are read as one episode{self._jump(shapes)}; "
                "episode_steps=1000 cuts it, cut=marks confirms it.",
                stacklevel=3,
            )
        elif total and not ends.any() and options.cut == "auto":
            raise DataError(
                f"A table of many episodes must mark where they end, and {self._origin} does not.",
                expected=f"one of {', '.join((*TERMINALS, *TIMEOUTS, *ENDS))}, set in some rows",
                fix="episode_steps=1000, if all episodes have as many rows; cut=marks, if it is one episode",
            )
        return none if terminal is None else terminal, ends

    def _marks(self, names: tuple[str, ...], shapes: Mapping[str, tuple[int, ...]]) -> Array | None:
        """The marks (rows,) of these names together; those of ends may also be the row after each end, (episodes,)."""
        marks: list[Array] = []
        for name in matching(names, shapes):
            if shapes[name] == ():
                continue
            values = np.asarray(self._rows(name, 0, shapes[name][0]))
            if names is ENDS and values.ndim == 1 and len(values) != self._total and values.dtype.kind in "iu":
                stops = values.astype(np.int64)
                if len(stops) and stops[-1] == self._total and stops[0] > 0 and (np.diff(stops) > 0).all():
                    values = np.zeros(self._total, bool)
                    values[stops - 1] = True
            if len(values) != self._total:
                raise self._wrong_length(name, shapes[name])
            marks.append(flags(values, f"{self._origin}, field {name!r}"))
        return np.any(marks, axis=0) if marks else None

    def _breaks(self, marked: Array, stays: Array, shapes: Mapping[str, tuple[int, ...]]) -> Array:
        """The rows that the next row does not follow, which must be all that are marked.

        Args:
            marked: (rows,).
            stays: marks (rows,) that may stay set while the agent is at the goal: all but timeouts.
            shapes: of all entries.
        """
        breaks = np.zeros(self._total, bool)
        columns = [name for name, shape in shapes.items() if shape == (self._total,)]
        for name in matching(EPISODE_IDS, columns):
            numbers = self._rows(name, 0, self._total)
            begins = numbers[1:] != numbers[:-1]
            self._check_together(name, numbers, begins & ~marked[:-1])
            breaks[:-1] |= begins
        for name in matching(STARTS, columns):
            breaks[:-1] |= flags(self._rows(name, 0, self._total), f"{self._origin}, field {name!r}")[1:]
        for name in matching(COUNTERS, columns):
            steps = np.diff(self._rows(name, 0, self._total).astype(np.float64))
            if (steps > 0).sum() > COUNTS * len(steps):
                breaks[:-1] |= steps <= 0
        if self._next is None:
            twice = np.flatnonzero(stays[1:] & stays[:-1])
            if len(twice) and not marked.all():
                raise self._contradicted(
                    int(twice[0]), "the next row is marked too, which would be an episode of one step"
                )
            return breaks
        if shapes[self._next] != shapes["observations"]:
            raise DataError(
                f"Observations and {self._next} have the same shape.",
                got=f"{self._origin}: {shapes['observations']} and {shapes[self._next]}",
            )
        jumps, goes_on = np.zeros(self._total, bool), np.zeros(self._total, bool)
        for first in range(0, self._total - 1, BLOCK):
            last = min(first + BLOCK, self._total - 1)
            after, following = self._rows(self._next, first, last), self._rows("observations", first + 1, last + 1)
            jumps[first:last], goes_on[first:last] = is_followed(after, following)
        wrong = np.flatnonzero(marked & goes_on)
        if len(wrong):
            raise self._contradicted(int(wrong[0]), "the next row is its next observation: the episode goes on")
        if (jumps & ~marked).sum() > max(1, self._total // 2):
            row = int(np.flatnonzero(jumps & ~marked)[0])
            raise DataError(
                "The rows of a table follow one another.",
                got=f"{self._origin}, row {row}: the next row is not its next observation, nor in most other rows",
                fix="import the rows in the order of their steps, or cut=marks",
            )
        return breaks | jumps

    def _jump(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        """Names the row after which the observations jump most, if that is far more than they move elsewhere."""
        sizes = [np.zeros(0)]
        for first in range(0, self._total - 1 if "observations" in shapes else 0, BLOCK):
            rows = self._rows("observations", first, min(first + BLOCK, self._total - 1) + 1).astype(np.float64)
            sizes.append(np.abs(np.diff(rows, axis=0)).reshape(len(rows) - 1, -1).max(1))
        size = np.concatenate(sizes)
        if not size.any() or size.max() <= JUMP * np.median(size[size > 0]):
            return ""
        return f", although observations jump after row {size.argmax()}"

    def _check_together(self, name: str, numbers: Array, begins: Array) -> None:
        """Refuses numbers of episodes that come again where no end is marked."""
        starts = np.concatenate([[0], np.flatnonzero(begins) + 1])
        _, first = np.unique(numbers[starts], return_index=True)
        repeats = np.setdiff1d(np.arange(len(starts)), first)
        if len(repeats):
            row = int(starts[repeats[0]])
            raise DataError(
                "The rows of an episode lie together.",
                got=f"{self._origin}, row {row}: {name} {numbers[row]} again",
                fix="sort the rows by episode and step, or cut=marks",
            )

    def _contradicted(self, row: int, why: str) -> DataError:
        return DataError(
            "A row that is marked as an end is the last of its episode.",
            got=f"{self._origin}, row {row}: {why}",
            fix="cut=timeouts, if terminals stay set while an episode goes on; or cut=marks, to take them as they are",
        )

    def _wrong_length(self, name: str, shape: tuple[int, ...]) -> DataError:
        return DataError(f"{self._origin}, field {name!r}: shape {shape}, beside {self._total} rows of the actions.")
