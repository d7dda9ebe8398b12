"""Every registered prior under every registered schedule: stepwise predictions equal the teacher-forced ones."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from accepts import cells, check_cell, fixture_of
from torch import Tensor

from trajgen.core.errors import ConfigError
from trajgen.core.registry import build
from trajgen.core.types import Cond
from trajgen.testing.fixture import find_fixture, input_spans

CODE_DIM, VOCABULARY = 6, 12
SCHEDULES = [*(("transformer", schedule) for schedule in tiny.schedules()), ("gpt", "unit")]
"""The autoregressive priors with the schedules that they accept; the tables of contracts hold what they refuse."""


@cells("prior")
def test_contracts(name: str, words: str, advice: str) -> None:
    check_cell("prior", name, words, advice)


def make(name: str, schedule: str = "unit", *, continuous: bool = False, **conditioner: Any) -> Any:
    """A prior with perturbed weights."""
    vocabulary = None if continuous else VOCABULARY
    wiring: dict[str, Any] = {"schedule": tiny.schedule(schedule), "code_dim": CODE_DIM, "vocabulary": vocabulary}
    wiring |= {"state_dim": 4, "action_dim": 2, "goal_dim": 2, "latent_length": tiny.LATENT, "features": 5}
    wiring |= {
        "horizon": tiny.HORIZON,
        "chunk": tiny.CHUNK,
        "stride": tiny.STRIDE,
        "strides": (tiny.STRIDE,),
        "period": 1,
        "agent_axis": None,
    }
    wiring |= {"tokenizer": SimpleNamespace(known_codes=lambda cond: None), "view": SimpleNamespace(slices={})}
    wiring["conditioner"] = build("conditioner", tiny.node("conditioner", "fields", **conditioner), **wiring)
    return tiny.shake(build("prior", tiny.node("prior", name), **wiring)).eval()


def make_inputs(prior: Any) -> Tensor:
    return torch.randn(6, prior.schedule.tokens - prior.schedule.lengths[0], CODE_DIM)


@pytest.mark.parametrize(("name", "schedule"), SCHEDULES)
@torch.no_grad()
def test_continuous_codes_are_predicted_alike_stepwise(name: str, schedule: str, cond: Cond) -> None:
    prior = make(name, schedule, continuous=True)
    inputs, state = make_inputs(prior), prior.start(cond)
    stepwise = [
        prior.step(inputs[:, rows] if k else None, k, state) for k, _, rows in input_spans(prior.schedule.lengths)
    ]
    torch.testing.assert_close(prior.logits(inputs, cond), torch.cat(stepwise, dim=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "schedule"), [("transformer", "geometric"), ("transformer", "unit"), ("gpt", "unit")])
@torch.no_grad()
def test_every_finer_scale_follows_from_an_input(name: str, schedule: str, cond: Cond) -> None:
    prior = make(name, schedule)
    inputs = make_inputs(prior)
    before = prior.logits(inputs, cond)
    for k, span, rows in input_spans(prior.schedule.lengths):
        changed = inputs.clone()
        changed[:, rows] += 1.0
        difference = (prior.logits(changed, cond) - before).abs()
        assert k == 0 or (difference[:, span.start :].amax(-1) > 1e-6).all()


@pytest.mark.parametrize("field", ["state", "returns", "goal"])
@pytest.mark.parametrize(("name", "schedule"), SCHEDULES)
@torch.no_grad()
def test_each_field_of_the_condition_reaches_every_scale(name: str, schedule: str, field: str, cond: Cond) -> None:
    prior = make(name, schedule)
    inputs = make_inputs(prior)
    difference = prior.logits(inputs, cond) - prior.logits(inputs, tiny.moved(cond, **{field: 1.0}))
    assert (difference.abs().amax(-1) > 1e-5).all()


def test_tokens_weigh_in_the_loss_by_their_field() -> None:
    words = {"prior": {"action_weight": 5.0, "value_weight": 2.0}}
    fixture = find_fixture("prior", "transformer", "tt", words)
    prior, example = fixture.component, fixture.example()
    logits = prior.logits(example.inputs, example.cond)
    tokenizer = fixture.part(fixture.planner, "tokenizer")
    weight_of = {"action": 5.0, "state": 1.0, "reward": 2.0, "return": 2.0}
    weights = torch.tensor([weight_of[field] for field in tokenizer.fields_of_tokens]).repeat(tokenizer.horizon)
    losses = F.cross_entropy(logits.transpose(1, 2), example.codes, reduction="none")
    torch.testing.assert_close(prior.loss(logits, example.codes), (losses * weights).mean() / weights.mean())
    with pytest.raises(ConfigError, match="action_weight"):
        find_fixture("prior", "transformer", "mage", words)


CONDITIONED = "diffuser conditioner.fields=[state,return,goal]"


@pytest.mark.parametrize(("name", "words"), [("transformer", "mage"), ("gpt", "flat_ar"), ("diffusion", CONDITIONED)])
@torch.no_grad()
def test_a_withheld_condition_is_not_looked_at(name: str, words: str) -> None:
    fixture = fixture_of("prior", name, words)
    prior, example = fixture.component, fixture.example()
    other = tiny.moved(example.cond, returns=3.0, goal=-2.0)

    def predict(cond: Cond) -> Tensor:
        if name == "diffusion":
            return prior.denoise(example.vectors, torch.ones(len(cond), dtype=torch.long), cond)
        return prior.logits(example.inputs, cond)

    assert not torch.equal(predict(example.cond), predict(other))
    assert torch.equal(predict(example.cond.unconditional()), predict(other.unconditional()))


@pytest.mark.parametrize("name", ["transformer", "gpt"])
def test_the_loss_by_hand_and_in_training(name: str, cond: Cond) -> None:
    prior, continuous = make(name), make(name, continuous=True)
    codes = torch.randint(VOCABULARY, (6, prior.schedule.tokens))
    certain = torch.nn.functional.one_hot(codes, VOCABULARY) * 100.0
    assert float(prior.loss(certain, codes)) == pytest.approx(0, abs=1e-6)
    assert float(prior.loss(torch.zeros_like(certain), codes)) == pytest.approx(torch.tensor(VOCABULARY).log().item())
    values = torch.randn(3, continuous.schedule.tokens, CODE_DIM)
    assert float(continuous.loss(values, values)) == 0
    assert float(continuous.loss(values + 2, values)) == pytest.approx(4)
    inputs = make_inputs(prior)
    loss, prediction = prior(codes, inputs, cond)
    torch.testing.assert_close(prediction, prior.logits(inputs, cond))
    torch.testing.assert_close(loss, prior.loss(prediction, codes))


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"prior\.heads=3"):
        tiny.planner(prior={"width": 16, "heads": 3})


@torch.no_grad()
def test_without_conditioning_fields_nothing_reaches_the_logits(cond: Cond) -> None:
    prior = make("transformer", "geometric", fields=(), optional=())
    inputs = make_inputs(prior)
    other = replace(cond, state=cond.state + 1, returns=cond.returns - 1, goal=None)
    assert torch.equal(prior.logits(inputs, cond), prior.logits(inputs, other))
