"""The planner of two planners: who sees what, and how their plans are joined."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from trajgen.core.errors import ConfigError
from trajgen.core.types import Batch, Cond

SEGMENT = 4


def made(**options: Any) -> Any:
    hierarchy = {"name": "hierarchy", "segment": SEGMENT, **options}
    small = {"latent_length": SEGMENT, "code_dim": 6, "codebook_size": 12, "width": 16}
    planner = tiny.planner(planner=hierarchy, schedule="geometric", tokenizer=small)
    tiny.shake(planner)
    for stage in planner.stages():
        if stage.parameters:
            stage.begin(planner)
            stage.loss(tiny.batch(64))
    return planner.eval()


def test_the_high_level_sees_every_nth_point(batch: Batch) -> None:
    seen = made()._high_batch(batch)
    assert torch.equal(seen.states, batch.states[:, ::SEGMENT])
    assert torch.equal(seen.returns, batch.returns[:, ::SEGMENT])
    assert seen.actions.shape == (6, tiny.HORIZON // SEGMENT, SEGMENT * tiny.STRIDE, 2)
    assert torch.equal(seen.actions[:, 1, : tiny.STRIDE], batch.actions[:, SEGMENT])
    assert torch.equal(seen.goals, batch.goals)


def test_the_low_level_pursues_the_state_at_the_next_subgoal(batch: Batch) -> None:
    seen = made()._low_batch(batch)
    assert torch.equal(seen.goals, batch.states[:, SEGMENT]) and torch.equal(seen.states, batch.states[:, :SEGMENT])
    assert torch.equal(seen.chunk_states, batch.chunk_states)


def test_an_overlapping_plan_ends_at_the_subgoal(batch: Batch) -> None:
    swaps: dict[str, Any] = {"tokenizer": {"name": "identity", "inpaint_goal": True}, "decoder": "identity"}
    swaps |= {"schedule": "single", "sampler": "greedy"}
    planner = tiny.planner(planner={"name": "hierarchy", "segment": SEGMENT, "overlap": True}, **swaps)
    seen = planner._low_batch(batch)
    assert seen.states.shape[1] == SEGMENT + 1 and torch.equal(seen.states[:, -1], seen.goals)
    given = planner.low.tokenizer.known_codes(seen.condition())
    held = given.into(torch.zeros_like(given.codes))
    torch.testing.assert_close(planner.low.view.read(held[:, -1], "state"), seen.goals)  # the same units at both levels


def test_weights_are_not_shared_and_stages_take_turns() -> None:
    planner = made()
    names = [stage.name for stage in planner.stages()]
    each = ["tokenizer", "return_target", "prior", "action"]
    assert names == [f"{level}_{stage}" for level in ("high", "low") for stage in each]
    assert [stage.options_of for stage in planner.stages()] == each * 2
    high, low = ({id(p) for p in part.parameters()} for part in (planner.high, planner.low))
    assert high and low and not high & low
    assert not planner.stages()[5].parameters  # the return is asked of the high level alone


@torch.no_grad()
def test_acting_needs_the_first_leg_alone_and_takes_the_same_actions(cond: Cond) -> None:
    planner = made()
    planner.high.sampler = planner.low.sampler = tiny.planner(sampler="greedy").sampler
    whole, first = planner.plan(cond), planner.plan(cond, decode=False)
    torch.testing.assert_close(whole.latent, first.latent)
    assert first.trajectory is None and whole.trajectory.shape == (6, tiny.HORIZON, 5)
    drawn = planner.refinements(whole, cond)
    assert list(drawn) == [f"{tiny.HORIZON // SEGMENT} subgoals", "in detail"]
    assert all(x.shape == whole.trajectory.shape for x in drawn.values())


@torch.no_grad()
def test_the_subgoal_reaches_the_low_level(cond: Cond, monkeypatch: pytest.MonkeyPatch) -> None:
    planner = made()
    asked: list[Cond] = []
    plain = planner.low.plan

    def note(cond: Cond, *rest: Any, **more: Any) -> Any:
        asked.append(cond)
        return plain(cond, *rest, **more)

    monkeypatch.setattr(planner.low, "plan", note)
    rng = torch.Generator().manual_seed(0)
    planner.plan(cond, rng, decode=False)
    subgoals = planner.high.plan(cond, torch.Generator().manual_seed(0)).trajectory[:, 1, 1:5]
    torch.testing.assert_close(asked[0].goal, subgoals)
    planner.plan(cond, torch.Generator().manual_seed(0))
    legs = tiny.HORIZON // SEGMENT - 1
    assert len(asked[1]) == 6 * legs
    torch.testing.assert_close(asked[1].state[::legs], cond.state)
    torch.testing.assert_close(asked[1].state[1::legs], asked[1].goal[::legs])  # each leg starts where one ended


@pytest.mark.parametrize("segment", [1, 3, 16])
def test_segments_that_do_not_fit_are_refused(segment: int) -> None:
    with pytest.raises(ConfigError, match="segments") as caught:
        tiny.planner(planner={"name": "hierarchy", "segment": segment})
    tiny.check_cure(caught.value)


def test_subgoals_without_states_are_refused() -> None:
    with pytest.raises(ConfigError, match="Subgoals are states") as caught:
        tiny.planner(planner="hierarchy", view={"fields": ("return",)})
    tiny.check_cure(caught.value)
