"""The receding-horizon policy by hand: its clock, its books, its batches. The planner is a stand-in."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

from trajgen.core.errors import ConfigError, TrajgenError
from trajgen.core.normalizer import Normalizer
from trajgen.core.types import Cond, Plan, Space
from trajgen.policies.options import PolicyOptions
from trajgen.policies.receding_horizon import RecedingHorizonPolicy
from trajgen.return_targets import ConstantTarget


class Planner(nn.Module):
    """Numbers its plans, remembers what was asked, and acts (number of the plan, offset into it)."""

    def __init__(self, normalizer: Normalizer, value: float = 10.0, history: int = 0) -> None:
        super().__init__()
        self.history = history
        self.weight = nn.Parameter(torch.zeros(1))
        self.return_target = ConstantTarget(normalizer, value=value)
        self.conds: list[Cond] = []

    def plan(self, cond: Cond, rng: torch.Generator | None = None, *, decode: bool = True) -> Plan:
        self.conds.append(cond)
        number = torch.full((len(cond), 1, 1), float(len(self.conds)))
        return Plan(number[:, 0].long(), number, torch.zeros(len(cond), 2, 3) if decode else None)

    def refinements(self, plan: Plan, cond: Cond) -> dict[str, Tensor]:
        return {"all": torch.zeros(len(cond), 2, 3)}

    def action(self, plan: Plan, states: Tensor, offsets: Tensor) -> Tensor:
        return torch.cat([plan.latent, offsets.unsqueeze(-1).float()], dim=-1)


def policy(
    space: Space | None = None,
    *,
    replan_interval: Any = 2,
    discount: float = 0.5,
    history: int = 0,
    replan_on_new_goal: bool = True,
) -> RecedingHorizonPolicy:
    space = space or Space(state_dim=3, action_dim=2)
    normalizer = Normalizer(space.state_dim, space.action_dim, space.goal_dim)
    options = PolicyOptions(replan_interval=replan_interval, replan_on_new_goal=replan_on_new_goal)
    planner = Planner(normalizer, history=history)
    return RecedingHorizonPolicy(planner, normalizer, space, options, discount=discount, chunk=4)


def test_a_plan_is_followed_for_as_long_as_asked() -> None:
    acting = policy(replan_interval=3)
    acting.reset()
    acted = [acting.act(np.zeros(3)).tolist() for _ in range(7)]
    assert acted == [[1, 0], [1, 1], [1, 2], [2, 0], [2, 1], [2, 2], [3, 0]]


class WholePlans:
    """An action head that follows a plan to its end: acts (number of the plan, offset into it)."""

    plan_steps = 5

    def __call__(self, plan: Plan, states: Tensor, offsets: Tensor) -> Tensor:
        return torch.cat([plan.latent, offsets.unsqueeze(-1).float()], dim=-1)


def test_a_plan_is_followed_to_its_end_and_no_further() -> None:
    head = policy(replan_interval="plan")  # trained at 4 steps
    assert head.replan_interval == 4
    planner = head.planner
    planner.action = WholePlans()
    space, options = head.space, PolicyOptions(replan_interval="plan")
    acting = RecedingHorizonPolicy(planner, head.normalizer, space, options, discount=1.0, chunk=4)
    acting.reset()
    acted = [acting.act(np.zeros(3)).tolist() for _ in range(7)]
    assert acted == [[1, 0], [1, 1], [1, 2], [1, 3], [1, 4], [2, 0], [2, 1]]
    with pytest.raises(ConfigError, match="1 to 5, the length of a plan") as caught:
        PolicyOptions(replan_interval=6).steps(planner, 4)
    assert caught.value.fix == "policy.replan_interval=5"


def test_a_plan_of_places_is_held_against_the_place_that_was_asked_for() -> None:
    planner = tiny.planner(view={"name": "fields", "fields": ("return", "position")})
    planner.normalizer.state.mean.copy_(torch.arange(4.0))
    planner.normalizer.state.scale.copy_(torch.tensor([2.0, 4.0, 1.0, 1.0]))
    options = PolicyOptions(replan_interval=1)
    acting = RecedingHorizonPolicy(planner, planner.normalizer, tiny.SPACE, options, discount=1.0, chunk=tiny.CHUNK)
    cond = tiny.batch().condition()
    trajectory = torch.zeros(len(cond), tiny.HORIZON, 3)
    trajectory[:, 0, 1:] = cond.state[:, :2] + torch.tensor([3.0, 4.0])
    trajectory[:, 0, 0] = cond.returns
    plan = planner.plan(cond, decode=False)
    errors = acting.condition_error(cond, replace(plan, trajectory=trajectory))
    assert "state" not in errors and errors["return"] == 0
    assert errors["position"] == pytest.approx(math.sqrt((9 + 16) / 2))
    assert errors["position_units"] == pytest.approx(math.sqrt((36 + 256) / 2), rel=1e-5)


def test_rewards_are_taken_off_what_was_asked() -> None:
    acting = policy(replan_interval=2, discount=0.5)
    acting.reset()
    for reward in (1.0, 2.0):
        acting.act(np.zeros(3))
        acting.observe(reward, False)
    acting.act(np.zeros(3))
    assert [float(cond.returns[0]) for cond in acting.planner.conds] == [10.0, ((10 - 1) / 0.5 - 2) / 0.5]


def test_each_environment_of_a_batch_has_its_own_clock() -> None:
    acting = policy(replan_interval=4)
    acting.reset(batch=3)
    assert acting.act(np.zeros((3, 3))).shape == (3, 2)
    acting.observe(np.ones(3), np.array([False, True, False]))
    states = np.arange(9.0).reshape(3, 3)
    second = acting.act(states)
    assert second.tolist() == [[1, 1], [2, 0], [1, 1]]  # the one that was done plans anew, the others go on
    replanned = acting.planner.conds[1]
    assert replanned.state.tolist() == [[3.0, 4.0, 5.0]] and replanned.returns.tolist() == [10.0]
    acting.reset(ids=[0])
    assert acting.act(states).tolist() == [[3, 0], [2, 1], [1, 2]]


def test_a_first_plan_made_later_does_not_touch_the_books_of_others() -> None:
    acting = policy(replan_interval=2, discount=1.0)
    acting.reset(batch=2)
    acting.act(np.zeros((2, 3)))
    acting.observe(np.array([4.0, 4.0]), np.array([False, True]))
    acting.act(np.zeros((2, 3)))
    acting.observe(np.array([1.0, 1.0]), np.array([False, False]))
    acting.act(np.zeros((2, 3)))
    assert acting.planner.conds[-1].returns.tolist() == [10.0 - 4.0 - 1.0]


def test_actions_are_in_the_worlds_units_and_bounds() -> None:
    acting = policy(Space(state_dim=3, action_dim=2, action_low=(-1.0, -1.0), action_high=(4.0, 1.0)))
    acting.normalizer.action.scale.copy_(torch.tensor([2.0, 5.0]))
    acting.normalizer.action.mean.copy_(torch.tensor([0.5, 0.0]))
    acting.reset()
    acting.act(np.zeros(3))
    assert acting.act(np.zeros(3)).tolist() == [2.5, 1.0]  # 1·2 + 0.5, and 1·5 clipped


def test_a_choice_is_the_likeliest_one_also_where_scores_lie_beyond_the_bounds() -> None:
    space = Space(state_dim=3, action_dim=2, choices=(2,), action_low=(0.0, 0.0), action_high=(1.0, 1.0))
    acting = policy(space, replan_interval=3)
    acting.reset()
    assert [int(acting.act(np.zeros(3))) for _ in range(3)] == [0, 0, 1]  # of the scores (1, 0), (1, 1) and (1, 2)


GOALS = Space(state_dim=3, action_dim=2, goal_dim=2, state_key="observation", goal_key="desired_goal")


@pytest.mark.parametrize(
    ("replans", "acted"), [(True, [[1, 0], [1, 1], [2, 0], [2, 1]]), (False, [[1, 0], [1, 1], [1, 2], [1, 3]])]
)
def test_a_new_goal_is_planned_for_at_once(replans: bool, acted: list[list[float]]) -> None:
    """Of two episodes the goal of the first one changes; the environment goes on with the array that it gave."""
    acting = policy(GOALS, replan_interval=4, replan_on_new_goal=replans)
    acting.reset(batch=2)
    observation = {"observation": np.zeros((2, 3)), "desired_goal": np.zeros((2, 2), np.float32)}
    actions = []
    for step in range(4):
        observation["desired_goal"][0] = float(step >= 2)
        actions.append(acting.act(observation))
        acting.observe(np.zeros(2), np.zeros(2, bool))
    assert np.array(actions)[:, 0].tolist() == acted
    assert np.array(actions)[:, 1].tolist() == [[1, 0], [1, 1], [1, 2], [1, 3]]
    assert [len(cond) for cond in acting.planner.conds] == ([2, 1] if replans else [2])


def test_goals_are_read_from_dictionaries() -> None:
    acting = policy(GOALS)
    acting.normalizer.goal.mean.copy_(torch.tensor([1.0, 0.0]))
    acting.reset()
    acting.act({"observation": np.zeros(3), "desired_goal": np.array([3.0, 4.0]), "achieved_goal": np.zeros(2)})
    goal = acting.planner.conds[0].goal
    assert goal is not None and goal.tolist() == [[2.0, 4.0]]


def test_looking_at_plans_changes_nothing() -> None:
    acting = policy(replan_interval=2)
    acting.reset()
    acting.act(np.zeros(3))
    acting.preview([np.ones(3)] * 5, returns=3.0)
    assert acting.planner.conds[-1].returns.tolist() == [3.0] * 5
    assert acting.act(np.zeros(3)).tolist() == [1, 1]


@pytest.mark.parametrize("replan_interval", [0, 5])
def test_a_plan_is_not_followed_for_longer_than_the_head_can(replan_interval: int) -> None:
    with pytest.raises(ConfigError, match=f"policy.replan_interval={replan_interval}"):
        policy(replan_interval=replan_interval)


def test_a_planner_that_continues_a_history_is_given_it() -> None:
    acting = policy(replan_interval=1, discount=1.0, history=3)
    acting.normalizer.action.mean.fill_(0.5)  # actions are noted as the model sees them: of what was done, less 0.5
    acting.reset(batch=2)
    for step in range(4):
        acting.act(np.full((2, 3), step, dtype=np.float32))
        acting.observe(np.full(2, step), np.array([False, step == 2]))
    past = acting.planner.conds[-1].past
    assert past.states[..., 0].tolist() == [[1, 2, 3], [1, 2, 3]]
    assert past.mask.tolist() == [[True, True, True], [False, False, True]]  # the second episode has just begun
    assert past.actions[0, :2, 0].tolist() == [[2.0, 0.0], [3.0, 0.0]]
    assert past.rewards[0, :2].tolist() == [1, 2]
    assert past.returns[:, :2].tolist() == [[10, 9], [10, 9]]  # what was left of the first target
    assert acting.planner.conds[-1].returns.tolist() == [7, 10]
    assert past.time.tolist() == [1, -2]
    assert acting.planner.conds[-1].time.tolist() == [3, 0]


def test_a_history_goes_on_while_a_plan_is_followed() -> None:
    """The second episode begins at step 3, and plans there and two steps later; the first plans at steps 0, 2 and 4."""
    acting = policy(replan_interval=2, discount=1.0, history=3)
    acting.reset(batch=2)
    for step in range(5):
        acting.act(np.full((2, 3), step, dtype=np.float32))
        acting.observe(np.full(2, step), np.array([False, step == 2]))
    of_both, second, first = (cond.past for cond in acting.planner.conds[-3:])
    assert of_both.states[..., 0].tolist() == [[0, 1, 2], [0, 1, 2]]
    assert second.states[..., 0].tolist() == [[1, 2, 3]] and second.mask.tolist() == [[False, False, True]]
    assert first.states[..., 0].tolist() == [[2, 3, 4]] and first.mask.all()
    assert first.actions[0, :2, 0].tolist() == [[2, 0], [2, 1]] and first.rewards[0, :2].tolist() == [2, 3]
    assert first.returns[0, :2].tolist() == [9, 0]  # no target at step 3, which made no plan


def test_without_a_history_none_is_kept() -> None:
    acting = policy()
    acting.reset()
    acting.act(np.zeros(3))
    assert acting.planner.conds[-1].past is None


def test_noise_is_that_of_the_seed_and_of_what_is_added_to_it() -> None:
    def drawn(seed: int, offset: int | None) -> Tensor:
        acting = policy()
        acting.options = replace(acting.options, seed=seed)
        acting.reset(batch=2)
        if offset is not None:
            acting.seed_noise(offset)
        generators: list[torch.Generator | None] = []
        plan = acting.planner.plan
        acting.planner.plan = lambda cond, rng=None, **how: (generators.append(rng), plan(cond, rng, **how))[1]
        acting.act(np.zeros((2, 3)))
        return torch.rand(4, generator=generators[0])

    torch.testing.assert_close(drawn(7, 64), drawn(71, None), rtol=0, atol=0)
    torch.testing.assert_close(drawn(7, 0), drawn(7, None), rtol=0, atol=0)
    assert not torch.equal(drawn(7, 0), drawn(7, 64))


@pytest.mark.parametrize("choices", [(), (2,)])
def test_an_action_that_is_not_finite_is_refused(choices: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    acting = policy(Space(state_dim=3, action_dim=2, choices=choices))
    acting.reset(batch=2)
    acting.act(np.zeros((2, 3)))
    monkeypatch.setattr(acting.planner, "action", lambda *_: torch.tensor([[[0.0, 1.0]], [[torch.nan, 1.0]]]))
    with pytest.raises(TrajgenError, match="an action that is not finite"):
        acting.act(np.zeros((2, 3)))
