"""Every registered critic; scores and lengths by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from accepts import cells, check_cell

from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.registry import build
from trajgen.core.types import Cond
from trajgen.critics.plans import PlanLength
from trajgen.critics.values import ExpectileValue


@cells("critic")
def test_contracts(name: str, words: str, advice: str) -> None:
    check_cell("critic", name, words, advice)


def test_the_length_of_a_plan_by_hand() -> None:
    """Two steps of 3 and 4 to the goal, what follows is not counted; of another plan, half of it and what is left."""
    normalizer = Normalizer(3, 1, 2)
    normalizer.state.scale.copy_(torch.tensor([1.0, 2.0, 5.0]))
    normalizer.goal.mean.copy_(torch.tensor([1.0, 0.0]))
    critic = PlanLength(2, (0, 1), 0.5, normalizer, detour=3.0)
    way = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0], [90.0, 4.0]])
    states = torch.cat([way / torch.tensor([1.0, 2.0]), torch.randn(4, 1)], dim=1).unsqueeze(0)
    cond = Cond(states[:, 0], torch.zeros(1), torch.tensor([[2.0, 4.0]]))  # the goal (3, 4)
    assert critic({"state": states}, cond).tolist() == pytest.approx([-7.0])
    assert critic({"state": states[:, :2]}, cond).tolist() == pytest.approx([-(3 + 3 * 3.5)])


def test_gains_that_no_step_can_bring_count_against_a_plan() -> None:
    """Values 1, 9, 10 at γ^M = 1/2: 0.5 · 9 is 3.5 more than 1, the second step gains nothing too much."""
    critic: Any = ExpectileValue(1, 0, 1, 1, (2,), 0.5**0.5, 1.0, Normalizer(1, 1), jump_weight=2.0)
    critic.value = lambda states, goals: states.squeeze(-1)
    states = torch.tensor([[[1.0], [9.0], [10.0]]])
    cond = Cond(states[:, 0], torch.zeros(1))
    assert critic({"state": states}, cond).tolist() == pytest.approx([20 / 3 - 2 * 3.5 / 2])
    critic.jump_weight = 0.0
    assert critic({"state": states}, cond).tolist() == pytest.approx([20 / 3])


def test_two_levels_weigh_by_what_the_value_gains() -> None:
    """Errors of subgoals and actions weigh exp(β A), A = V(s_k, g) - V(s, g), and V(s', s_k) - V(s, s_k) by hand.

    s' follows on the last step of the chunk up to the window's goal; what was done after the arrival does not count.
    """
    planner = tiny.hiql(beta=0.5)
    batch = tiny.batch(8, seed=3)
    batch = replace(batch, chunk_mask=torch.arange(4) < torch.tensor([4, 4, 3, 2, 1, 1, 4, 4]).unsqueeze(1))
    transitions = batch.transitions
    assert transitions is not None and batch.goals is not None

    def value(states: Any, goals: Any) -> Any:
        return -(states[..., :2] - goals).norm(dim=-1)

    planner.critic.value = value
    states, subgoals, goals = batch.states[:, 0], batch.states[:, 2], batch.goals
    offsets = torch.zeros(8, 1, dtype=torch.long)
    predicted = planner.high.action(planner.high.embed(batch.condition()), states.unsqueeze(1), offsets).squeeze(1)
    errors = (states + predicted - subgoals).square().mean(-1)
    weights = (0.5 * (value(subgoals, goals) - value(states, goals))).exp()
    losses = planner.high_loss(batch)
    torch.testing.assert_close(losses["total"], (weights * errors).mean())
    low_cond = replace(batch.condition(), goal=subgoals)
    actions = planner.low.action(planner.low.embed(low_cond), batch.chunk_states, torch.arange(4).expand(8, -1))
    errors = (actions - batch.chunk_actions).square().mean(-1)
    reached = torch.stack([transitions.next_states[row, last] for row, last in enumerate([3, 3, 2, 1, 0, 0, 3, 3])])
    weights = (0.5 * (value(reached, subgoals[:, :2]) - value(states, subgoals[:, :2]))).exp()
    total = (errors * weights.unsqueeze(1) * batch.chunk_mask).sum() / batch.chunk_mask.sum()
    torch.testing.assert_close(planner.low_loss(batch)["total"], total)
    plan = planner.plan(batch.condition())
    torch.testing.assert_close(plan.latent, planner.low.embed(replace(low_cond, goal=states + predicted)).latent)


OUT_OF_RANGE = [("expectile", 1.5), ("target_rate", -0.1), ("further_goals", -1), ("current_goals", 1.2),
                ("random_goals", 0.9)]  # fmt: skip


@pytest.mark.parametrize(("option", "value"), OUT_OF_RANGE)
def test_options_out_of_range_are_refused(option: str, value: Any) -> None:
    wiring = {"state_dim": 4, "goal_dim": 2, "action_dim": 2, "chunk": 4, "strides": (3,), "discount": 0.9,
              "goal_radius": None, "normalizer": Normalizer(4, 2, 2)}  # fmt: skip
    with pytest.raises(ConfigError, match=option) as caught:
        build("critic", {"name": "value", option: value}, **wiring)
    tiny.check_cure(caught.value)


def test_a_critic_trains_in_its_own_stage_on_transitions() -> None:
    planner = tiny.planner(sampler="best_of_n", critic="value")
    (stage,) = [stage for stage in planner.stages() if stage.name == "critic"]
    assert stage.transitions is not None and stage.transitions.goals == 1
    assert {*map(id, stage.trained)} == {*map(id, planner.critic.parameters())}
    untrained = tiny.planner(sampler="best_of_n")  # no critic is named: the plan's own return
    assert not [stage for stage in untrained.stages() if stage.name == "critic" and stage.parameters]


def test_a_way_beyond_the_plan_is_not_shorter_than_a_straight_line_backwards() -> None:
    with pytest.raises(ConfigError, match="detour is out of range"):
        tiny.planner(sampler="best_of_n", critic={"name": "length", "detour": -1.0})
