"""OGBench's published oracles (arXiv 2410.20092, appendix E) as policies of ``trajgen data record``, with its noise."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

MAZE_NOISE = 0.5
"""Standard deviation of what is added to the actions in mazes."""
STITCH_CELLS = 4
"""Cells from start to goal in the data "stitch"."""


class Maze:
    """Goes from goal to goal in a point maze, each drawn from its free cells, by the shortest path.

    Args:
        env: a point maze of OGBench, made with ``terminate_at_goal=False``.
    """

    def __init__(self, env: Any) -> None:
        self.env = env.unwrapped
        self.cells = np.argwhere(np.asarray(self.env.maze_map) == 0)

    def reset(self) -> None:
        """Draws a goal."""
        self.env.set_goal(goal_ij=tuple(self.cells[np.random.randint(len(self.cells))]))

    def act(self, observation: Any) -> np.ndarray:
        """An action (2,) towards the next cell of the path, with noise."""
        if self.env.compute_success():
            self.reset()
        return self._towards_goal()

    def _towards_goal(self) -> np.ndarray:
        position = self.env.get_xy()
        subgoal, _ = self.env.get_oracle_subgoal(position, self.env.cur_goal_xy)
        direction = (subgoal - position) / (np.linalg.norm(subgoal - position) + 1e-6)
        action: np.ndarray = (direction + np.random.normal(0, MAZE_NOISE, 2)).clip(-1, 1).astype(np.float32)
        return action


class ShortMaze(Maze):
    """Goes to a goal four cells away, and stays there: the data "stitch", of which no episode leads far.

    Args:
        env: a point maze of OGBench, made with ``terminate_at_goal=False``; its tasks become all such short ones.
    """

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        pairs = [(cell, goal) for cell in map(tuple, self.cells) for goal in self._cells_away(cell, STITCH_CELLS)]
        self.env.task_infos = [{"init_ij": cell, "goal_ij": goal} for cell, goal in pairs]
        self.env.num_tasks = len(pairs)  # of which the environment draws one at each reset

    def reset(self) -> None:
        """Keeps the environment's goal."""

    def act(self, observation: Any) -> np.ndarray:
        """An action (2,) towards the next cell of the path, with noise."""
        return self._towards_goal()

    def _cells_away(self, cell: tuple[int, int], steps: int) -> list[tuple[int, int]]:
        """The free cells to which the shortest path from a cell has so many steps."""
        free, reached, last = set(map(tuple, self.cells)), {cell}, [cell]
        for _ in range(steps):
            around = {(row + i, column + j) for row, column in last for i, j in ((0, 1), (0, -1), (1, 0), (-1, 0))}
            last = sorted(around & free - reached)
            reached.update(last)
        return last


class Play:
    """Does one thing after another with an arm: moves a cube, presses a button, opens or closes a drawer or a window.

    The noise is in its plans.

    Args:
        env: a cube environment of OGBench or its scene, made with ``mode=data_collection`` and
            ``terminate_at_goal=False``.
    """

    def __init__(self, env: Any) -> None:
        self.env = env.unwrapped

    def reset(self) -> None:
        """Plans for the target that the environment has."""
        info = self.env.compute_ob_info()
        task = info["privileged/target_task"]
        module = importlib.import_module(f"ogbench.manipspace.oracles.plan.{task}_plan")
        self.oracle = getattr(module, f"{task.title()}PlanOracle")(env=self.env)
        self.oracle.reset(None, info)

    def act(self, observation: Any) -> np.ndarray:
        """An action (5,) of the arm towards the plan's next pose."""
        if self.oracle.done:
            self.env.set_new_target()
            self.reset()
        action: np.ndarray = self.oracle.select_action(None, self.env.compute_ob_info())
        return action.clip(-1, 1).astype(np.float32)
