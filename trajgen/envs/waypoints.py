"""A waypoint controller for point mazes: shortest paths over cells, followed by a clipped PD law."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

WALL = 1
NEIGHBORS = ((0, 1), (0, -1), (1, 0), (-1, 0))


class Grid:
    """The cells of a maze, their centers in metres, and the next cell on the way between any two.

    Args:
        cells: rows of the map; 1 is a wall, anything else is free.
        scale: side of a cell, in metres. The middle of the map is the origin; x grows with the column, y
            falls with the row.
    """

    def __init__(self, cells: Sequence[Sequence[Any]], scale: float = 1.0) -> None:
        self.scale = scale
        self.rows, self.columns = len(cells), len(cells[0])
        self.free = np.array([[cell != WALL for cell in row] for row in cells])
        index = np.indices(self.free.shape).reshape(2, -1).T  # (cells, 2) of (row, column)
        offset = np.array([self.columns, -self.rows]) / 2
        self.centers = ((index[:, ::-1] + 0.5) * (1, -1) - offset) * scale  # (cells, 2)
        self.towards = np.stack([self._search(goal) for goal in range(len(index))], 1)  # (from, goal)

    def cell(self, positions: np.ndarray) -> np.ndarray:
        """The cell that each of the positions (B, 2) lies in; positions outside count to the rim."""
        column = np.floor(positions[:, 0] / self.scale + self.columns / 2).astype(int)
        row = np.floor(self.rows / 2 - positions[:, 1] / self.scale).astype(int)
        return row.clip(0, self.rows - 1) * self.columns + column.clip(0, self.columns - 1)

    def walls(self) -> list[tuple[float, float, float, float]]:
        """The wall cells as rectangles (left x, lower y, width, height), in metres."""
        corners = self.centers[~self.free.ravel()] - self.scale / 2
        return [(float(x), float(y), self.scale, self.scale) for x, y in corners]

    def is_connected(self) -> bool:
        """Whether there is a way between any two free cells, of which there is one at least."""
        free = np.flatnonzero(self.free)
        return bool(len(free)) and all(self.towards[cell, free[0]] != cell for cell in free[1:])

    def _search(self, goal: int) -> np.ndarray:
        """Breadth-first search: for each cell the next one towards ``goal``, itself where there is none."""
        step = np.arange(self.free.size)
        queue, visited = deque([divmod(goal, self.columns)]), {divmod(goal, self.columns)}
        while queue:
            row, column = queue.popleft()
            for down, right in NEIGHBORS:
                near = (row + down, column + right)
                inside = 0 <= near[0] < self.rows and 0 <= near[1] < self.columns
                if inside and near not in visited and self.free[near]:
                    visited.add(near)
                    queue.append(near)
                    step[near[0] * self.columns + near[1]] = row * self.columns + column
        return step


class WaypointController:
    """Goes to the center of the next cell on the shortest path, then to the goal itself, without noise.

    A stateless `trajgen.core.planning.Policy` that knows the maze; its actions are batched if the observation is.

    Args:
        grid: the maze.
        stiffness, damping: gains of the PD law on position (1/m) and velocity (s/m).
    """

    def __init__(self, grid: Grid, stiffness: float = 10.0, damping: float = 1.0) -> None:  # D4RL's gains
        self.grid, self.stiffness, self.damping = grid, stiffness, damping

    def reset(self, *, batch: int | None = None, ids: Sequence[int] | None = None) -> None:
        """Does nothing: it has no state."""

    def act(self, observation: Any) -> np.ndarray:
        """Actions (B, 2) or (2,) for an observation with entries "observation" and "desired_goal"."""
        states = np.atleast_2d(observation["observation"])
        goals = np.atleast_2d(observation["desired_goal"])
        actions = self.steer(states, goals)
        return actions if np.ndim(observation["observation"]) == 2 else actions[0]

    def observe(self, reward: Any, done: Any) -> None:
        """Does nothing: it has no state."""

    def steer(self, states: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """Actions (B, 2) in [-1, 1] from states (B, 4) of position and velocity, and goals (B, 2)."""
        positions, velocities = states[:, :2], states[:, 2:]
        here, there = self.grid.cell(positions), self.grid.cell(goals)
        waypoints = self.grid.centers[self.grid.towards[here, there]]
        targets = np.where((here == there)[:, None], goals, waypoints)
        action = self.stiffness * (targets - positions) - self.damping * velocities
        return action.clip(-1.0, 1.0).astype(np.float32)
