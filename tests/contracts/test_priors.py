"""Every registered prior under every registered schedule: what teacher forcing learns is what sampling draws."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from kept import accepted, bench, check_kept
from torch import Tensor

from trajgen.core.errors import ConfigError
from trajgen.core.registry import build, names
from trajgen.core.types import Cond

PRIORS = names("prior")
CODE_DIM, VOCABULARY = 6, 12
VALUES = "tokenizer=identity decoder=identity sampler=greedy"
COMPOSITIONS = [
    *(f"mage schedule={name}" for name in tiny.schedules() if name != "unit"),
    *(f"flat_ar schedule={name}" for name in ("unit", "single")),
    "flat_ar schedule=explicit schedule.lengths=[1,1,2]",
    *(f"mage schedule={name} {VALUES}" for name in ("unit", "single")),
    "diffuser sampler.value_scale=0.0",
    "tt",
]
"""Pyramids, rows, continuous codes, denoising, and one token per number."""


@pytest.mark.parametrize("words", COMPOSITIONS)
@pytest.mark.parametrize("name", PRIORS)
def test_contracts_are_kept_in_every_composition(name: str, words: str) -> None:
    check_kept("prior", name, words)


@pytest.mark.parametrize("name", PRIORS)
def test_each_prior_accepts_a_composition(name: str) -> None:
    assert accepted("prior", name, COMPOSITIONS)


def make(name: str, schedule: str, vocabulary: int | None = VOCABULARY, **conditioner: Any) -> Any:
    """A prior with moved weights; None if it refuses the schedule or is not drawn scale by scale."""
    lengths = tiny.schedule(schedule)
    wiring: dict[str, Any] = {"schedule": lengths, "code_dim": CODE_DIM, "vocabulary": vocabulary}
    wiring |= {"state_dim": 4, "action_dim": 2, "goal_dim": 2, "latent_length": tiny.LATENT, "features": 5}
    wiring |= {"horizon": tiny.HORIZON, "chunk": tiny.CHUNK, "stride": tiny.STRIDE, "period": 1}
    wiring |= {"tokenizer": SimpleNamespace(known_codes=lambda cond: None), "view": SimpleNamespace(slices={})}
    wiring["conditioner"] = build("conditioner", tiny.node("conditioner", "fields", **conditioner), **wiring)
    try:
        prior = build("prior", tiny.node("prior", name), **wiring)
    except ConfigError as refusal:
        tiny.check_cure(refusal)
        return None
    return tiny.shake(prior).eval() if hasattr(prior, "step") else None


def inputs(prior: Any, size: int = 6) -> Tensor:
    schedule = prior.schedule
    return torch.randn(size, schedule.tokens - schedule.lengths[0], CODE_DIM)


@pytest.mark.parametrize("name", PRIORS)
@torch.no_grad()
def test_continuous_codes_of_every_schedule_are_predicted_alike_stepwise(name: str, cond: Cond) -> None:
    for schedule in tiny.schedules():
        prior = make(name, schedule, vocabulary=None)
        if prior is None:
            continue
        given, state = inputs(prior), prior.start(cond)
        stepwise = [prior.step(None, 0, state)]
        stepwise += [prior.step(given[:, span], k, state) for k, span in tiny.spans(prior.schedule)]
        torch.testing.assert_close(prior.logits(given, cond), torch.cat(stepwise, dim=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["geometric", "unit"])
@pytest.mark.parametrize("name", PRIORS)
@torch.no_grad()
def test_every_finer_scale_follows_from_an_input(name: str, schedule: str, cond: Cond) -> None:
    prior = make(name, schedule)
    if prior is None:
        return
    given = inputs(prior)
    before = prior.logits(given, cond)
    for k, span in tiny.spans(prior.schedule):
        changed = given.clone()
        changed[:, span] += 1.0
        difference = (prior.logits(changed, cond) - before).abs()
        assert (difference[:, prior.schedule.spans[k].start :].amax(-1) > 1e-6).all()


@pytest.mark.parametrize("field", ["state", "returns", "goal"])
@pytest.mark.parametrize("schedule", tiny.schedules())
@pytest.mark.parametrize("name", PRIORS)
@torch.no_grad()
def test_each_field_of_the_condition_reaches_every_scale(name: str, schedule: str, field: str, cond: Cond) -> None:
    prior = make(name, schedule)
    if prior is None:
        return
    given = inputs(prior)
    difference = prior.logits(given, cond) - prior.logits(given, tiny.moved(cond, **{field: 1.0}))
    assert (difference.abs().amax(-1) > 1e-5).all()


SEEING = "diffuser conditioner.fields=[state,return,goal] sampler.value_scale=0.0 prior.value=false"


@pytest.mark.parametrize(("name", "words"), [("transformer", "mage"), ("gpt", "flat_ar"), ("diffusion", SEEING)])
@torch.no_grad()
def test_a_withheld_condition_is_not_looked_at(name: str, words: str) -> None:
    made = bench("prior", name, words)
    assert made is not None
    prior, known = made.component, made.known(made.planner, made.batch())
    other = tiny.moved(known.cond, returns=3.0, goal=-2.0)

    def said(cond: Cond) -> Tensor:
        if name == "diffusion":
            return prior.denoise(known.vectors, torch.ones(len(cond), dtype=torch.long), cond)
        return prior.logits(known.inputs, cond)

    assert not torch.equal(said(known.cond), said(other))
    torch.testing.assert_close(said(known.cond.unconditional()), said(other.unconditional()), atol=0, rtol=0)


@pytest.mark.parametrize("name", PRIORS)
def test_the_loss_of_a_sure_prediction_is_zero(name: str) -> None:
    discrete, continuous = make(name, "unit"), make(name, "unit", vocabulary=None)
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


@pytest.mark.parametrize("name", [name for name in PRIORS if name != "diffusion"])
def test_training_returns_the_loss_of_its_own_prediction(name: str, cond: Cond) -> None:
    prior = make(name, "unit")
    codes, given = torch.randint(VOCABULARY, (6, prior.schedule.tokens)), inputs(prior)
    loss, prediction = prior(codes, given, cond)
    torch.testing.assert_close(prediction, prior.logits(given, cond))
    torch.testing.assert_close(loss, prior.loss(prediction, codes))


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"prior\.heads=3"):
        tiny.planner(prior={"width": 16, "heads": 3})


@torch.no_grad()
def test_without_conditioning_fields_nothing_reaches_the_logits(cond: Cond) -> None:
    prior = make("transformer", "geometric", fields=(), optional=())
    given = inputs(prior)
    other = replace(cond, state=cond.state + 1, returns=cond.returns - 1, goal=None)
    assert torch.equal(prior.logits(given, cond), prior.logits(given, other))
