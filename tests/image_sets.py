"""Small data sets with images, which tests write."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict
from small_sets import episode, save, unbounded

SIDE, STEPS, EPISODES = 16, 12, 6
PIXELS = Box(0, 255, (SIDE, SIDE, 3), np.uint8)
PIXELS_FIRST = Box(0, 255, (3, SIDE, SIDE), np.uint8)


def images(number: int, rows: int = STEPS + 1, side: int = SIDE) -> np.ndarray:
    """Images (rows, side, side, 3) of an episode; no two are alike."""
    return np.random.default_rng(number).integers(256, size=(rows, side, side, 3), dtype=np.uint8)


def observations(number: int, layout: str = "last") -> dict[str, Any]:
    random = np.random.default_rng(100 + number)
    pictures = images(number)
    return {
        "velocity": random.normal(size=(STEPS + 1, 2)),
        "front": pictures if layout == "last" else np.moveaxis(pictures, -1, 1),
        "wrist": images(50 + number),
        "goal": random.normal(size=(STEPS + 1, 2)),
    }


def actions(number: int) -> np.ndarray:
    return np.random.default_rng(200 + number).uniform(-1, 1, (STEPS, 2)).astype(np.float32)


def write(id: str, layout: str = "last", **changes: Any) -> None:
    """A set of six episodes with a velocity, two cameras, and a goal; its environment is none."""
    front = PIXELS if layout == "last" else PIXELS_FIRST
    spaces = {"velocity": unbounded(2), "front": front, "wrist": PIXELS, "goal": unbounded(2)}
    episodes = (episode(observations(number, layout), actions(number)) for number in range(EPISODES))
    settings = {"env_spec": None, "eval_env_spec": None} | changes
    save(id, episodes, Dict(spaces), 2, **settings)


def write_bare(id: str, dtype: Any = np.uint8) -> None:
    """A set whose observations are images."""
    episodes: Iterator[Any] = (episode(images(n).astype(dtype), actions(n)) for n in range(EPISODES))
    save(id, episodes, Box(0, 255, (SIDE, SIDE, 3), dtype), 2, env_spec=None, eval_env_spec=None)
