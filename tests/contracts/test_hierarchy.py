"""The planner of two planners: what each sees, and how their plans are joined."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from trajgen.core.errors import ConfigError
from trajgen.core.types import Batch, Cond

SEGMENT = 4
LEGS = tiny.HORIZON // SEGMENT


def build(**swaps: Any) -> Any:
    return tiny.planner(planner={"name": "hierarchy", "segment": SEGMENT, **swaps.pop("planner", {})}, **swaps)


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


def test_the_low_level_pursues_the_state_at_the_next_subgoal(planner: Any, batch: Batch) -> None:
    low = planner._low_batch(batch)
    assert torch.equal(low.goals, batch.states[:, SEGMENT]) and torch.equal(low.states, batch.states[:, :SEGMENT])
    assert torch.equal(low.chunk_states, batch.chunk_states)


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
def test_acting_needs_the_first_leg_alone_and_takes_the_same_actions(planner: Any, cond: Cond) -> None:
    whole, first = planner.plan(cond), planner.plan(cond, decode=False)
    torch.testing.assert_close(whole.latent, first.latent)
    assert first.trajectory is None and whole.trajectory.shape == (6, tiny.HORIZON, 5)
    refined = planner.refinements(whole, cond)
    assert list(refined) == [f"{LEGS} subgoals", "in detail"]
    assert all(x.shape == whole.trajectory.shape for x in refined.values())


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
