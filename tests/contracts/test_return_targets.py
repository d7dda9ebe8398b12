"""Every registered return target."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from kept import check_kept

from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.registry import build, names
from trajgen.return_targets import DEFAULT_TARGET


def make(name: str, normalizer: Normalizer | None = None, **options: Any) -> Any:
    wiring = {"normalizer": normalizer or Normalizer(4, 2, 2), "state_dim": 4, "action_dim": 2, "goal_dim": 2}
    return build("return_target", tiny.node("return_target", name, **options), **wiring, goal_state=(1, 3))


@pytest.mark.parametrize("words", ["mage", "bc", "dt", "diffuser"])
@pytest.mark.parametrize("name", names("return_target"))
def test_contracts_are_kept_in_every_composition(name: str, words: str) -> None:
    check_kept("return_target", name, words)


def test_a_constant_is_asked_for_at_first_and_then_what_remains_of_it() -> None:
    normalizer = Normalizer(4, 2, 2)
    normalizer.returns.mean.fill_(10.0)
    normalizer.returns.scale.fill_(4.0)
    made = make("constant", normalizer, value=30.0)
    asked = made(torch.zeros(3, 4), None, torch.tensor([torch.nan, 0.25, -1.0]))
    assert asked.tolist() == [5.0, 0.25, -1.0]  # (30 - 10) / 4
    assert not list(made.parameters())


def test_without_a_value_the_constant_is_ambitious_for_the_data() -> None:
    normalizer = Normalizer(4, 2, 2)
    normalizer.returns.mean.fill_(10.0)
    asked = make("constant", normalizer)(torch.zeros(2, 4), None, torch.tensor([torch.nan, 0.5]))
    assert asked.tolist() == [DEFAULT_TARGET, 0.5] and DEFAULT_TARGET > 1  # deviations above the mean


def test_the_pinball_loss_by_hand() -> None:
    made, known = make("quantile", quantile=0.9), tiny.batch()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
        made.network[-1].bias.fill_(0.5)
    error = known.returns[:, 0] - 0.5
    expected = torch.where(error > 0, 0.9 * error, -0.1 * error).mean()
    torch.testing.assert_close(made.loss(known)["quantile"], expected)


def test_a_quantile_by_place_looks_at_what_goals_speak_of_alone() -> None:
    everywhere, made = make("quantile"), make("quantile", position_only=True)
    state, goal, unknown = torch.randn(5, 4), torch.randn(5, 2), torch.full((5,), torch.nan)
    posed, moved = state.clone(), state.clone()
    posed[:, [0, 2]] += 1
    moved[:, 3] += 1
    assert torch.equal(made(posed, goal, unknown), made(state, goal, unknown))
    assert not torch.allclose(made(moved, goal, unknown), made(state, goal, unknown))
    assert not torch.allclose(everywhere(posed, goal, unknown), everywhere(state, goal, unknown))


def test_without_places_there_is_no_quantile_by_place() -> None:
    with pytest.raises(ConfigError, match=r"state features that goals specify[\s\S]*return_target.position_only=false"):
        build(
            "return_target",
            tiny.node("return_target", "quantile", position_only=True),
            state_dim=4,
            goal_dim=0,
            goal_state=(),
        )


def test_a_quantile_is_learnt() -> None:
    made, known = make("quantile", quantile=0.8), tiny.batch(1000)
    optimizer = torch.optim.Adam(made.parameters(), 0.01)
    known.states.zero_()
    known.goals.zero_()
    for _ in range(150):
        optimizer.zero_grad()
        made.loss(known)["quantile"].backward()
        optimizer.step()
    asked = made(known.states[:, 0], known.goals, torch.zeros(1000))
    share = (known.returns[:, 0] <= asked).float().mean()
    assert float(share) == pytest.approx(0.8, abs=0.04)


def test_the_best_is_a_quantile_of_all_returns_and_then_what_remains_of_it() -> None:
    made, known = make("best", quantile=0.9), tiny.batch(1000)
    optimizer = torch.optim.Adam(made.parameters(), 0.02)
    for _ in range(200):
        optimizer.zero_grad()
        made.loss(known)["quantile"].backward()
        optimizer.step()
    asked = made(known.states[:3, 0], None, torch.tensor([torch.nan, 0.25, torch.nan])).detach()
    assert asked[0] == asked[2] and float(asked[1]) == 0.25
    assert float((known.returns[:, 0] <= asked[0]).float().mean()) == pytest.approx(0.9, abs=0.03)


def test_a_quantile_that_is_spent_is_asked_for_at_first_and_then_what_remains_of_it() -> None:
    made = make("quantile", subtract_rewards=True)
    anew = make("quantile")
    anew.load_state_dict(made.state_dict())
    state, goal = torch.randn(3, 4), torch.randn(3, 2)
    remaining = torch.tensor([torch.nan, 0.25, -1.0])
    learnt, asked = anew(state, goal, remaining).detach(), made(state, goal, remaining).detach()
    assert asked.tolist() == [float(learnt[0]), 0.25, -1.0] and len(set(learnt.tolist())) == 3


@pytest.mark.parametrize("name", ["constant", "quantile", "best"])
def test_what_is_not_spent_is_asked_for_at_every_plan(name: str) -> None:
    made = make(name, tiny.planner().normalizer, subtract_rewards=False)
    asked = made(torch.zeros(3, 4), torch.zeros(3, 2), torch.tensor([torch.nan, 0.5, -4.0]))
    assert len(set(asked.tolist())) == 1 and asked.isfinite().all()


@pytest.mark.parametrize("name", ["quantile", "best"])
@pytest.mark.parametrize("quantile", [0.0, 1.0, -0.5])
def test_a_quantile_out_of_range_is_refused(name: str, quantile: float) -> None:
    with pytest.raises(ConfigError):
        make(name, quantile=quantile)
