"""Small sets whose windows are known by hand: a state is (episode, step)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from trajgen.core.normalizer import Normalizer
from trajgen.core.types import Batch, Space
from trajgen.data.episodes import Episode, Episodes
from trajgen.data.options import DataOptions
from trajgen.data.windows import Windows


def options(**changes: Any) -> DataOptions:
    base: dict[str, Any] = {"id": "set-v0", "horizon": 3, "stride": 2, "chunk": 3, "discount": 0.5, "max_padding": 0.0}
    return DataOptions(**(base | changes))


GOALS = {"goals": "hindsight", "state_key": "s", "goal_key": "d", "achieved_key": "a", "goal_radius": 0.6}


def line(lengths: list[int], terminated: list[bool] | None = None, seed: int | None = None) -> Episodes:
    """Episodes whose state is (episode, step); with a seed the place reached is a random walk."""
    random = np.random.default_rng(seed)
    raw = []
    for number, steps in enumerate(lengths):
        states = np.stack([np.full(steps + 1, number), np.arange(steps + 1)], 1)
        achieved = states if seed is None else np.cumsum(random.normal(0, 0.4, (steps + 1, 2)), 0)
        ends = bool(terminated and terminated[number])
        raw.append(
            Episode(
                states, np.arange(1.0, steps + 1)[:, None], np.arange(1.0, steps + 1), ends, achieved + 0.2, achieved
            )
        )
    return Episodes.collect(raw, name="line", space=Space(2, 1, 2, "s", "d"))


def plain(episodes: Episodes, choice: DataOptions, seed: int = 0) -> Windows:
    return Windows(episodes, choice, Normalizer(2, 1, 2), seed=seed)


def same(one: Batch, other: Batch) -> bool:
    names = ("states", "actions", "rewards", "returns", "mask", "chunk_states", "chunk_actions", "chunk_mask")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)
