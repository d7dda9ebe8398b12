"""Decision Diffuser: a history of states that plans continue, and its guidance (arXiv 2211.15657)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from trajgen.core.errors import ConfigError
from trajgen.core.types import Batch
from trajgen.nn.diffusion import noise_levels
from trajgen.policies.history import History
from trajgen.samplers.autoregressive import guided

PAST = 3


@pytest.fixture(scope="module")
def planner() -> Any:
    return tiny.shake(
        tiny.planner(
            view={"fields": ("state",)},
            tokenizer="identity",
            schedule="single",
            prior="diffusion",
            decoder="identity",
            action="state",
            sampler={"name": "diffusion", "guidance": 0.2},
            conditioner={"fields": ("return", "goal")},
            planner={"name": "continuing", "past": PAST},
        )
    ).eval()


def test_a_window_is_known_up_to_the_current_point_from_where_the_episode_began(planner: Any) -> None:
    batch = tiny.batch(200)
    cond = planner.condition(batch)
    assert torch.equal(cond.state, batch.states[:, PAST - 1]) and torch.equal(cond.returns, batch.returns[:, PAST - 1])
    assert batch.time is not None and torch.equal(cond.time, batch.time + (PAST - 1) * tiny.STRIDE)
    known_codes = planner.tokenizer.known_codes(cond)
    assert torch.equal(known_codes.codes[:, :PAST], batch.states[:, :PAST])
    is_known = known_codes.mask.all(-1)
    assert not is_known[:, PAST:].any() and is_known[:, PAST - 1].all()
    lengths = is_known.sum(1)
    assert lengths.unique().tolist() == [1, 2, 3]
    assert torch.equal(is_known[:, :PAST], torch.arange(PAST) >= PAST - lengths.unsqueeze(1))


@torch.no_grad()
def test_a_plan_continues_what_the_policy_recorded(planner: Any) -> None:
    """A point of the history is a stride from the next; before the episode's first one nothing is known."""
    history = History(2, planner.history, 4, 2)
    states = torch.randn(5, 2, 4)  # the fifth is the current one, the second a stride before it
    for step, state in enumerate(states):
        history.push(state, torch.tensor([step, step]))
    cond = replace(tiny.cond(2), state=states[-1], past=history.past())
    known_codes = planner.tokenizer.known_codes(replace(cond, past=planner._past(cond)))
    assert known_codes.mask.all(-1)[0].tolist() == [False, True, True] + [False] * (tiny.HORIZON - PAST)
    plan = planner.plan(cond, torch.Generator().manual_seed(0))
    assert torch.equal(plan.codes[:, 1], states[4 - tiny.STRIDE]) and torch.equal(plan.codes[:, 2], states[-1])
    assert torch.equal(plan.trajectory[:, : 1 - PAST], plan.codes[:, PAST - 1 :])
    assert torch.equal(plan.trajectory[:, -PAST:], plan.codes[:, -1:].expand(-1, PAST, -1))
    assert torch.equal(plan.trajectory[:, 0], cond.state)  # a plan goes on from here
    residuals = planner.condition_residuals(plan.trajectory, cond)
    assert float(residuals["state"].abs().max()) == 0
    action = planner.action(plan, cond.state.unsqueeze(1), torch.zeros(2, 1, dtype=torch.long))
    changed = replace(plan, trajectory=plan.trajectory.clone())
    changed.trajectory[:, 1] += 1
    assert not torch.equal(action, planner.action(changed, cond.state.unsqueeze(1), torch.zeros(2, 1).long()))


@torch.no_grad()
def test_without_a_history_the_current_state_alone_is_known(planner: Any) -> None:
    cond = tiny.cond(4)
    assert cond.past is None
    known_codes = planner.tokenizer.known_codes(replace(cond, past=planner._past(cond)))
    assert known_codes.mask.all(-1)[0].tolist() == [False, False, True] + [False] * (tiny.HORIZON - PAST)
    assert torch.equal(planner.plan(cond).trajectory[:, 0], cond.state)


def test_guidance_is_that_of_the_paper_in_noise(planner: Any) -> None:
    """ε̂ = ε(x, ∅) + ω (ε(x, y) - ε(x, ∅)) (section 3.2), where ω is 1 + sampler.guidance: x̂_0 is affine in ε."""
    x, conditional, unconditional = torch.randn(3, 5, tiny.HORIZON, 4).unbind(0)
    t = 4
    signal = noise_levels(planner.prior.timesteps, planner.prior.beta_schedule).alphas_cumprod[t]

    def noise(clean: Tensor) -> Tensor:
        return (x - signal.sqrt() * clean) / (1 - signal).sqrt()

    mask = tiny.cond(5).cfg_batch().cond_mask
    assert mask is not None and mask.tolist() == [True] * 5 + [False] * 5
    prediction = guided(torch.cat([conditional, unconditional]), planner.sampler.guidance)
    expected = noise(unconditional) + 1.2 * (noise(conditional) - noise(unconditional))
    torch.testing.assert_close(noise(prediction), expected)


def test_a_history_learns(planner: Any) -> None:
    batch: Batch = tiny.batch(8)
    losses = planner.prior_loss(batch)
    assert all(loss.isfinite() for loss in losses.values())
    losses["total"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in planner.action.parameters())


def test_a_target_return_is_not_set_at_a_past_point() -> None:
    with pytest.raises(ConfigError, match="states alone are inpainted"):
        tiny.planner(
            view={"fields": ("return", "state")},
            tokenizer={"name": "identity", "inpaint": ("state", "return")},
            schedule="single",
            prior="diffusion",
            decoder="identity",
            action="state",
            sampler="diffusion",
            planner={"name": "continuing", "past": PAST},
        )
