"""The way from a position to a goal, computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch

from trajgen.assemble import assemble
from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.data.options import DataOptions
from trajgen.nn.goals import NEAR, RelativeGoal

STATE = torch.tensor([[7.0, 1.0, -4.0, 2.0]])  # the position is (1, 2), its features the second and the last
GOAL = torch.tensor([[4.0, 6.0]])


def maps() -> Normalizer:
    normalizer = Normalizer(4, 2, 2)
    normalizer.state.mean, normalizer.state.scale = (
        torch.tensor([3.0, 0.5, 1.0, -1.0]),
        torch.tensor([9.0, 4.0, 7.0, 6.0]),
    )
    normalizer.goal.mean, normalizer.goal.scale = torch.tensor([2.0, 1.0]), torch.tensor([0.5, 3.0])
    return normalizer


def way(state: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    normalizer = maps()
    relative = RelativeGoal(2, (1, 3), normalizer, 4, frequencies=0)
    return relative(normalizer.goal(goal), normalizer.state(state))


def test_direction_and_logarithm_of_the_distance_in_deviations_of_the_positions() -> None:
    length = 5 / 5 + NEAR  # (3, 4), where the positions deviate by 5 in the mean
    expected = torch.tensor([[0.6 / length, 0.8 / length, math.log(length)]])
    torch.testing.assert_close(way(STATE, GOAL), expected)


def test_it_is_the_same_wherever_both_are_moved() -> None:
    moved = STATE + torch.tensor([[5.0, -2.0, 1.0, 3.0]])
    torch.testing.assert_close(way(moved, GOAL + torch.tensor([[-2.0, 3.0]])), way(STATE, GOAL))


def test_at_the_goal_it_has_no_direction() -> None:
    torch.testing.assert_close(way(STATE, STATE[:, [1, 3]]), torch.tensor([[0.0, 0.0, math.log(NEAR)]]))


def test_its_gradient_is_finite_at_the_goal() -> None:
    state = STATE.clone().requires_grad_()
    way(state, STATE[:, [1, 3]]).sum().backward()
    assert state.grad is not None and state.grad.isfinite().all()


def planner() -> Any:
    nodes = tiny.nodes(conditioner="fields", action={"name": "latent_state", "goal": True})
    return tiny.shake(assemble(nodes, tiny.SPACE, replace(tiny.WINDOW, relative_goals=True))).eval()


@torch.no_grad()
def test_a_conditioner_embeds_it_with_the_goal() -> None:
    conditioner, cond = planner().prior.conditioner, tiny.cond(3)
    for name in ("state", "goal"):  # what it reads beside the way
        silence(conditioner.embed[name])
    here, there = conditioner(cond), conditioner(moved(cond, state=1.0, goal=1.0))
    torch.testing.assert_close(there, here)
    assert ((conditioner(moved(cond, goal=1.0)) - here).abs().amax(-1) > 1e-4).all()
    assert torch.equal(conditioner(cond.unconditional()), conditioner(moved(cond, goal=1.0).unconditional()))


@torch.no_grad()
def test_a_head_reads_it_from_the_current_state() -> None:
    model = planner()
    head, plan, states = model.action, model.plan(tiny.cond(3)), tiny.cond(3).state.unsqueeze(1)
    for layer in (head.state_proj, head.goal_proj):
        silence(layer)
    offsets = torch.zeros(3, 1, dtype=torch.long)
    here, later = head(plan, states, offsets), replace(plan, goal=plan.goal + 1)
    torch.testing.assert_close(head(later, states + 1, offsets), here)
    assert ((head(later, states, offsets) - here).abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("name", ["hierarchy", "hiql"])
def test_a_low_level_whose_goals_are_whole_states_has_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "WINDOW", replace(tiny.WINDOW, relative_goals=True))
    hierarchy = {"name": "hierarchy", "segment": 4}
    model = tiny.hiql() if name == "hiql" else tiny.planner(conditioner="fields", planner=hierarchy)
    ways = {name for name, module in model.named_modules() if isinstance(module, RelativeGoal)}
    assert ways and not any(name.startswith("low.") for name in ways)
    for stage in filter(lambda each: each.parameters, model.stages()):
        assert all(loss.isfinite().all() for loss in stage.loss(tiny.batch(64)).values())


def silence(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        parameter.zero_()


def moved(cond: Any, **by: float) -> Any:
    return replace(cond, **{name: getattr(cond, name) + step for name, step in by.items()})


def test_it_is_refused_where_goals_are_no_features_of_the_state() -> None:
    with pytest.raises(ConfigError, match="relative_goals=true, goals of 2 numbers"):
        assemble(tiny.nodes(), tiny.SPACE, replace(tiny.WINDOW, goal_state=(), relative_goals=True))
    with pytest.raises(ConfigError, match="goal_state"):
        DataOptions(id="a/b-v0", goals="dataset", goal_key="desired_goal", relative_goals=True)


def test_it_is_refused_to_the_head_of_one_agent_and_not_to_the_team() -> None:
    window = replace(tiny.WINDOW, relative_goals=True)
    with pytest.raises(ConfigError, match=r"view=agents action\.goal=true"):
        assemble(tiny.nodes(view="agents", action={"goal": True}), tiny.SPACE, window)
    assert assemble(tiny.nodes(view="agents"), tiny.SPACE, window).prior.conditioner.relative_goal is not None
