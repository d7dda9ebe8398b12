"""Every registered prior under every registered schedule: what teacher forcing learns is what sampling draws."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from trajgen.core.errors import ConfigError
from trajgen.core.registry import build, names
from trajgen.core.types import Cond

PRIORS = names("prior")
CODE_DIM, VOCABULARY = 6, 12


def make(name: str, schedule: str, vocabulary: int | None = VOCABULARY, **conditioner: Any) -> Any:
    """A prior with moved weights; None if it refuses the schedule."""
    lengths = tiny.schedule(schedule)
    wiring: dict[str, Any] = {"schedule": lengths, "code_dim": CODE_DIM, "vocabulary": vocabulary}
    wiring |= {"state_dim": 4, "action_dim": 2, "goal_dim": 2, "latent_length": tiny.LATENT}
    wiring |= {"horizon": tiny.HORIZON, "chunk": tiny.CHUNK, "features": 5}
    wiring["conditioner"] = build("conditioner", tiny.node("conditioner", "fields", **conditioner), **wiring)
    try:
        prior = build("prior", tiny.node("prior", name), **wiring)
    except ConfigError as refusal:
        tiny.check_cure(refusal)
        return None
    return tiny.shake(prior).eval()


def inputs(prior: Any, size: int = 6) -> Tensor:
    schedule = prior.schedule
    return torch.randn(size, schedule.tokens - schedule.lengths[0], CODE_DIM)


def stepwise(prior: Any, given: Tensor, cond: Cond) -> Tensor:
    state = prior.start(cond)
    predictions = [prior.step(None, 0, state)]
    predictions += [prior.step(given[:, span], k, state) for k, span in tiny.spans(prior.schedule)]
    return torch.cat(predictions, dim=1)


@pytest.mark.parametrize("name", PRIORS)
def test_each_prior_accepts_a_schedule(name: str) -> None:
    assert any(make(name, schedule) is not None for schedule in tiny.schedules())


@pytest.mark.parametrize("vocabulary", [VOCABULARY, None])
@pytest.mark.parametrize("schedule", tiny.schedules())
@pytest.mark.parametrize("name", PRIORS)
@torch.no_grad()
def test_teacher_forced_equals_stepwise(name: str, schedule: str, vocabulary: int | None, cond: Cond) -> None:
    prior = make(name, schedule, vocabulary=vocabulary)
    if prior is None:
        return
    given = inputs(prior)
    forced = prior.logits(given, cond)
    assert forced.shape == (6, prior.schedule.tokens, vocabulary or CODE_DIM)
    assert forced.std() > 0.01
    torch.testing.assert_close(forced, stepwise(prior, given, cond), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("schedule", tiny.schedules())
@pytest.mark.parametrize("name", PRIORS)
@torch.no_grad()
def test_a_scale_sees_the_inputs_up_to_its_own(name: str, schedule: str, cond: Cond) -> None:
    prior = make(name, schedule)
    if prior is None:
        return
    given = inputs(prior)
    before = prior.logits(given, cond)
    for k, span in tiny.spans(prior.schedule):
        changed = given.clone()
        changed[:, span] += 1.0
        difference = (prior.logits(changed, cond) - before).abs()
        start = prior.schedule.spans[k].start
        assert difference[:, :start].max() < 1e-6
        assert (difference[:, start:].amax(-1) > 1e-6).all()  # its own tokens, and every finer one


@pytest.mark.parametrize("field", ["state", "returns", "goal"])
@pytest.mark.parametrize("schedule", tiny.schedules())
@pytest.mark.parametrize("name", PRIORS)
@torch.no_grad()
def test_the_condition_reaches_every_scale(name: str, schedule: str, field: str, cond: Cond) -> None:
    prior = make(name, schedule)
    if prior is None:
        return
    given = inputs(prior)
    difference = prior.logits(given, cond) - prior.logits(given, tiny.moved(cond, **{field: 1.0}))
    assert (difference.abs().amax(-1) > 1e-5).all()


@pytest.mark.parametrize("name", PRIORS)
@torch.no_grad()
def test_a_withheld_condition_is_not_looked_at(name: str, cond: Cond) -> None:
    prior = make(name, "geometric")
    if prior is None:
        return
    given, other = inputs(prior), tiny.moved(cond, returns=3.0, goal=-2.0)
    assert not torch.equal(prior.logits(given, cond), prior.logits(given, other))
    torch.testing.assert_close(
        prior.logits(given, cond.withheld()), prior.logits(given, other.withheld()), atol=0, rtol=0
    )


@pytest.mark.parametrize("name", PRIORS)
def test_the_loss_of_a_sure_prediction_is_zero(name: str) -> None:
    discrete, continuous = make(name, "geometric"), make(name, "geometric", vocabulary=None)
    if discrete is not None:
        codes = torch.randint(VOCABULARY, (3, discrete.schedule.tokens))
        sure = torch.nn.functional.one_hot(codes, VOCABULARY) * 100.0
        assert float(discrete.loss(sure, codes)) == pytest.approx(0, abs=1e-6)
        uniform = torch.zeros_like(sure)
        assert float(discrete.loss(uniform, codes)) == pytest.approx(torch.tensor(VOCABULARY).log().item())
    if continuous is not None:
        values = torch.randn(3, continuous.schedule.tokens, CODE_DIM)
        assert float(continuous.loss(values, values)) == 0
        assert float(continuous.loss(values + 2, values)) == pytest.approx(4)


@pytest.mark.parametrize("name", PRIORS)
@torch.no_grad()
def test_one_plan_does_not_depend_on_the_others(name: str, cond: Cond) -> None:
    prior = make(name, "geometric")
    if prior is None:
        return
    given = inputs(prior)
    alone = prior.logits(given[2:3], cond.map(lambda v: v[2:3]))
    torch.testing.assert_close(prior.logits(given, cond)[2:3], alone, atol=1e-5, rtol=1e-5)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"prior\.heads=3"):
        tiny.planner(prior={"width": 16, "heads": 3})


@torch.no_grad()
def test_without_conditioning_fields_nothing_reaches_the_logits(cond: Cond) -> None:
    prior = make("transformer", "geometric", fields=(), optional=())
    given = inputs(prior)
    other = replace(cond, state=cond.state + 1, returns=cond.returns - 1, goal=None)
    assert torch.equal(prior.logits(given, cond), prior.logits(given, other))
