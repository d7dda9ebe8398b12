"""Every registered prior keeps its contracts; losses by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from accepts import cells, check_cell
from torch import Tensor

from trajgen.core.errors import ConfigError
from trajgen.core.registry import build
from trajgen.core.types import Cond
from trajgen.testing.fixture import find_fixture

CODE_DIM, VOCABULARY = 6, 12


@cells("prior")
def test_contracts(name: str, words: str, advice: str) -> None:
    check_cell("prior", name, words, advice)


def make(name: str, schedule: str = "unit", *, continuous: bool = False, **conditioner: Any) -> Any:
    """A prior with perturbed weights."""
    vocabulary = None if continuous else VOCABULARY
    wiring: dict[str, Any] = {"schedule": tiny.schedule(schedule), "code_dim": CODE_DIM, "vocabulary": vocabulary}
    wiring |= {"state_dim": 4, "action_dim": 2, **tiny.GOALS, "latent_length": tiny.LATENT, "features": 5}
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


@torch.no_grad()
def test_without_conditioning_fields_nothing_reaches_the_logits(cond: Cond) -> None:
    prior = make("transformer", "geometric", fields=(), optional=())
    inputs = make_inputs(prior)
    other = replace(cond, state=cond.state + 1, returns=cond.returns - 1, goal=None)
    assert torch.equal(prior.logits(inputs, cond), prior.logits(inputs, other))


def test_a_first_code_that_nothing_gives_is_refused() -> None:
    gpt = {"name": "gpt", "prefix": False}
    with pytest.raises(ConfigError, match="no first code"):
        tiny.planner(prior=gpt, schedule="unit")
    assert tiny.planner(prior={"name": "gpt"}, schedule="unit").prior.skipped == 0
