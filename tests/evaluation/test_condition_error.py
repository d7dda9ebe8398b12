"""The control of the condition error: latents of plans for other states, also where all episodes start alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
from walks import Walk, walk_env

from trajgen.core.types import Space
from trajgen.evaluation.rollout import rollout
from trajgen.experiments.evaluating import condition_error
from trajgen.policies.options import PolicyOptions
from trajgen.policies.receding_horizon import RecedingHorizonPolicy

SPACE = Space(state_dim=2, action_dim=1, goal_dim=1, state_key="observation", goal_key="desired_goal")
SEEDS = range(6)


class Alike(Walk):
    """Starts every episode in one state, for one goal."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        _, info = super().reset(seed=seed)
        self.position = self.goal = 0.0
        return self._see(), info


@pytest.fixture(scope="module")
def policy() -> RecedingHorizonPolicy:
    """Plans of states that start where they are made."""
    planner = tiny.shake(
        tiny.planner(
            space=SPACE,
            view={"fields": ("state",)},
            tokenizer={"name": "identity", "inpaint": ("state",)},
            schedule="single",
            prior="diffusion",
            decoder="identity",
            action="state",
            sampler="diffusion",
        )
    ).eval()
    return RecedingHorizonPolicy(planner, planner.normalizer, SPACE, PolicyOptions(), discount=1.0, chunk=tiny.CHUNK)


def test_where_episodes_start_alike_the_other_plans_are_for_states_along_them(policy: RecedingHorizonPolicy) -> None:
    env = walk_env(Alike)
    states = rollout(policy, env, SEEDS).states
    errors = condition_error(policy, env, SEEDS, states)
    visited = np.concatenate(states)  # 34, all starts in (0, 0)
    distance = np.sqrt(np.square(visited[[2, 8, 14, 19, 25, 31]]).mean())
    assert errors["state"] == 0 and distance > 0.5
    assert errors["state_other_latent"] == pytest.approx(distance, rel=1e-5)


def test_without_recorded_states_there_is_no_other_plan(policy: RecedingHorizonPolicy) -> None:
    errors = condition_error(policy, walk_env(Alike), SEEDS, [np.empty((0, 0))] * 6)
    assert {"state", "state_zero_latent"} < {*errors} and "state_other_latent" not in errors
