"""A small Minari data set with goals, for what reads data sets."""

from __future__ import annotations

import numpy as np
from small_sets import episode, save

from trajgen.data.options import DataOptions

ID = "fuzz/line-v0"
DICT_OPTIONS = DataOptions(
    id=ID, state_key="state", goal_key="goal", achieved_key="here", goals="hindsight", horizon=3, stride=2, chunk=2
)


def write_set() -> None:
    """Writes three episodes of 17, 9 and 4 steps."""
    draw = np.random.default_rng(0)
    episodes = []
    for steps in (17, 9, 4):
        observations = {key: draw.normal(size=(steps + 1, 2)) for key in ("state", "goal", "here")}
        actions = draw.uniform(-1, 1, (steps, 1)).astype(np.float32)
        episodes.append(episode(observations, actions, draw.normal(size=steps), terminated=steps == 9))
    save(ID, episodes, {"state": 2, "goal": 2, "here": 2}, 1)
