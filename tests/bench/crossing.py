"""A walker of MiniGrid, by which the data of the results were recorded: ``policy=crossing:Walker``."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

AHEAD = ((1, 0), (0, 1), (-1, 0), (0, -1))  # of MiniGrid's four directions


class Walker:
    """Takes a shortest path to the goal, and two steps in five at random."""

    def __init__(self, env: Any) -> None:
        self.env = env.unwrapped

    def act(self, observation: Any) -> int:
        """An action: 0 and 1 turn, 2 goes ahead."""
        return int(np.random.randint(3) if np.random.rand() < 0.4 else self.next_action())

    def next_action(self) -> int:
        """The first action of a shortest path."""
        start = (*map(int, self.env.agent_pos), self.env.agent_dir)
        first: dict[tuple[int, ...], Any] = {start: None}
        queue = deque([start])
        while queue:
            x, y, way = queue.popleft()
            if self.env.grid.get(x, y) is not None and self.env.grid.get(x, y).type == "goal":
                return int(first[x, y, way])
            ahead = (x + AHEAD[way][0], y + AHEAD[way][1])
            cell = self.env.grid.get(*ahead)
            moves = {0: (x, y, (way - 1) % 4), 1: (x, y, (way + 1) % 4)}
            moves |= {2: (*ahead, way)} if cell is None or cell.type == "goal" else {}
            for action, place in moves.items():
                if place not in first:
                    first[place] = action if first[x, y, way] is None else first[x, y, way]
                    queue.append(place)
        return 2
