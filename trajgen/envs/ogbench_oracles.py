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
    """Goes from goal to goal in a point maze by the shortest path: the data "navigate".

    An episode starts in any free cell; goals are drawn from the cells that are no hallway.

    Args:
        env: a point maze of OGBench, made with ``terminate_at_goal=False``; its tasks become all such pairs.
    """

    def __init__(self, env: Any) -> None:
        self.env = env.unwrapped
        self.free = {(int(row), int(column)) for row, column in np.argwhere(np.asarray(self.env.maze_map) == 0)}
        self.goals = sorted(cell for cell in self.free if not self._is_hallway(*cell))
        pairs = [(start, goal) for start in sorted(self.free) for goal in self._goals_from(start)]
        self.env.task_infos = [{"init_ij": start, "goal_ij": goal} for start, goal in pairs]
        self.env.num_tasks = len(pairs)  # of which the environment draws one at each reset

    def reset(self) -> None:
        """Keeps the goal that the environment has drawn."""

    def act(self, observation: Any) -> np.ndarray:
        """An action (2,) towards the next cell of the path, with noise."""
        if self.env.compute_success():
            self._next_goal()
        position = self.env.get_xy()
        subgoal, _ = self.env.get_oracle_subgoal(position, self.env.cur_goal_xy)
        direction = (subgoal - position) / (np.linalg.norm(subgoal - position) + 1e-6)
        action: np.ndarray = (direction + np.random.normal(0, MAZE_NOISE, 2)).clip(-1, 1).astype(np.float32)
        return action

    def _goals_from(self, start: tuple[int, int]) -> list[tuple[int, int]]:
        """The cells that may be the goal of an episode from ``start``."""
        return self.goals

    def _next_goal(self) -> None:
        self.env.set_goal(goal_ij=self.goals[np.random.randint(len(self.goals))])

    def _is_hallway(self, row: int, column: int) -> bool:
        """Whether a cell has free cells on two opposite sides, and walls on the others."""
        vertical = {(row - 1, column) in self.free, (row + 1, column) in self.free}
        horizontal = {(row, column - 1) in self.free, (row, column + 1) in self.free}
        return {len(vertical), len(horizontal)} == {1} and vertical != horizontal


class ShortMaze(Maze):
    """Goes to a goal four cells away, and stays there: the data "stitch", of which no episode leads far.

    Args:
        env: a point maze of OGBench, made with ``terminate_at_goal=False``; its tasks become all such pairs.
    """

    def _goals_from(self, start: tuple[int, int]) -> list[tuple[int, int]]:
        """The free cells to which the shortest path has `STITCH_CELLS` steps."""
        reached, last = {start}, [start]
        for _ in range(STITCH_CELLS):
            around = {(row + i, column + j) for row, column in last for i, j in ((0, 1), (0, -1), (1, 0), (-1, 0))}
            last = sorted(around & self.free - reached)
            reached.update(last)
        return last

    def _next_goal(self) -> None:
        """Stays at the goal."""


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
