"""Revised plans: coarse codes stay, finer ones are drawn for the present state, and clocks and books stay right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import test_receding_horizon as whole
import tiny
import torch
from torch import Tensor

from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.protocols import PredictsPrefix
from trajgen.core.types import Cond, FollowedPlan, Plan, Space
from trajgen.policies.options import PolicyOptions
from trajgen.policies.receding_horizon import RecedingHorizonPolicy
from trajgen.samplers.autoregressive import draw

FIRST = 1
"""Number of the scale from which plans are revised, of the scales (1, 2, 4)."""
KNOWN = 1
"""Tokens of the scales before it."""


@pytest.fixture(scope="module", params=["one condition", "a condition for each scale"])
def model(request: pytest.FixtureRequest) -> Any:
    scales = 2 if request.param == "a condition for each scale" else None
    return tiny.ready_planner(conditioner={"return_scales": scales}).eval()


def followed(codes: Tensor) -> FollowedPlan:
    """Plans with these codes, of which nothing else is asked."""
    return FollowedPlan(codes, torch.zeros(len(codes), 4), torch.zeros(len(codes), dtype=torch.long))


@torch.no_grad()
def by_hand(model: Any, codes: Tensor, cond: Cond, choose: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, latent and surprise of a revision, one scale after the other, without sampler and cache."""
    tokenizer, surprise = model.tokenizer, torch.zeros(len(cond))
    codes = codes.clone()
    for k, span in enumerate(tokenizer.schedule.spans):
        logits = model.prior.logits(tokenizer.layout.inputs(tokenizer.vectors(codes)), cond)[:, span]
        if k < FIRST:
            probs = logits.softmax(-1)
            entropy = -(probs * probs.log()).sum(-1)
            of_codes = probs.gather(-1, codes[:, span].unsqueeze(-1)).squeeze(-1)
            surprise += (-of_codes.log() - entropy).sum(1)
        else:
            codes[:, span] = choose(logits)
    return codes, tokenizer.layout.latent(tokenizer.vectors(codes)), surprise


@pytest.mark.parametrize("batch", [1, 6])
@torch.no_grad()
def test_a_revision_keeps_coarse_codes_and_draws_the_others_for_the_present(model: Any, batch: int) -> None:
    codes = model.plan(tiny.cond(batch, seed=1), torch.Generator().manual_seed(0)).codes
    present = tiny.cond(batch, seed=2)
    plan, surprise = model.revise(followed(codes), present, FIRST, torch.Generator().manual_seed(3))
    rng = torch.Generator().manual_seed(3)
    expected = by_hand(model, codes, present, lambda logits: draw(logits / model_temperature(model), rng))
    assert torch.equal(plan.codes[:, :KNOWN], codes[:, :KNOWN]) and torch.equal(plan.codes, expected[0])
    torch.testing.assert_close(plan.latent, expected[1])
    torch.testing.assert_close(surprise, expected[2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(plan.trajectory, model.decoder(plan.latent, present))


def model_temperature(model: Any) -> float:
    temperature: float = tiny.spec("sampler", "temperature").options[0].default
    return temperature


@torch.no_grad()
def test_rows_are_revised_independently(model: Any) -> None:
    greedy = tiny.build("sampler", {"name": "greedy"})
    codes, present = model.plan(tiny.cond(6)).codes, tiny.cond(6, seed=2)
    together, surprise = greedy.revise(model.prior, model.tokenizer, present, codes, FIRST)
    for row in range(6):
        cond = present.map(lambda values, row=row: values[row : row + 1])
        alone, its_surprise = greedy.revise(model.prior, model.tokenizer, cond, codes[row : row + 1], FIRST)
        assert torch.equal(alone.codes[0], together.codes[row])
        torch.testing.assert_close(its_surprise[0], surprise[row], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_prior_without_a_pass_for_a_prefix_gives_the_same_revision(model: Any) -> None:
    """With guidance as well, for which the prior predicts every plan twice."""

    class Steps:
        def __init__(self, prior: Any) -> None:
            self.start, self.step = prior.start, prior.step

    steps: Any = Steps(model.prior)
    assert isinstance(model.prior, PredictsPrefix) and not isinstance(steps, PredictsPrefix)
    greedy = tiny.build("sampler", {"name": "greedy", "guidance": 0.5})
    codes, present = model.plan(tiny.cond(3)).codes, tiny.cond(3, seed=2)
    for first in (1, 2):
        one_pass = greedy.revise(model.prior, model.tokenizer, present, codes, first)
        stepwise = greedy.revise(steps, model.tokenizer, present, codes, first)
        assert torch.equal(one_pass[0].codes, stepwise[0].codes)
        torch.testing.assert_close(one_pass[1], stepwise[1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_codes_that_fit_surprise_by_nothing_in_the_mean(model: Any) -> None:
    cond = tiny.cond(1).map(lambda values: values.expand(4000, *values.shape[1:]))
    sampler = tiny.build("sampler", {"name": "temperature", "temperature": 1.0}, vocabulary=model.tokenizer.vocabulary)
    codes = sampler(model.prior, model.tokenizer, cond, torch.Generator().manual_seed(0)).codes
    _, surprise = sampler.revise(model.prior, model.tokenizer, cond, codes, 2, torch.Generator().manual_seed(1))
    assert abs(float(surprise.mean())) < 4 * float(surprise.std()) / 4000**0.5
    rare = codes.clone()
    rare[:, 0] = model.prior.logits(model.tokenizer.layout.inputs(model.tokenizer.vectors(codes)), cond)[:, 0].argmin(
        -1
    )
    _, higher = sampler.revise(model.prior, model.tokenizer, cond, rare, 1, None)
    _, lower = sampler.revise(model.prior, model.tokenizer, cond, codes, 1, None)
    assert float(higher.min()) >= float(lower.max())


class Planner(whole.Planner):
    """Numbers its plans; a revision counts in tenths, and the reward of the state decides how surprising it is."""

    def __init__(self, normalizer: Normalizer) -> None:
        super().__init__(normalizer)
        self.revised: list[tuple[Cond, FollowedPlan]] = []

    def check_revision(self, first: int, misfit: str) -> None:
        assert first == FIRST

    def revise(
        self,
        followed: FollowedPlan,
        cond: Cond,
        first: int,
        rng: torch.Generator | None = None,
        *,
        misfit: str,
        decode: bool = True,
    ) -> tuple[Plan, Tensor]:
        codes = followed.codes
        self.revised.append((cond, followed.map(torch.clone)))
        return Plan(codes, codes.unsqueeze(1) + len(self.revised) / 10), cond.state[:, 0]


def policy(**options: Any) -> RecedingHorizonPolicy:
    space = Space(state_dim=3, action_dim=2)
    normalizer = Normalizer(space.state_dim, space.action_dim, space.goal_dim)
    options = {"replan_interval": 6, "revise": FIRST + 1, "revise_interval": 2} | options
    return RecedingHorizonPolicy(
        Planner(normalizer), normalizer, space, PolicyOptions(**options), discount=0.5, chunk=4
    )


def test_a_plan_is_revised_between_two_plans() -> None:
    """The interval of plans is longer than the four steps for which one can be followed."""
    acting = policy()
    acting.reset()
    acted = [acting.act(np.zeros(3)).round(3).tolist() for _ in range(8)]
    assert np.allclose(acted, [[1, 0], [1, 1], [1.1, 0], [1.1, 1], [1.2, 0], [1.2, 1], [2, 0], [2, 1]])
    assert [int(plan.codes) for _, plan in acting.planner.revised] == [1, 1]  # each revises what was planned
    assert [int(cond.time[0]) for cond, _ in acting.planner.revised if cond.time is not None] == [2, 4]


def test_a_revision_is_asked_for_the_return_that_a_plan_would_be() -> None:
    revising, planning = policy(), policy(replan_interval=2, revise=None)
    for acting in (revising, planning):
        acting.reset()
        for step in range(6):
            acting.act(np.zeros(3))
            acting.observe(float(step), False)
    revised = [float(cond.returns) for cond, _ in revising.planner.revised]
    assert revised == [float(cond.returns) for cond in planning.planner.conds[1:]]
    torch.testing.assert_close(revising._remaining, planning._remaining)


def test_each_environment_of_a_batch_is_revised_by_its_own_clock() -> None:
    acting = policy()
    acting.reset(batch=2)
    acting.act(np.zeros((2, 3)))
    acting.observe(np.zeros(2), np.array([False, True]))  # the second one starts anew
    acted = [acting.act(np.zeros((2, 3))).round(3).tolist() for _ in range(3)]
    assert np.allclose(acted, [[[1, 1], [2, 0]], [[1.1, 0], [2, 1]], [[1.1, 1], [2.2, 0]]])
    assert [plan.codes.tolist() for _, plan in acting.planner.revised] == [[[1]], [[2]]]


def test_a_revision_is_told_how_its_plan_was_followed() -> None:
    """In which state it was drawn, and for how many steps it was followed, in each episode."""
    acting = policy(revise_interval=3)
    acting.reset(batch=2)
    for step in range(5):
        acting.act(np.array([[step, 0, 0], [10 + step, 0, 0]]))
        acting.observe(np.zeros(2), np.array([False, step == 0]))  # the second one starts anew
    followed = [(plan.state[:, 0].tolist(), plan.offset.tolist()) for _, plan in acting.planner.revised]
    assert followed == [([0.0], [3]), ([11.0], [3])]


def test_codes_that_no_longer_fit_are_planned_anew_at_the_next_step() -> None:
    acting = policy(revise_interval=1, revise_threshold=3.0)
    acting.reset(batch=2)
    states = np.zeros((4, 2, 3))
    states[1, 1, 0] = 3.5  # more surprising than allowed, in one episode
    acted = [acting.act(state).round(3).tolist() for state in states]
    assert np.allclose(acted, [[[1, 0], [1, 0]], [[1.1, 0], [1.1, 0]], [[1.2, 0], [2, 0]], [[1.3, 0], [2.3, 0]]])
    assert len(acting.planner.conds[1]) == 1 and [int(x) for x in acting._plan_age] == [4, 2]


@pytest.mark.parametrize(
    ("swaps", "options", "message"),
    [
        ({"schedule": "single"}, {}, r"first scales sketch all of it[\s\S]*schedule=geometric"),
        ({"schedule": "unit"}, {}, r"first scales sketch all of it"),
        ({"sampler": "beam"}, {}, r"one scale after the other[\s\S]*sampler=temperature"),
        ({}, {"revise": 4}, r"from 2 to 3[\s\S]*policy.revise=3"),
        ({}, {"revise": 1}, r"from 2 to 3[\s\S]*policy.replan_interval=1"),
        ({}, {"revise_interval": 5}, r"policy.revise_interval is from 1 to 4[\s\S]*policy.revise_interval=4"),
        ({}, {"revise_interval": 4}, r"before the next plan[\s\S]*policy.replan_interval=8"),
        ({}, {"revise_interval": 3, "replan_interval": 3}, r"before the next plan[\s\S]*policy.replan_interval=6"),
        ({}, {"revise_threshold": float("nan")}, r"finite number, or null"),
        ({}, {"revise_misfit": "critic"}, r"by a critic[\s\S]*sampler=best_of_n"),
        ({"view": {"fields": ("return", "action")}}, {"revise_misfit": "state"}, "state or the position"),
        ({"sampler": {"name": "best_of_n", "likely_fraction": 0.5}}, {}, r"one scale after the other"),
    ],
)
def test_what_cannot_be_revised_is_refused(swaps: dict[str, Any], options: dict[str, Any], message: str) -> None:
    planner = tiny.planner(**swaps)
    with pytest.raises(ConfigError, match=message):
        PolicyOptions(**{"revise": 2, **options}).steps(planner, tiny.CHUNK)


def test_a_revision_before_the_next_plan_is_accepted() -> None:
    """A step before it, and with the remedy of the refusal."""
    for interval, steps in ((3, 4), (4, 8)):
        options = PolicyOptions(revise=2, revise_interval=interval, replan_interval=steps)
        assert options.steps(tiny.planner(), tiny.CHUNK) == steps


def test_a_planner_without_scales_cannot_revise() -> None:
    with pytest.raises(ConfigError, match=r"policy.revise needs a planner[\s\S]*policy.revise=null"):
        PolicyOptions(revise=2).steps(whole.policy().planner, 4)


def test_a_plan_that_is_denoised_cannot_be_revised() -> None:
    planner = tiny.planner(
        tokenizer={"name": "identity", "tokens": "point"},
        schedule="single",
        prior="diffusion",
        sampler="diffusion",
        decoder="identity",
    )
    with pytest.raises(ConfigError, match="one scale after the other") as caught:
        PolicyOptions(revise=2).steps(planner, tiny.CHUNK)
    assert caught.value.fix == "policy.revise=null"
