"""Misfit: how badly a plan that has been followed fits the present, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from trajgen.core.registry import build
from trajgen.core.types import FollowedPlan
from trajgen.planners.misfit import critic_misfit, state_misfit

FIRST = 1
STRIDE = 4
OFFSETS = torch.tensor([0, 1, 6, 8, 50])
"""Steps into plans of three points: at the first one, between two of them, at the last one, and after it."""
PLACES = torch.tensor([0.0, 0.25, 1.5, 2.0, 2.0])
WAY = torch.tensor([[1.0, 5.0], [3.0, 4.0], [3.0, 0.0]])


@pytest.mark.parametrize("field", ["state", "position"])
def test_the_way_since_is_compared_with_the_planned_one_by_hand(field: str) -> None:
    wiring: dict[str, Any] = {"state_dim": 3, "action_dim": 1, "strides": (STRIDE,), "goal_state": (2, 0)}
    view = build("view", {"name": "fields", "fields": ("return", field)}, **wiring)
    rows = len(OFFSETS)
    points = torch.stack([WAY[:, 1], torch.zeros(3), WAY[:, 0]], dim=1) if field == "state" else WAY
    trajectory = torch.cat([torch.full((3, 1), 7.0), points], dim=1).expand(rows, -1, -1)
    planned = torch.tensor([[0.0, 0.0], [0.5, -0.25], [2.0, -3.0], [2.0, -5.0], [2.0, -5.0]])
    # the plan's first point misses the state in which it was drawn, which does not count; the way misses by (3, -4)
    start = torch.tensor([[-2.0, 0.0, 9.0]]).expand(rows, -1)
    now = start + torch.stack([planned[:, 1] - 4.0, torch.zeros(rows), planned[:, 0] + 3.0], dim=1)
    followed = FollowedPlan(torch.zeros(rows, 1), start, OFFSETS)
    misfit = state_misfit(view, trajectory, followed, replace(tiny.cond(rows), state=now), STRIDE)
    torch.testing.assert_close(misfit, torch.full((rows,), (25 / (3 if field == "state" else 2)) ** 0.5))
    exact = replace(tiny.cond(rows), state=start + torch.stack([planned[:, 1], 0 * PLACES, planned[:, 0]], dim=1))
    torch.testing.assert_close(state_misfit(view, trajectory, followed, exact, STRIDE), torch.zeros(rows))


@torch.no_grad()
def test_a_planner_measures_the_way_of_the_plan_that_was_followed() -> None:
    model = tiny.ready_planner().eval()
    cond, later = tiny.cond(5, seed=1), tiny.cond(5, seed=2)
    codes = model.plan(cond, torch.Generator().manual_seed(0)).codes
    offset = torch.tensor([1, 2, 3, 4, 40])
    followed = FollowedPlan(codes, cond.state, offset)
    _, misfit = model.revise(followed, later, FIRST, misfit="state")
    points = model.decoder(model.tokenizer.layout.latent(model.tokenizer.vectors(codes)), later)[..., 1:]
    for row, steps in enumerate(offset.tolist()):
        point, rest = divmod(min(steps, tiny.STRIDE * (tiny.HORIZON - 1)), tiny.STRIDE)
        share, after = rest / tiny.STRIDE, min(point + 1, tiny.HORIZON - 1)
        planned = (1 - share) * points[row, point] + share * points[row, after] - points[row, 0]
        moved = later.state[row] - cond.state[row]
        torch.testing.assert_close(misfit[row], (moved - planned).square().mean().sqrt())


@torch.no_grad()
def test_the_critic_compares_what_it_says_with_what_it_said() -> None:
    model = tiny.ready_planner(sampler={"name": "best_of_n", "n": 4}, critic="length").eval()
    cond, later = tiny.cond(3, seed=1), tiny.cond(3, seed=2)
    plan = model.plan(cond, torch.Generator().manual_seed(0))
    torch.testing.assert_close(plan.worth, model.sampler.score(plan.trajectory, cond))
    followed = FollowedPlan(plan.codes, cond.state, torch.ones(3, dtype=torch.long), plan.worth)
    revised, misfit = model.revise(followed, later, FIRST, torch.Generator().manual_seed(1), misfit="critic")
    torch.testing.assert_close(misfit, plan.worth - model.sampler.score(revised.trajectory, later))
    with pytest.raises(ValueError, match="no worth"):
        critic_misfit(replace(followed, worth=None), revised)


@torch.no_grad()
def test_the_best_of_several_revisions_is_kept() -> None:
    """It is one of the candidates that the drawing sampler draws, and none of them is worth more."""
    n = 5
    model = tiny.ready_planner(sampler={"name": "best_of_n", "n": n}, critic="length").eval()
    sampler, cond = model.sampler, tiny.cond(3, seed=2)
    codes = model.plan(tiny.cond(3, seed=1), torch.Generator().manual_seed(0)).codes

    def draw(conditions: Any, previous: Tensor) -> Any:
        rng = torch.Generator().manual_seed(4)
        return sampler.sampler.revise(model.prior, model.tokenizer, conditions, previous, FIRST, rng)

    candidates, surprise = draw(cond.map(lambda values: values.repeat_interleave(n, 0)), codes.repeat_interleave(n, 0))
    worth = sampler.score(
        model.decoder(candidates.latent, cond.map(lambda v: v.repeat_interleave(n, 0))),
        cond.map(lambda v: v.repeat_interleave(n, 0)),
    ).view(3, n)
    best, its_surprise = sampler.revise(
        model.prior, model.tokenizer, cond, codes, FIRST, torch.Generator().manual_seed(4)
    )
    assert torch.equal(best.codes, candidates.codes.view(3, n, -1)[torch.arange(3), worth.argmax(1)])
    torch.testing.assert_close(best.worth, worth.amax(1))
    torch.testing.assert_close(its_surprise, surprise.view(3, n)[:, 0])
    assert torch.equal(best.codes[:, :1], codes[:, :1]) and len(worth.unique()) > 3
