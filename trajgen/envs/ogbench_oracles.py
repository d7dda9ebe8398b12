"""OGBench's published oracles (arXiv 2410.20092, appendix E) as policies of ``trajgen data record``, with its noise."""

from __future__ import annotations

from typing import Any

import numpy as np

MAZE_NOISE, CUBE_NOISE = 0.5, 0.1
"""Standard deviations of what is added to the actions."""


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
        position = self.env.get_xy()
        subgoal, _ = self.env.get_oracle_subgoal(position, self.env.cur_goal_xy)
        direction = (subgoal - position) / (np.linalg.norm(subgoal - position) + 1e-6)
        action: np.ndarray = (direction + np.random.normal(0, MAZE_NOISE, 2)).clip(-1, 1).astype(np.float32)
        return action


class Cube:
    """Moves a cube from target to target.

    Args:
        env: a cube environment of OGBench, made with ``mode=data_collection`` and ``terminate_at_goal=False``.
    """

    def __init__(self, env: Any) -> None:
        from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle

        self.env, self.oracle = env.unwrapped, CubeMarkovOracle(env=env)

    def reset(self) -> None:
        """Begins with the target that the environment has."""
        self.oracle.reset(None, self.env.compute_ob_info())

    def act(self, observation: Any) -> np.ndarray:
        """An action (5,) of the arm, with noise."""
        if self.oracle.done:
            self.env.set_new_target()
            self.reset()
        action = self.oracle.select_action(None, self.env.compute_ob_info())
        noisy: np.ndarray = (action + np.random.normal(0, CUBE_NOISE, len(action))).clip(-1, 1).astype(np.float32)
        return noisy
