"""Every registered view."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from accepts import cells, check_cell

from trajgen.core.errors import ConfigError
from trajgen.core.registry import build
from trajgen.core.types import Batch


@cells("view")
def test_contracts(name: str, words: str, advice: str) -> None:
    check_cell("view", name, words, advice)


def make(*fields: str, goal_state: tuple[int, ...] = (0, 1)) -> Any:
    wiring = {"state_dim": 4, "action_dim": 2, "strides": (tiny.STRIDE,), "goal_state": goal_state}
    return build("view", tiny.node("view", "fields", fields=fields), **wiring)


def test_fields_are_concatenated_in_their_order(batch: Batch) -> None:
    view = make("action", "return", "state", "reward", "terminal", "position", goal_state=(3, 1))
    x, position = view(batch), batch.states[..., [3, 1]]
    assert batch.terminals is not None
    columns = [batch.actions.flatten(2), batch.returns[..., None], batch.states, batch.rewards[..., None]]
    columns += [batch.terminals[..., None].float(), position]
    assert view.features == x.shape[-1] == 15 and torch.equal(x, torch.cat(columns, -1))
    assert torch.equal(view.read(x, "position"), position)


@pytest.mark.parametrize(
    ("fields", "goal_state", "message"),
    [
        (("stat",), (0, 1), "did you mean 'state'"),
        ((), (0, 1), "view.fields"),
        (("position",), (), r"view\.fields=\['position'\]"),
        (("state", "return", "state"), (0, 1), r"view\.fields=\[state,return\]"),
    ],
)
def test_unknown_fields_are_refused(fields: tuple[str, ...], goal_state: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(*fields, goal_state=goal_state)
