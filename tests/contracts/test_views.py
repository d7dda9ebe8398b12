"""Every registered view."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from kept import check_kept

from trajgen.core.errors import ConfigError
from trajgen.core.registry import build, names
from trajgen.core.types import Batch


def make(name: str = "fields", **options: Any) -> Any:
    return build("view", tiny.node("view", name, **options), state_dim=4, action_dim=2, goal_dim=2, stride=tiny.STRIDE)


@pytest.mark.parametrize("words", ["mage", "tap", "diffuser", "mage view.fields=[action,reward,state]"])
@pytest.mark.parametrize("name", names("view"))
def test_contracts_are_kept_in_every_composition(name: str, words: str) -> None:
    check_kept("view", name, words)


def test_fields_lie_in_the_order_asked_for(batch: Batch) -> None:
    made = make(fields=("action", "return", "state", "reward"))
    x = made(batch)
    assert made.features == 12
    expected = {
        "action": batch.actions.flatten(2), "return": batch.returns[..., None], "state": batch.states,
        "reward": batch.rewards[..., None],
    }  # fmt: skip
    for name, values in expected.items():
        assert torch.equal(made.read(x, name), values)
    assert torch.equal(x, torch.cat(list(expected.values()), -1))
    assert make(fields=("state",)).read(x, "return") is None


def test_an_unknown_field_or_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'state'"):
        make(fields=("stat",))
    with pytest.raises(ConfigError):
        make(fields=())
