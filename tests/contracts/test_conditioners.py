"""Every registered conditioner: what is given, what is withheld, and at which scale."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from kept import check_kept

from trajgen.core.errors import ConfigError
from trajgen.core.registry import build, names
from trajgen.core.types import Cond

CONDITIONERS = names("conditioner")


def make(name: str = "fields", **options: Any) -> Any:
    wiring = {"schedule": tiny.schedule("geometric"), "state_dim": 4, "action_dim": 2, "goal_dim": 2}
    return tiny.shake(build("conditioner", tiny.node("conditioner", name, **options), **wiring)).eval()


@pytest.mark.parametrize("words", ["mage", "flat_ar", "bc", "mage conditioner.return_scales=1"])
@pytest.mark.parametrize("name", CONDITIONERS)
def test_contracts_are_kept_in_every_composition(name: str, words: str) -> None:
    check_kept("conditioner", name, words)


@pytest.mark.parametrize("name", CONDITIONERS)
@torch.no_grad()
def test_an_embedding_per_scale_or_one_for_all(name: str, cond: Cond) -> None:
    made = make(name)
    embedded = made(cond)
    assert embedded.shape in {(6, tiny.schedule("geometric").scales, made.width), (6, 1, made.width)}
    for field in ("state", "returns"):
        assert not torch.allclose(made(tiny.moved(cond, **{field: 1.0})), embedded)


@torch.no_grad()
def test_dropout_withholds_in_training_alone() -> None:
    made, known = make(dropout=0.5), tiny.cond(400)
    given, withheld = made(known), made(known.unconditional())
    assert torch.equal(given, made(known))
    made.train()
    drawn = made(known)
    as_given = (drawn - given).abs().amax((1, 2)) < 1e-6
    as_withheld = (drawn - withheld).abs().amax((1, 2)) < 1e-6
    assert (as_given ^ as_withheld).all()  # whole windows, one way or the other
    assert 0.4 < float(as_withheld.float().mean()) < 0.6


@torch.no_grad()
def test_withheld_fields_are_replaced_by_their_missing_vectors(cond: Cond) -> None:
    made = make()
    known = made.embed["state"](cond.state)
    by_hand = made.mix(known + made.missing["return"] + made.missing["goal"])
    torch.testing.assert_close(made(cond.unconditional())[:, 0], by_hand)


@torch.no_grad()
def test_only_optional_fields_are_withheld(cond: Cond) -> None:
    made = make(optional=("goal",)).eval()
    withheld = made(cond.unconditional())
    assert torch.equal(withheld, made(tiny.moved(cond, goal=1.0).unconditional()))
    assert not torch.allclose(withheld, made(tiny.moved(cond, returns=1.0).unconditional()))


@pytest.mark.parametrize("scales", [0, 1, 2])
@torch.no_grad()
def test_return_scales_hides_the_return_at_the_finer_scales(scales: int, cond: Cond) -> None:
    made = make(return_scales=scales)
    before, after = made(cond), made(tiny.moved(cond, returns=1.0))
    assert before.shape[1] == 3
    assert torch.equal(before[:, scales:], after[:, scales:])
    assert not scales or (before[:, :scales] - after[:, :scales]).abs().amax(-1).min() > 1e-4


@torch.no_grad()
def test_a_missing_goal_is_a_withheld_one(cond: Cond) -> None:
    made = make(optional=("goal",))
    torch.testing.assert_close(made(replace(cond, goal=None)), made(cond.unconditional()))


def test_an_unknown_field_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'return'"):
        make(fields=("state", "retrun"))
