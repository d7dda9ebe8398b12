"""Every registered return target."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from accepts import cells, check_cell
from torch import Tensor

from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.registry import build
from trajgen.core.types import USUAL_RETURNS
from trajgen.return_targets import DEFAULT_TARGET

FIRST = torch.nan
"""What remains at an episode's first plan."""


@cells("return_target")
def test_contracts(name: str, words: str, advice: str) -> None:
    check_cell("return_target", name, words, advice)


def make(name: str, *, goal_state: tuple[int, ...] = (1, 3), **options: Any) -> Any:
    """A return target of data with returns of mean 10 and deviation 4."""
    normalizer = Normalizer(4, 2, 2)
    normalizer.returns.mean.fill_(10.0)
    normalizer.returns.scale.fill_(4.0)
    wiring = {"normalizer": normalizer, "state_dim": 4, "action_dim": 2, "goal_dim": 2, "goal_state": goal_state}
    wiring |= {"return_range": USUAL_RETURNS}
    return build("return_target", tiny.node("return_target", name, **options), **wiring)


@pytest.mark.parametrize(("options", "expected"), [({"value": 30.0}, (30 - 10) / 4), ({}, DEFAULT_TARGET)])
def test_a_constant_is_the_first_target_and_then_what_remains_of_it(options: dict[str, float], expected: float) -> None:
    target = make("constant", **options)
    assert target(torch.zeros(3, 4), None, torch.tensor([FIRST, 0.25, -1.0])).tolist() == [expected, 0.25, -1.0]
    assert not list(target.parameters()) and expected > 1  # deviations above the mean


def test_the_pinball_loss_by_hand() -> None:
    target, batch = make("quantile", quantile=0.9, num_bins=0), tiny.batch()
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.zero_()
        target.network[-1].bias.fill_(0.5)
    error = batch.returns[:, 0] - 0.5
    expected = torch.where(error > 0, 0.9 * error, -0.1 * error).mean()
    torch.testing.assert_close(target.loss(batch)["quantile"], expected)


@torch.no_grad()
def test_a_quantile_by_position_ignores_the_other_features_of_the_state() -> None:
    target, by_position = make("quantile"), make("quantile", position_only=True)
    state, goal, first = torch.randn(5, 4), torch.randn(5, 2), torch.full((5,), FIRST)

    def is_same(target: Any, *columns: int) -> bool:
        moved = state.clone()
        moved[:, columns] += 1
        return torch.allclose(target(moved, goal, first), target(state, goal, first))

    assert is_same(by_position, 0, 2) and not is_same(by_position, 3) and not is_same(target, 0, 2)
    with pytest.raises(ConfigError, match=r"return_target.position_only=false"):
        make("quantile", position_only=True, goal_state=())


@pytest.mark.parametrize("options", [{"quantile": 0.8, "num_bins": 0}, {"num_bins": 41}])
def test_a_quantile_is_learnt(options: dict[str, Any]) -> None:
    target, batch = make("quantile", **options), tiny.batch(1000)
    batch.states.zero_()
    batch.goals.zero_()
    optimizer = torch.optim.Adam(target.parameters(), 0.01)
    for _ in range(200):
        optimizer.zero_grad()
        sum(target.loss(batch).values()).backward()
        optimizer.step()
    for level in (0.5, 0.9) if options.get("num_bins") else (options["quantile"],):
        if options.get("num_bins"):  # a distribution has all of them
            target.quantile = level
        returns = target(batch.states[:, 0], batch.goals, torch.full((1000,), FIRST))
        assert float((batch.returns[:, 0] <= returns).float().mean()) == pytest.approx(level, abs=0.04)


def test_the_best_return_is_a_quantile_of_the_data() -> None:
    normalizer = Normalizer(4, 2, 2)
    target = build("return_target", {"name": "best", "quantile": 0.9}, normalizer=normalizer)
    returns = torch.randn(5000, 1, generator=torch.Generator().manual_seed(0)).exp()
    normalizer.returns.fit(returns)
    first = target(torch.zeros(1, 4), None, torch.full((1,), FIRST))
    assert float((returns <= normalizer.returns.inverse(first)).float().mean()) == pytest.approx(0.9, abs=1e-3)
    target.quantile = 0.5  # of a trained run as well
    assert float(target(torch.zeros(1, 4), None, torch.full((1,), FIRST))) < float(first)


def test_the_bins_cover_the_range_of_the_returns() -> None:
    wide, usual = (
        build(
            "return_target",
            {"name": "quantile", "num_bins": 41, "quantile": 0.5},
            state_dim=4,
            goal_dim=0,
            goal_state=(),
            return_range=return_range,
        )
        for return_range in ((-20.0, 4.0), USUAL_RETURNS)
    )
    state, returns = torch.zeros(1, 4), torch.full((1, 1), -17.0)
    batch = tiny.batch(1)
    batch.states.zero_()
    for target, expected in ((wide, -17.0), (usual, -4.0)):
        optimizer = torch.optim.Adam(target.parameters(), 0.01)
        for _ in range(100):
            optimizer.zero_grad()
            sum(target.loss(replace(batch, goals=None, returns=returns)).values()).backward()
            optimizer.step()
        assert float(target(state, None, torch.full((1,), FIRST))) == pytest.approx(expected, abs=0.5)


@torch.no_grad()
def test_rewards_are_subtracted_from_the_first_target() -> None:
    spent, fresh = make("quantile", subtract_rewards=True), make("quantile")
    fresh.load_state_dict(spent.state_dict())
    inputs: tuple[Tensor, ...] = (torch.randn(3, 4), torch.randn(3, 2), torch.tensor([FIRST, 0.25, -1.0]))
    learnt = fresh(*inputs).tolist()
    assert spent(*inputs).tolist() == [learnt[0], 0.25, -1.0] and len(set(learnt)) == 3
    best = make("best")(*inputs).tolist()
    assert best[1:] == [0.25, -1.0]


@pytest.mark.parametrize("name", ["constant", "quantile", "best"])
def test_without_subtracting_rewards_every_plan_has_the_same_target(name: str) -> None:
    returns = make(name, subtract_rewards=False)(torch.zeros(3, 4), torch.zeros(3, 2), torch.tensor([FIRST, 0.5, -4.0]))
    assert len(set(returns.tolist())) == 1 and returns.isfinite().all()


@pytest.mark.parametrize("name", ["quantile", "best"])
@pytest.mark.parametrize("quantile", [0.0, 1.0, -0.5])
def test_a_quantile_out_of_range_is_refused(name: str, quantile: float) -> None:
    with pytest.raises(ConfigError):
        make(name, quantile=quantile)
