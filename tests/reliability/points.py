"""A data set of random points, and the words of a training on it that takes seconds."""

from __future__ import annotations

from typing import Any

import numpy as np
import tiny
from gymnasium.spaces import Box, Dict

from trajgen.data import minari

ID = "tests/points-v0"
WORDS = [word for word in tiny.TRAIN if not word.startswith("data=")]
WORDS += [f"data.id={ID}", "data.maker=null", "engine.budget=0.1667", "engine.checkpoint_every=1"]


def record(seed: int = 0, steps: int = 300, episodes: int = 2) -> None:
    """Writes a data set of random points, in place of one of the same name."""
    draw = np.random.default_rng(seed)
    widths = {"observation": 4, "desired_goal": 2, "achieved_goal": 2}
    raw = [
        {
            "observations": {name: draw.normal(size=(steps + 1, width)) for name, width in widths.items()},
            "actions": draw.uniform(-1, 1, (steps, 2)).astype(np.float32),
            "rewards": draw.normal(size=steps),
            "terminations": np.zeros(steps, bool),
            "truncations": np.arange(steps) == steps - 1,
        }
        for _ in range(episodes)
    ]
    space = Dict({name: Box(-9, 9, (width,), np.float64) for name, width in widths.items()})
    box = Box(-1, 1, (2,), np.float32)
    spaces: dict[str, Any] = {"observation_space": space, "action_space": box, "description": "", "algorithm": ""}
    minari.save(ID, raw, env_spec=None, eval_env_spec=None, force=True, **spaces)
