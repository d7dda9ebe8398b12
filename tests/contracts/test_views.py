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
    given = {"state_dim": 4, "action_dim": 2, "goal_dim": 2, "stride": tiny.STRIDE, "goal_state": (0, 1)}
    given |= {"goal_state": options.pop("goal_state")} if "goal_state" in options else {}
    return build("view", tiny.node("view", name, **options), **given)


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


def test_a_place_is_what_goals_speak_of(batch: Batch) -> None:
    made = make(fields=("return", "position"), goal_state=(3, 1))
    x = made(batch)
    assert made.features == 3 and torch.equal(made.read(x, "position"), batch.states[..., [3, 1]])
    with pytest.raises(ConfigError, match=r"view\.fields=\['position'\]"):
        make(fields=("position",), goal_state=())


def test_an_unknown_field_or_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'state'"):
        make(fields=("stat",))
    with pytest.raises(ConfigError):
        make(fields=())
