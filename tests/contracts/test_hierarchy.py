"""The planner of two planners: what each sees, and how their plans are joined."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch

from trajgen.assemble import assemble
from trajgen.core.errors import ConfigError
from trajgen.core.types import Batch, Cond, Plan

SEGMENT = 4
LEGS = tiny.HORIZON // SEGMENT


def build(chunk: int = tiny.CHUNK, **swaps: Any) -> Any:
    torch.manual_seed(0)
    planner = {"name": "hierarchy", "segment": SEGMENT, **swaps.pop("planner", {})}
    return assemble(tiny.nodes(planner=planner, **swaps), tiny.SPACE, replace(tiny.WINDOW, chunk=chunk))


@pytest.fixture
def planner() -> Any:
    """A hierarchy with perturbed weights, each stage of which has seen a batch."""
    planner = tiny.shake(build(sampler="greedy"))
    for stage in planner.stages():
        if stage.parameters:
            stage.begin(planner)
            stage.loss(tiny.batch(64))
    return planner.eval()


def test_the_high_level_sees_every_nth_point(planner: Any, batch: Batch) -> None:
    high = planner._high_batch(batch)
    assert torch.equal(high.states, batch.states[:, ::SEGMENT])
    assert torch.equal(high.returns, batch.returns[:, ::SEGMENT])
    assert high.actions.shape == (6, LEGS, SEGMENT * tiny.STRIDE, 2)
    assert torch.equal(high.actions[:, 1, : tiny.STRIDE], batch.actions[:, SEGMENT])
    assert torch.equal(high.goals, batch.goals)


def test_the_high_level_sums_up_rewards_and_legs_begin_one_after_the_other(
    planner: Any, batch: Batch, cond: Cond, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = planner.normalizer.reward
    monkeypatch.setattr(reward, "mean", torch.tensor([0.3]))
    monkeypatch.setattr(reward, "scale", torch.tensor([2.0]))
    sums = reward.inverse(batch.rewards).unflatten(1, (LEGS, SEGMENT)).sum(2)
    torch.testing.assert_close(reward.inverse(planner._high_batch(batch).rewards), sums)
    conds: list[Cond] = []
    make = planner.low.plan
    monkeypatch.setattr(
        planner.low, "plan", lambda of_legs, *a, **k: (conds.append(of_legs), make(of_legs, *a, **k))[1]
    )
    planner.plan(cond)
    steps = torch.arange(LEGS - 1) * SEGMENT * tiny.STRIDE
    assert torch.equal(conds[0].time.view(len(cond), -1), cond.time.unsqueeze(1) + steps)


def test_the_low_level_pursues_the_state_at_the_next_subgoal(planner: Any, batch: Batch) -> None:
    low = planner._low_batch(batch)
    assert torch.equal(low.goals, batch.states[:, SEGMENT]) and torch.equal(low.states, batch.states[:, :SEGMENT])
    assert torch.equal(low.chunk_states, batch.chunk_states)


def test_each_level_sees_all_that_a_point_has(batch: Batch) -> None:
    """Every tensor of T points has as many as the level; its view reads them."""
    planner = build(view={"fields": ("state", "action", "reward", "return", "terminal")})
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    of_points = {name for name, value in tensors.items() if value.shape[1:2] == (tiny.HORIZON,)}
    assert of_points == {"states", "actions", "rewards", "returns", "mask", "terminals"}
    levels = (
        (planner.high, planner._high_batch(batch), batch.terminals[:, ::SEGMENT]),
        (planner.low, planner._low_batch(batch), batch.terminals[:, :SEGMENT]),
    )
    for level, level_batch, terminals in levels:
        assert all(getattr(level_batch, name).shape[1] == terminals.shape[1] for name in of_points)
        assert torch.equal(level.view(level_batch)[..., -1] > 0, terminals)


def test_an_overlapping_plan_ends_at_the_subgoal(batch: Batch) -> None:
    swaps: dict[str, Any] = {"tokenizer": {"name": "identity", "inpaint_goal": True}, "decoder": "identity"}
    planner = build(planner={"overlap": True}, schedule="single", sampler="greedy", **swaps)
    low = planner._low_batch(batch)
    assert low.states.shape[1] == SEGMENT + 1 and torch.equal(low.states[:, -1], low.goals)
    known_codes = planner.low.tokenizer.known_codes(low.condition())
    last = known_codes.into(torch.zeros_like(known_codes.codes))[:, -1]
    torch.testing.assert_close(planner.low.view.read(last, "state"), low.goals)  # the same units at both levels


def test_weights_are_not_shared_and_stages_take_turns(planner: Any) -> None:
    level = ["tokenizer", "return_target", "prior", "action"]
    stages = planner.stages()
    assert [stage.name for stage in stages] == [f"{each}_{stage}" for each in ("high", "low") for stage in level]
    assert [stage.options_of for stage in stages] == level * 2
    high, low = ({id(p) for p in part.parameters()} for part in (planner.high, planner.low))
    assert high and low and not high & low
    assert not stages[5].parameters  # the high level alone has a return target


@torch.no_grad()
def test_a_head_that_is_lost_before_a_leg_ends_needs_the_first_leg_alone(planner: Any, cond: Cond) -> None:
    chain, first_leg = planner.plan(cond), planner.plan(cond, decode=False)
    assert planner.action.plan_steps == tiny.CHUNK < SEGMENT * tiny.STRIDE
    torch.testing.assert_close(chain.latent[:, : first_leg.latent.shape[1]], first_leg.latent)
    assert first_leg.trajectory is None and chain.trajectory.shape == (6, tiny.HORIZON, 5)
    states, offsets = torch.randn(6, tiny.CHUNK, 4), torch.arange(tiny.CHUNK).expand(6, -1)
    actions = planner.action(chain, states, offsets)
    torch.testing.assert_close(actions, planner.action(first_leg, states, offsets))
    torch.testing.assert_close(actions, planner.low.action(first_leg, states, offsets))
    refined = planner.refinements(chain, cond)
    assert list(refined) == [f"{LEGS} subgoals", "in detail"]
    assert all(x.shape == chain.trajectory.shape for x in refined.values())


DIFFUSION: dict[str, Any] = {
    "view": {"fields": ("state",)},
    "tokenizer": {"name": "identity", "inpaint_goal": True},
    "prior": {"name": "diffusion", "width": 16, "depth": 1, "timesteps": 4},
    "sampler": {"name": "diffusion", "steps": 2},
    "schedule": "single",
    "decoder": "identity",
}


@torch.no_grad()
@pytest.mark.parametrize(
    ("swaps", "chunk"),
    [({"planner": {"overlap": True}, "action": "state", **DIFFUSION}, 1), ({"action": "latent_state"}, SEGMENT)],
)
def test_a_plan_is_the_chain_of_all_legs_and_is_followed_leg_by_leg(
    swaps: dict[str, Any], chunk: int, cond: Cond
) -> None:
    planner = tiny.shake(build(chunk * tiny.STRIDE, **swaps)).eval()
    leg_steps, legs = SEGMENT * tiny.STRIDE, LEGS - 1
    assert planner.action.plan_steps == legs * leg_steps
    plan = planner.plan(cond, decode=False)
    state = torch.randn(6, 1, 4)
    for leg in range(legs):
        steps = leg * leg_steps + 5
        leg_plan = Plan(
            *(part.unflatten(1, (legs, -1))[:, leg] for part in (plan.codes, plan.latent)),
            None if plan.trajectory is None else plan.trajectory[:, leg * SEGMENT :][:, : SEGMENT + 1],
        )
        expected = planner.low.action(leg_plan, state, torch.full((6, 1), 5))
        torch.testing.assert_close(planner.action(plan, state, torch.full((6, 1), steps)), expected)


@torch.no_grad()
def test_legs_that_overlap_meet_at_the_subgoals_and_end_at_the_goal(cond: Cond) -> None:
    planner = tiny.shake(build(planner={"overlap": True}, action="state", **DIFFUSION)).eval()
    plan = planner.plan(cond)
    last = (LEGS - 1) * SEGMENT
    goal = planner.high.tokenizer.known_codes(cond).codes[:, -1, :2]  # in units of the state
    torch.testing.assert_close(plan.trajectory[:, last, :2], goal)
    torch.testing.assert_close(plan.trajectory[:, 0], cond.state)
    assert torch.equal(
        plan.trajectory[:, last:], plan.trajectory[:, last : last + 1].expand(-1, tiny.HORIZON - last, -1)
    )
    late, end = (planner.action(plan, cond.state.unsqueeze(1), torch.full((6, 1), n)) for n in (10**6, 10**6 + 1))
    assert late.isfinite().all() and end.isfinite().all()


@torch.no_grad()
def test_the_subgoal_reaches_the_low_level(planner: Any, cond: Cond, monkeypatch: pytest.MonkeyPatch) -> None:
    conditions, plan = list[Cond](), planner.low.plan
    monkeypatch.setattr(
        planner.low, "plan", lambda cond, *args, **kw: conditions.append(cond) or plan(cond, *args, **kw)
    )
    planner.plan(cond, decode=False)
    torch.testing.assert_close(conditions[0].goal, planner.high.plan(cond).trajectory[:, 1, 1:5])
    planner.plan(cond)
    legs = LEGS - 1
    assert len(conditions[1]) == 6 * legs
    torch.testing.assert_close(conditions[1].state[::legs], cond.state)
    torch.testing.assert_close(conditions[1].state[1::legs], conditions[1].goal[::legs])  # starts where one ended


@pytest.mark.parametrize(
    ("swaps", "message"),
    [
        *(({"planner": {"segment": segment}}, "segments") for segment in (1, 3, 16)),
        ({"view": {"fields": ("return",)}}, "Subgoals are states"),
    ],
)
def test_segments_that_do_not_fit_and_subgoals_without_states_are_refused(swaps: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build(**swaps)
    tiny.check_cure(caught.value)


def test_a_leg_held_at_its_subgoal_has_it_as_its_last_point() -> None:
    with pytest.raises(ConfigError, match="has it as its last point"):
        build(planner={"overlap": False}, action="state", **DIFFUSION)
    planner = build(planner={"overlap": True}, action="state", **DIFFUSION)
    low = planner._low_batch(tiny.batch())
    assert torch.equal(low.states[:, -1], low.goals)
