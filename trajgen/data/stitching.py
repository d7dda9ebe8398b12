"""Stitching: further episodes, put together from pieces of several that meet."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from trajgen.core.errors import ConfigError
from trajgen.data.episodes import STEPWISE, WIDTHS, Array, Episodes
from trajgen.data.mapped import is_mapped
from trajgen.data.options import DataOptions
from trajgen.data.starts import val_episodes

NEIGHBORS = 16
"""Rows at which a path could go on, among which it takes the one that leads farthest from where it has been."""
STEP_QUANTILE = 0.99
"""Two rows meet where they are within half of this quantile of the lengths of single steps."""


def with_stitched(episodes: Episodes, options: DataOptions) -> Episodes:
    """The episodes, and after them stitched ones that make up the share ``options.stitch`` of all steps.

    A stitched episode follows an episode from a random step for a random time, then goes on at the step of another
    one where that was at nearly the same place, and so on, for `stitched_steps`. Of the steps that are nearest it takes
    the one whose episode ends farthest from where the path has been, so that paths lead on. Places are what is compared
    with goals, or standardized states where there is nothing of the kind. Validation episodes are left out.

    Costs the memory of as many rows, and a search of neighbors for each piece of a path: seconds for a million rows.

    Args:
        episodes: the data, in memory.
        options: of the data.

    Raises:
        ConfigError: for data in mapped files, or if no two episodes meet.
    """
    if not options.stitch:
        return episodes
    if is_mapped(episodes):
        raise ConfigError(
            "Episodes are stitched in memory.",
            got=f"data.stitch={options.stitch} with data that are read from a file",
            fix="data.memory_map=false, or data.stitch=0",
        )
    paths = _Paths(episodes, options, stitched_steps(episodes, options))
    target = options.stitch / (1 - options.stitch) * episodes.steps
    mean = float(paths.length)
    while paths.steps < target:  # more than once where paths come to a terminal, or to an end that nothing meets
        paths.begin(math.ceil((target - paths.steps) / mean))
        while paths.grow():
            pass
        mean = paths.steps / len(paths.at)
    return paths.join()


def stitched_steps(episodes: Episodes, options: DataOptions) -> int:
    """The steps of a stitched episode: those of an evaluation's, but at least a window and the longest episode."""
    window = (options.horizon - 1) * options.strides[-1]
    return max(options.max_episode_steps or 0, int(episodes.lengths.max()), window)


class _Paths:
    """Paths through the rows of episodes, all of which grow by a piece at a time.

    Args:
        episodes: the data.
        options: of the data.
        length: most steps of each.
    """

    def __init__(self, episodes: Episodes, options: DataOptions, length: int) -> None:
        from scipy.spatial import cKDTree

        self.episodes, self.length = episodes, length
        self.random = np.random.default_rng(0)
        positions = episodes.states if episodes.achieved is None else episodes.achieved
        scale = positions.std(0) if episodes.achieved is None else 1.0
        self.positions = positions / np.where(scale > 0, scale, 1.0)
        self.episode_of = np.repeat(np.arange(len(episodes)), episodes.lengths + 1)  # of each row
        is_used = ~val_episodes(len(episodes), options.val_fraction)[self.episode_of]
        is_last = np.zeros(len(self.episode_of), dtype=bool)
        is_last[episodes.ends] = True
        self.rows = np.flatnonzero(is_used & ~is_last)  # at which a piece can begin
        self.tree = cKDTree(self.positions[self.rows])
        steps = np.linalg.norm(np.diff(self.positions, axis=0), axis=1)[~is_last[:-1]]
        self.reach = float(np.quantile(steps, STEP_QUANTILE)) / 2
        self.at = self.rows[:0]  # the row at which each path goes on
        self.left = np.zeros(0, dtype=np.int64)  # steps that each path still takes
        self.pieces: list[tuple[Array, Array, Array]] = []  # which paths, their first rows, and their steps
        self.visited = self.positions[self.at][:, None]  # (paths, pieces, n)
        self.meetings = self.steps = 0

    def begin(self, count: int) -> None:
        """Adds so many paths without a step."""
        at = self.random.choice(self.rows, count)
        self.at, self.left = np.append(self.at, at), np.append(self.left, np.full(count, self.length))
        visited = np.repeat(self.positions[at][:, None], self.visited.shape[1], axis=1)
        self.visited = np.concatenate([self.visited, visited])

    def grow(self) -> bool:
        """Adds a piece to each path that is too short; whether there was one."""
        (growing,) = np.nonzero(self.left)
        if not len(growing):
            return False
        row = self.at[growing]
        ends = self.episodes.ends[self.episode_of[row]]
        steps = np.minimum(self.random.integers(1, ends - row, endpoint=True), self.left[growing])
        self.pieces.append((growing, row, steps))
        self.left[growing] -= steps
        self.steps += int(steps.sum())
        visited = self.visited[:, -1].copy()
        visited[growing] = self.positions[row + steps]
        self.visited = np.concatenate([self.visited, visited[:, None]], axis=1)
        self.at[growing] = self._next(growing, row + steps)
        return True

    def _next(self, paths: Array, rows: Array) -> Array:
        """The rows at which paths that have come to ``rows`` go on; those that cannot end there."""
        ends = self.episodes.ends[self.episode_of[rows]]
        distance, index = self.tree.query(self.positions[rows], k=min(NEIGHBORS, len(self.rows)))
        candidates = self.rows[index.reshape(len(rows), -1)]  # (paths, k)
        episode = self.episode_of[candidates]
        meets = (distance.reshape(candidates.shape) <= self.reach) & (episode != self.episode_of[rows][:, None])
        is_over = (rows == ends) & self.episodes.terminated[self.episode_of[rows]]
        meets &= ~is_over[:, None]
        self.meetings += int(meets.any(1).sum())
        lead_to = self.positions[self.episodes.ends[episode]]  # (paths, k, n)
        apart = np.linalg.norm(lead_to[:, :, None] - self.visited[paths][:, None], axis=-1).min(2)
        best = np.where(meets, apart, -1.0).argmax(1)
        self.left[paths[~meets.any(1) & (rows == ends)]] = 0
        return np.where(meets.any(1), candidates[np.arange(len(rows)), best], rows)

    def join(self) -> Episodes:
        """The recorded episodes, then those along the paths.

        Raises:
            ConfigError: if no two episodes meet.
        """
        if not self.meetings:
            raise ConfigError(
                "Episodes are stitched where they meet, and none of them do.",
                expected=f"two that pass within {self.reach:.3g}, half a step of the data, of each other",
                got=f"{len(self.episodes)} episodes of data set {self.episodes.name!r}",
                fix="data.stitch=0",
            )
        path, first, steps = (np.concatenate(parts) for parts in zip(*self.pieces, strict=True))
        order = np.argsort(path, kind="stable")
        path, first, steps = path[order], first[order], steps[order]
        is_last = np.append(path[1:] != path[:-1], True)
        counts = steps + is_last  # the final observation of the last piece is that of the path
        rows = np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        lengths = np.bincount(path, weights=steps).astype(np.int64)
        ends = np.cumsum(lengths + 1) - 1
        fields = {name: getattr(self.episodes, name) for name in WIDTHS}
        stitched = {name: values[rows] for name, values in fields.items() if values is not None}
        for name in STEPWISE:
            stitched[name][ends] = 0
        if "achieved" in stitched and "goals" in stitched:  # a path pursues its end
            stitched["goals"] = np.repeat(stitched["achieved"][ends], lengths + 1, axis=0)
        last = rows[ends]
        terminated = self.episodes.terminated[self.episode_of[last]] & (
            last == self.episodes.ends[self.episode_of[last]]
        )
        starts = len(self.episode_of) + ends - lengths
        joined: dict[str, Any] = {name: np.concatenate([fields[name], values]) for name, values in stitched.items()}
        return replace(
            self.episodes,
            **joined,
            starts=np.concatenate([self.episodes.starts, starts]),
            lengths=np.concatenate([self.episodes.lengths, lengths]),
            terminated=np.concatenate([self.episodes.terminated, terminated]),
            stitched=len(lengths),
        )
