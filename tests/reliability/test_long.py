"""A policy acts as long as one likes: no memory grows, no number drifts, and it starts anew as on its first day."""

from __future__ import annotations

import os
import resource

import numpy as np
import pytest
import tiny

from trajgen.policies.options import PolicyOptions
from trajgen.policies.receding_horizon import RecedingHorizonPolicy

ACTS = int(os.environ.get("TRAJGEN_ACTS", "300"))
"""Acts at batch 1, and a fifth of them at batch 64; 100,000 nightly."""
GROWTH = 32
"""MiB."""


@pytest.mark.timeout(300 + ACTS // 20)
@pytest.mark.parametrize(("batch", "acts"), [(None, ACTS), (64, ACTS // 5)])
def test_a_long_life_changes_nothing(batch: int | None, acts: int) -> None:
    planner = tiny.planner(return_target="quantile")
    tiny.shake(planner)
    options = PolicyOptions(replan_interval=4)
    policy = RecedingHorizonPolicy(planner, planner.normalizer, tiny.SPACE, options, discount=0.99, chunk=tiny.CHUNK)
    draw = np.random.default_rng(0)
    shape = () if batch is None else (batch,)

    def observation() -> dict[str, np.ndarray]:
        return {"observation": draw.normal(size=(*shape, 4)), "desired_goal": draw.normal(size=(*shape, 2))}

    first = [observation() for _ in range(20)]

    def begin() -> list[np.ndarray]:
        policy.reset(batch=batch)
        actions = []
        for recorded in first:
            actions.append(policy.act(recorded))
            policy.observe(np.ones(shape), np.zeros(shape, bool))
        return actions

    before, least = begin(), 0
    for act in range(acts):
        action = policy.act(observation())
        assert np.isfinite(action).all() and (np.abs(action) <= 1).all()
        policy.observe(draw.normal(size=shape), draw.random(shape) < 0.01)
        if act == acts // 10:
            least = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - least) / 1024
    print(f"batch {batch}: {acts} acts, {growth:.1f} MiB more at their end than after a tenth of them")
    assert growth < GROWTH
    for one, other in zip(before, begin(), strict=True):
        np.testing.assert_array_equal(one, other)
