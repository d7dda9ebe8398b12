"""One table of many episodes, row by row, cut where they end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from trajgen.core.errors import DataError
from trajgen.data.episodes import Array
from trajgen.data.importing.options import ImportOptions
from trajgen.data.importing.source import TERMINALS, TIMEOUTS, Recorded, absent, flags, goal_names, joined


class FlatTable:
    """Episodes that lie end to end in arrays of the same length, as D4RL's and OGBench's do.

    Args:
        shapes: of all entries.
        rows: reads the rows [first, last) of an entry.
        options: names of entries.
        place: what the source is called in messages.
        closing: whether the row that is marked as an end is the final observation, and no step any more; where the
            recording ended there, and not the task, as in OGBench's files.

    Raises:
        DataError: if an entry is missing or of another length, a mark is not 0 or 1, or no ends are marked.
    """

    about = ""

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        rows: Callable[[str, int, int], Array],
        options: ImportOptions,
        place: str,
        *,
        closing: bool = False,
    ) -> None:
        self._rows, self._options, self._closing = rows, options, closing
        self._states = options.state_names or ("observations",)
        self._action, self._reward = options.action or "actions", options.reward or "rewards"
        self._next = self._states == ("observations",) and "next_observations" in shapes
        self._rewarded = self._reward in shapes and options.rewards == "data"
        named = [*self._states, self._action, *goal_names(options).values()]
        named += [self._reward] if self._rewarded or options.reward else []
        named += ["next_observations"] if self._next else []
        marks = [name for name in (*TERMINALS, *TIMEOUTS) if name in shapes]
        for name in (*named, *marks):
            if name not in shapes:
                raise absent(name, list(shapes), place)
        total = shapes[self._action][0] if shapes[self._action] else 0
        for name in (*named, *marks):
            if shapes[name][:1] != (total,):
                raise DataError(
                    "All entries of a table have the same number of rows.",
                    expected=f"{total} rows, as {self._action!r} has",
                    got=f"{place}, field {name!r}: shape {shapes[name]}",
                    fix="mend the source",
                )
        marked = {name: flags(rows(name, 0, total), f"{place}, field {name!r}") for name in marks}
        self._terminal = np.any(
            [marked[name] for name in TERMINALS if name in marked] or [np.zeros(total, bool)], axis=0
        )
        self._cut(np.any([*marked.values()] or [np.zeros(total, bool)], axis=0), total, bool(marks), place)

    def _cut(self, ends: Array, total: int, marked: bool, place: str) -> None:
        if self._options.episode_steps is not None:
            begins = np.concatenate([[0], np.flatnonzero(ends) + 1])
            for first, last in zip(begins, [*begins[1:], total], strict=True):
                ends[first + self._options.episode_steps - 1 : last : self._options.episode_steps] = True
        elif not marked:
            raise DataError(
                "A table of many episodes must say where they end.",
                expected=f"one of {', '.join((*TERMINALS, *TIMEOUTS))}",
                got=f"{place}: none of them",
                fix="episode_steps=1000, if all episodes have as many rows",
            )
        stops = np.flatnonzero(ends) + 1
        if total and (not len(stops) or stops[-1] != total):
            stops = np.append(stops, total)  # what was recorded last goes on
        self._first, self._stop = np.concatenate([[0], stops[:-1]]).astype(int), stops

    def __len__(self) -> int:
        return len(self._stop)

    def label(self, number: int) -> str:
        return f"rows {self._first[number]} to {self._stop[number] - 1}"

    def read(self, number: int) -> Recorded:
        first, stop = int(self._first[number]), int(self._stop[number])

        def part(name: str) -> Any:
            return self._rows(name, first, stop)

        closing = self._closing and self._terminal[stop - 1]
        stepped = slice(None, -1 if closing else None)
        goal, achieved = self._options.goal, self._options.achieved
        return Recorded(
            states=joined([part(name) for name in self._states], self._states, self.label(number)),
            actions=part(self._action)[stepped],
            rewards=part(self._reward)[stepped] if self._rewarded else None,
            terminated=bool(self._terminal[stop - 1]) and not self._closing,
            final=part("next_observations")[-1] if self._next else None,
            goals=None if goal is None else part(goal),
            achieved=part(achieved) if isinstance(achieved, str) else None,
            names={
                "states": "+".join(self._states),
                "actions": self._action,
                "rewards": self._reward,
                **goal_names(self._options),
            },
        )
