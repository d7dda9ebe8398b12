"""Point mazes of gymnasium-robotics: their sizes and reference returns, and data recorded in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trajgen.core.errors import ConfigError
from trajgen.data.options import EnvShift
from trajgen.envs.gym import spec
from trajgen.envs.shift import shifted
from trajgen.envs.waypoints import Grid, WaypointController

GOAL_RADIUS = 0.45
"""Distance to the goal, in metres, within which gymnasium-robotics gives a reward of 1 at each step."""

EPISODE_STEPS = 1000
"""Steps of a recorded episode: a few goals each, and rarely cut off before a return has faded."""

NOISE = 0.5
"""Standard deviation of the noise on the controller's actions, before they are clipped to [-1, 1]."""

PUSH_EVERY, PUSH = 80, (5, 20)
"""Mean steps between pushes, and the shortest and longest push, in steps.

A push replaces the controller by one random action for a while. White noise alone leaves the point mass in the middle
of the corridors, and a model of such data has not learnt the way back from a wall.
"""

NEAREST_GOAL = 0.5
"""Least distance of a new goal from the point mass, in metres, as in a reset of the environment."""

LANES = 20
"""Episodes recorded side by side, so that the controller steers them in one call."""


@dataclass(frozen=True)
class Maze:
    """A maze: its Gymnasium id, the length of an evaluation episode, and D4RL's reference returns.

    The reference returns are those of D4RL's ``infos.py`` for maze2d, measured on D4RL's own dynamics.
    """

    env_id: str
    max_steps: int
    bounds_name: str
    bounds: tuple[float, float]
    default_steps: int
    cells: tuple[tuple[int, ...], ...] | None = None
    """Of a maze of one's own; None for the environment's."""
    shift: EnvShift = field(default_factory=EnvShift)
    """How it differs from the environment of its id."""


MAZES = {
    "umaze": Maze("PointMaze_UMaze-v3", 300, "d4rl maze2d-umaze", (23.85, 161.86), 300_000),
    "medium": Maze("PointMaze_Medium-v3", 600, "d4rl maze2d-medium", (13.13, 277.39), 500_000),
    "large": Maze("PointMaze_Large-v3", 800, "d4rl maze2d-large", (6.7, 273.99), 1_000_000),
}


def own_maze(cells: Sequence[Sequence[int]]) -> Maze:
    """A maze of one's own: 1 is a wall, 0 is free. Its episodes last longer the longer its longest way is.

    Raises:
        ConfigError: unless it is a rectangle, closed by walls, whose free cells, two at least, are connected.
    """
    widths = {len(row) for row in cells}
    flat = [cell for row in cells for cell in row]
    rim = [*cells[0], *cells[-1], *(row[0] for row in cells), *(row[-1] for row in cells)] if len(widths) == 1 else [0]
    free = np.flatnonzero(np.array(flat) == 0)
    lengths = np.zeros(0)
    if {*flat} <= {0, 1} and all(rim) and len(free) > 1:
        lengths = _ways(Grid(cells), free)
    if not lengths.size or (lengths < 0).any():
        raise ConfigError(
            "A maze is rows of 0 (free) and 1 (wall), closed by walls, with a way between any two cells.",
            got=str([list(row) for row in cells])[:300],
            fix="map=[[1,1,1,1],[1,0,0,1],[1,1,0,1],[1,1,1,1]]",
        )
    return Maze(
        "PointMaze_UMaze-v3", max(300, 40 * int(lengths.max())), "", (0.0, 0.0), 300_000, tuple(map(tuple, cells))
    )


def _ways(grid: Grid, free: np.ndarray) -> np.ndarray:
    """The number of steps between any two of the free cells; -1 where there is no way."""
    cell, goal = np.meshgrid(free, free, indexing="ij")
    steps = np.zeros(cell.shape, int)
    for _ in range(grid.free.size):
        going = cell != goal
        cell = grid.towards[cell, goal]
        steps += going
    return np.where(cell == goal, steps, -1)


DWELL = (60, 180)
"""Shortest and longest stay at a goal of the dwell data, in steps, before the next goal is drawn."""


def maze_spec(maze: Maze, max_steps: int) -> Any:
    """Gymnasium spec of a maze whose goal stays where it is and whose episodes end by timeout only."""
    map_options = {} if maze.cells is None else {"maze_map": [list(row) for row in maze.cells]}
    usual = spec(maze.env_id, continuing_task=True, reset_target=False, max_episode_steps=max_steps, **map_options)
    return shifted(usual, maze.shift)


def grid(env: Any) -> Grid:
    """The cells of an unwrapped point maze."""
    return Grid(env.maze.maze_map, env.maze.maze_size_scaling)


def record(maze: Maze, stay: tuple[int, int], steps: int, seed: int) -> Iterator[dict[str, Any]]:
    """Records episodes of the noisy waypoint controller, as entries of Minari's EpisodeBuffer.

    Args:
        maze: where.
        stay: shortest and longest time, in steps, that a goal is held after it was reached; (0, 0) draws
            the next goal on arrival.
        steps: how many in all; the last episode is cut to fit.
        seed: the same seed gives the same episodes.
    """
    import gymnasium

    lengths = [min(EPISODE_STEPS, steps - done) for done in range(0, steps, EPISODE_STEPS)]
    envs = [gymnasium.make(maze_spec(maze, EPISODE_STEPS)).unwrapped for _ in lengths[:LANES]]
    try:
        for first in range(0, len(lengths), LANES):
            group = lengths[first : first + LANES]
            random = np.random.default_rng([seed, first])
            yield from _record_side_by_side(envs[: len(group)], group, stay, random)
    finally:
        for env in envs:
            env.close()


def _record_side_by_side(
    envs: list[Any], lengths: list[int], stay: tuple[int, int], random: np.random.Generator
) -> list[dict[str, Any]]:
    lanes, steps = len(envs), max(lengths)
    controller = WaypointController(grid(envs[0]))
    seeds = random.integers(2**31, size=lanes).tolist()
    starts = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)]

    states = np.empty((lanes, steps + 1, 4))
    goals = np.empty((lanes, steps + 1, 2))
    actions = np.empty((lanes, steps, 2), np.float32)
    rewards = np.empty((lanes, steps))
    states[:, 0] = [start["observation"] for start in starts]
    goals[:, 0] = [start["desired_goal"] for start in starts]
    pushed, push = np.zeros(lanes, int), np.zeros((lanes, 2))  # steps that a push still lasts, and its action
    remaining_stay = np.full(lanes, -1)  # steps for which a reached goal is still held; -1 before it is reached
    for t in range(steps):
        noise = random.normal(0.0, NOISE, (lanes, 2))
        begins = (pushed == 0) & (random.random(lanes) < 1 / PUSH_EVERY)
        pushed[begins] = random.integers(*PUSH, size=int(begins.sum()), endpoint=True)
        push[begins] = random.uniform(-1.0, 1.0, (int(begins.sum()), 2))
        steered = controller.steer(states[:, t], goals[:, t])
        actions[:, t] = (np.where(pushed[:, None] > 0, push, steered) + noise).clip(-1.0, 1.0)
        pushed[pushed > 0] -= 1
        for lane, env in enumerate(envs):
            # The point mass itself: the maze around it would add its own goal, reward and observation,
            # which follow below for all lanes at once.
            states[lane, t + 1] = env.point_env.step(actions[lane, t])[0]
        goals[:, t + 1] = goals[:, t]
        near = np.linalg.norm(states[:, t + 1, :2] - goals[:, t], axis=1) <= GOAL_RADIUS
        rewards[:, t] = near
        remaining_stay[remaining_stay > 0] -= 1
        arrived = near & (remaining_stay < 0)
        remaining_stay[arrived] = random.integers(stay[0], stay[1], size=int(arrived.sum()), endpoint=True)
        for lane in np.flatnonzero(remaining_stay == 0).tolist():
            goals[lane, t + 1] = _draw_goal(envs[lane], states[lane, t + 1, :2], random)
            remaining_stay[lane] = -1

    episodes = []
    for lane, length in enumerate(lengths):
        truncations = np.zeros(length, bool)
        truncations[-1] = True
        desired = goals[lane, : length + 1].copy()
        desired[-1] = desired[-2]  # the final observation belongs to the goal that was in force
        observation = states[lane, : length + 1]
        episodes.append(
            {
                "seed": seeds[lane],
                "observations": {
                    "observation": observation,
                    "achieved_goal": observation[:, :2],
                    "desired_goal": desired,
                },
                "actions": actions[lane, :length],
                "rewards": rewards[lane, :length],
                "terminations": np.zeros(length, bool),
                "truncations": truncations,
            }
        )
    return episodes


def _draw_goal(env: Any, position: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A goal as the environment draws it, center of a free cell plus noise, but away from ``position``."""
    cells = env.maze.unique_goal_locations
    reach = env.position_noise_range * env.maze.maze_size_scaling
    while True:
        goal = cells[random.integers(len(cells))] + random.uniform(-reach, reach, 2)
        if np.linalg.norm(goal - position) > NEAREST_GOAL:
            return np.asarray(goal)
