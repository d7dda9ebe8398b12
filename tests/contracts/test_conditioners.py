"""Every registered conditioner: what is conditioned on, what is withheld, and at which scale."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from accepts import cells, check_cell

from trajgen.core.errors import ConfigError
from trajgen.core.registry import build
from trajgen.core.types import Cond


@cells("conditioner")
def test_contracts(name: str, words: str, advice: str) -> None:
    check_cell("conditioner", name, words, advice)


def make(**options: Any) -> Any:
    wiring = {
        "schedule": tiny.schedule("geometric"),
        "state_dim": 4,
        "strides": (3,),
        "agent_axis": None,
        **tiny.GOALS,
    }
    return tiny.shake(build("conditioner", tiny.node("conditioner", "fields", **options), **wiring)).eval()


@pytest.mark.parametrize("field", ["state", "returns", "goal"])
@torch.no_grad()
def test_every_field_changes_the_embedding(field: str, cond: Cond) -> None:
    conditioner = make()
    assert not torch.allclose(conditioner(tiny.moved(cond, **{field: 1.0})), conditioner(cond))


@torch.no_grad()
def test_dropout_withholds_whole_conditions_in_training_alone() -> None:
    conditioner, cond = make(dropout=0.5), tiny.cond(400)
    conditional, unconditional = conditioner(cond), conditioner(cond.unconditional())
    assert torch.equal(conditional, conditioner(cond))
    embedded = conditioner.train()(cond)
    is_given = (embedded - conditional).abs().amax((1, 2)) < 1e-6
    is_withheld = (embedded - unconditional).abs().amax((1, 2)) < 1e-6
    assert (is_given ^ is_withheld).all()
    assert 0.4 < float(is_withheld.float().mean()) < 0.6


@torch.no_grad()
def test_withheld_fields_are_replaced_by_their_missing_vectors(cond: Cond) -> None:
    conditioner = make()
    by_hand = conditioner.embed["state"](cond.state) + conditioner.missing["return"] + conditioner.missing["goal"]
    torch.testing.assert_close(conditioner(cond.unconditional())[:, 0], conditioner.mix(by_hand))


@torch.no_grad()
def test_only_optional_fields_are_withheld_and_a_missing_goal_is_a_withheld_one(cond: Cond) -> None:
    conditioner = make(optional=("goal",))
    unconditional = conditioner(cond.unconditional())
    assert torch.equal(unconditional, conditioner(tiny.moved(cond, goal=1.0).unconditional()))
    assert not torch.allclose(unconditional, conditioner(tiny.moved(cond, returns=1.0).unconditional()))
    torch.testing.assert_close(conditioner(replace(cond, goal=None)), unconditional)


@pytest.mark.parametrize("scales", [0, 1, 2])
@torch.no_grad()
def test_return_scales_hides_the_return_at_the_finer_scales(scales: int, cond: Cond) -> None:
    conditioner = make(return_scales=scales)
    before, after = conditioner(cond), conditioner(tiny.moved(cond, returns=1.0))
    assert before.shape[1] == 3
    assert torch.equal(before[:, scales:], after[:, scales:])
    assert not scales or (before[:, :scales] - after[:, :scales]).abs().amax(-1).min() > 1e-4


def test_an_unknown_field_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'return'"):
        make(fields=("state", "retrun"))


@pytest.mark.parametrize("scales", [-1, 99])
def test_no_more_scales_see_the_return_than_there_are(scales: int) -> None:
    with pytest.raises(ConfigError, match="return_scales is out of range"):
        tiny.planner(conditioner={"return_scales": scales})
