"""A small Minari data set with goals, for what reads data sets."""

from __future__ import annotations

import gymnasium
import numpy as np

from trajgen.data import minari
from trajgen.data.options import DataOptions

ID = "fuzz/line-v0"
BOX = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
SPACE = gymnasium.spaces.Dict({"state": BOX, "goal": BOX, "here": BOX})
ACTIONS = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
DICT_OPTIONS = DataOptions(
    id=ID,
    state_key="state",
    goal_key="goal",
    achieved_key="here",
    goals="hindsight",
    horizon=3,
    stride=2,
    chunk=2,
)


def write_set() -> None:
    """Writes three episodes of 17, 9 and 4 steps."""
    draw = np.random.default_rng(0)
    episodes = []
    for steps in (17, 9, 4):
        ends = np.zeros(steps, bool)
        ends[-1] = True
        episodes.append(
            {
                "observations": {key: draw.normal(size=(steps + 1, 2)) for key in ("state", "goal", "here")},
                "actions": draw.uniform(-1, 1, (steps, 1)).astype(np.float32),
                "rewards": draw.normal(size=steps),
                "terminations": ends & (steps == 9),
                "truncations": ends & (steps != 9),
            }
        )
    env_spec = gymnasium.spec("Pendulum-v1")
    minari.save(
        ID,
        episodes,
        env_spec=env_spec,
        eval_env_spec=env_spec,
        observation_space=SPACE,
        action_space=ACTIONS,
        description="a line",
        algorithm="none",
    )
