"""Every registered tokenizer under every registered schedule."""

from __future__ import annotations

import ast
import re
from functools import partial
from typing import Any

import pytest
import tiny
import torch
from accepts import cells, check_cell, fixture_of
from torch import nn

from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.registry import build, names, spec

FEATURES = 5
"""A return and a state of four."""


@cells("tokenizer")
def test_contracts(name: str, words: str, advice: str) -> None:
    check_cell("tokenizer", name, words, advice)


def make(name: str, schedule: str, **options: Any) -> Any:
    torch.manual_seed(0)
    view = build("view", {"name": "fields"}, state_dim=4, action_dim=2, strides=(tiny.STRIDE,), goal_state=())
    wiring = {"features": FEATURES, "horizon": tiny.HORIZON, "view": view, "normalizer": Normalizer(4, 2, 2)}
    wiring |= {"goal_state": (0, 1), "goal_dim": 2, "schedule": partial(tiny.schedule, schedule), "agent_axis": None}
    return build("tokenizer", tiny.node("tokenizer", name, **options), **wiring)


@pytest.mark.parametrize("name", names("tokenizer"))
def test_numbers_out_of_range_are_refused_with_one_that_works(name: str) -> None:
    for option in spec("tokenizer", name).options:
        if option.annotation in ("int", "float"):
            with pytest.raises(ConfigError) as caught:
                make(name, "single", **{option.name: -1})
            tiny.check_cure(caught.value)
            assert f"{option.name}=-1" in str(caught.value.got)
            cure = re.search(rf"tokenizer\.{option.name}=(\S+)", str(caught.value.fix))
            assert cure
            make(name, "single", **{option.name: ast.literal_eval(cure[1])})


@pytest.mark.parametrize("words", ["diffuser", "tt"])
def test_codes_that_are_not_learnt_may_be_known(words: str) -> None:
    fixture = fixture_of("tokenizer", {"diffuser": "identity", "tt": "bins"}[words], words)
    known_codes = fixture.component.known_codes(fixture.cond())
    assert known_codes.mask.any() and not known_codes.mask.all()
    assert list(fixture.component.parameters()) == [] and fixture.component.state_dict() == {}


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options"), [("identity", {"tokens": "point"}), ("identity", {"tokens": "field"}), ("bins", {})]
)
def test_a_latent_that_is_the_trajectory_is_read_back(name: str, options: dict[str, Any]) -> None:
    tokenizer, x = make(name, "unit", **options), tiny.windows(tiny.batch())
    latent = tokenizer.layout.latent(tokenizer.vectors(tokenizer.encode(x).codes))
    torch.testing.assert_close(latent, tokenizer.spread(x))
    assert tokenizer.latent_length == tokenizer.period * tiny.HORIZON
    error = (tokenizer.points(latent) - x)[x.abs() < 3.0].abs().max()
    assert error < (1e-6 if tokenizer.vocabulary is None else 3.0 / tokenizer.vocabulary + 1e-6)


@pytest.mark.parametrize("quantizer", ["vq", "fsq", "lfq", "simvq"])
def test_the_loss_reaches_all_weights_and_usage_is_counted(quantizer: str) -> None:
    tokenizer, batch = make("multiscale", "single", quantizer=quantizer), tiny.batch(32)
    flat = nn.Linear(tokenizer.latent_length * tokenizer.code_dim, tiny.HORIZON * FEATURES)
    decoder = nn.Sequential(nn.Flatten(), flat, nn.Unflatten(1, (tiny.HORIZON, FEATURES)))
    tokenizer.loss(batch, tiny.windows(batch), decoder)["total"].backward()
    for parameter in (*tokenizer.parameters(), *decoder.parameters()):
        assert parameter.grad is not None and parameter.grad.abs().max() > 0
    first, second = tokenizer.usage(), tokenizer.usage()
    figures = ("usage/scale_1", "usage/all", "perplexity/scale_1", "perplexity/all")
    assert set(first) == set(figures)
    assert 0 < first["usage/all"] <= 1 and 1 <= first["perplexity/all"] <= tokenizer.vocabulary
    assert second["usage/all"] == 0
