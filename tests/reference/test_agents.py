"""Several agents in one plan: the grid of agents and time by hand, permutations, independence, and agreement."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from trajgen.assemble import assemble
from trajgen.core.errors import ConfigError
from trajgen.core.registry import build
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import AgentAxis, Batch, Cond
from trajgen.nn.agents import AgentSplit
from trajgen.nn.attention import block_causal_mask
from trajgen.tokenizers.layouts import ResidualPyramid

TEAM: dict[str, Any] = {"sampler": "greedy", "tokenizer": {"joint_scales": 2}}
THREE = replace(tiny.SPACE, state_dim=6, action_dim=3, action_low=(-1.0,) * 3, action_high=(1.0,) * 3, agents=3)


def team(identify: bool = True, **swaps: Any) -> Any:
    """A small planner of two agents, with perturbed weights."""
    return tiny.ready_planner(**TEAM | {"view": {"name": "agents", "identify": identify}} | swaps).eval()


def test_a_view_shares_out_states_and_actions_and_leaves_the_rest_to_all() -> None:
    wiring = {"state_dim": 4, "action_dim": 2, "strides": (2,), "agents": 2, "goal_state": (0,)}
    fields = ("return", "action", "state", "position")
    view = build("view", {"name": "agents", "fields": fields}, **wiring)
    # return 0; actions of two steps 1, 2 | 3, 4; states 5, 6, 7, 8; position 9
    assert view.agent_axis.columns == ((0, 1, 3, 5, 6, 9), (0, 2, 4, 7, 8, 9))
    assert view.of_agent.features == 6
    split = AgentSplit(view.agent_axis, view.features)
    x = torch.arange(20.0).view(1, 2, 10)
    rows = split.split(x)
    assert rows.shape == (2, 2, 6) and rows[1, 1].tolist() == [10, 12, 14, 17, 18, 19]
    assert torch.equal(split.join(rows), x)
    rows[1, 0, 0] = 4.0  # the agents tell the return differently
    assert split.join(rows)[0, 0, 0] == 2.0


def test_a_schedule_is_a_grid_of_agents_and_time() -> None:
    grid = ScaleSchedule((1, 2)).for_agents(2, 1)
    assert grid == ScaleSchedule((1, 4), (1, 2)) and str(grid) == "(1, 2×2)"
    assert grid.agents_of_tokens == (-1, 0, 0, 1, 1) and grid.positions == (0, 1, 2, 1, 2)
    assert block_causal_mask(grid, across_agents=False).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 1],
        [1, 0, 0, 1, 1],
    ]
    alone = ScaleSchedule((3, 1))
    assert alone.agents == (1, 1) and alone.positions == (0, 1, 2, 3) and set(alone.agents_of_tokens) == {-1}


def test_more_agents_than_channels_are_not_told_apart_and_refused() -> None:
    """Of three agents and two channels the first and the last would be rotated alike, and cancel out."""
    crowd: dict[str, Any] = {"view": "agents", "space": THREE, "schedule": {"scales": 3}}
    with pytest.raises(ConfigError, match="3 agents and 2 channels") as refusal:
        tiny.planner(**crowd, tokenizer={"code_dim": 2})
    assert str(refusal.value.fix).startswith("tokenizer.joint_scales=0, or 3 channels")
    for tokenizer in ({"code_dim": 2, "joint_scales": 0}, {"code_dim": 3}):
        tiny.planner(**crowd, tokenizer=tokenizer)
    tiny.planner(**crowd | {"view": {"name": "agents", "identify": False}}, tokenizer={"code_dim": 2})
    pyramid = ResidualPyramid(ScaleSchedule((1, 1)).for_agents(3, 1), 2, 3)
    assert pyramid.pool(torch.tensor([[[1.0, 2.0], [0.0, 0.0], [-1.0, -2.0]]]), 0).abs().max() == 0


@pytest.mark.parametrize("identify", [False, True])
def test_what_agents_have_in_common_is_in_the_joint_scale_alone(identify: bool) -> None:
    """A latent that all agents share at all times: one joint token explains it, and nothing is left for the others."""
    pyramid = ResidualPyramid(ScaleSchedule((1, 2)).for_agents(3, 1), 4, 6, smoothing=0.0, identify=identify)
    common = torch.tensor([1.0, -2.0, 3.0, 0.5])
    # of agents that are told apart, "in common" is up to the rotation of their channels
    rows = torch.stack([common.roll(agent) if identify else common for agent in range(3)])
    f = rows.repeat_interleave(2, 0)[None]
    _, residuals, inputs, latent = pyramid.encode(f, lambda z: (torch.zeros(z.shape[:2], dtype=torch.long), z))
    assert torch.allclose(residuals[0, 0], common) and residuals[0, 1:].abs().max() < 1e-6
    assert torch.allclose(latent, f) and torch.allclose(inputs[0], f[0], atol=1e-6)


def test_what_tells_agents_apart_cancels_out_in_a_mean_but_not_in_the_rotated_one() -> None:
    f = torch.tensor([[[1.0, 0.0, 2.0], [-1.0, 0.0, -2.0]]])  # two agents, one point
    mean, rotated = (ResidualPyramid(ScaleSchedule((1, 1)).for_agents(2, 1), 3, 2, identify=i) for i in (False, True))
    assert mean.pool(f, 0).abs().max() == 0
    # channel c of agent 0 meets channel c + 1 of agent 1
    assert rotated.pool(f, 0)[0, 0].tolist() == pytest.approx([0.5, -1.0, 0.5])
    assert torch.equal(mean.pool(f, 1), f) and torch.equal(rotated.pool(f, 1), f)


def permuted_cond(cond: Cond, order: list[int]) -> Cond:
    return replace(cond, state=cond.state.unflatten(1, (len(order), -1))[:, order].flatten(1))


@pytest.mark.parametrize("action", ["latent_state", "plan"])
def test_permuted_agents_have_permuted_plans_unless_they_are_told_apart(action: str) -> None:
    torch.manual_seed(0)
    fields = ("return", "state", "action")
    batch = tiny.batch(space=THREE)
    order = [2, 0, 1]

    def planned(identify: bool, cond: Cond) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(0)
        view = {"name": "agents", "identify": identify, "fields": fields}
        nodes = tiny.nodes(view=view, action=action, sampler="greedy", tokenizer={"joint_scales": 2})
        planner = assemble(nodes, THREE, tiny.WINDOW)
        tiny.shake(planner)
        stage = planner.stages()[0]
        stage.begin(planner)
        stage.loss(tiny.batch(64, space=THREE))
        plan = planner.eval().plan(cond)
        states = cond.state.unsqueeze(1)
        actions = planner.action(plan, states, torch.zeros(states.shape[:2], dtype=torch.long))
        return plan.codes[:, 3:].unflatten(1, (3, -1)), planner.view.read(plan.trajectory, "state"), actions[:, 0]

    cond = batch.condition()
    for identify in (False, True):
        codes, states, actions = planned(identify, cond)
        other_codes, other_states, other_actions = planned(identify, permuted_cond(cond, order))
        same_codes = torch.equal(other_codes, codes[:, order])
        expected = states.unflatten(2, (3, -1))[:, :, order].flatten(2)
        same_states = torch.allclose(other_states, expected, atol=1e-5)
        same_actions = torch.allclose(other_actions, actions[:, order], atol=1e-5)
        assert len(codes.unique()) > 2
        assert [same_codes and same_states, same_states and same_actions] == [not identify] * 2


def test_independent_agents_do_not_read_each_other_and_dependent_ones_do() -> None:
    cond = tiny.cond()
    other = replace(cond, state=torch.cat([cond.state[:, :2], cond.state[:, 2:] + 1], dim=1))
    for across, joint_scales in ((False, 0), (True, 0), (False, 2)):
        planner = team(prior={"across_agents": across}, tokenizer={"joint_scales": joint_scales})
        grid = torch.tensor(planner.tokenizer.schedule.agents_of_tokens)
        inputs = torch.randn(len(cond), len(grid) - planner.tokenizer.schedule.lengths[0], planner.tokenizer.code_dim)
        change = (planner.prior.logits(inputs, cond) - planner.prior.logits(inputs, other)).abs().amax((0, 2))
        assert (change[grid == 1] > 1e-4).all()
        assert (change[grid == 0] > 1e-4).all() != (not across and not joint_scales)
        if not across and not joint_scales:
            assert change[grid == 0].max() == 0


@pytest.mark.parametrize(("across", "joint_scales"), [(True, 2), (False, 2), (False, 0), (True, 0)])
def test_steps_and_prefixes_predict_what_teacher_forcing_does(across: bool, joint_scales: int) -> None:
    planner = team(prior={"across_agents": across}, tokenizer={"joint_scales": joint_scales})
    for size in (1, 3):
        cond = tiny.cond(size)
        plan = planner.plan(cond)
        inputs = planner.tokenizer.layout.inputs(planner.tokenizer.vectors(plan.codes))
        logits = planner.prior.logits(inputs, cond)
        assert torch.equal(logits.argmax(-1), plan.codes)
        state, spans = planner.prior.start(cond), planner.tokenizer.schedule.spans
        first = planner.tokenizer.schedule.lengths[0]
        prefix = planner.prior.predict_prefix(inputs[:, : spans[1].stop - first], 1, state)
        assert torch.allclose(prefix, logits[:, : spans[1].stop], atol=1e-5)
        last = planner.prior.step(inputs[:, spans[2].start - first :], 2, state)
        assert torch.allclose(last, logits[:, spans[2]], atol=1e-5)


def test_weights_are_shared_by_agents() -> None:
    def count(space: Any) -> int:
        nodes = tiny.nodes(view={"name": "agents", "identify": False}, return_target="constant")
        return sum(p.numel() for p in assemble(nodes, space, tiny.WINDOW).parameters())

    four = replace(tiny.SPACE, state_dim=8, action_dim=4, action_low=(-1.0,) * 4, action_high=(1.0,) * 4, agents=4)
    assert count(tiny.SPACE) == count(four)


@pytest.mark.parametrize(
    ("swaps", "fix"),
    [
        ({"schedule": "unit"}, "schedule=geometric"),
        ({"schedule": "auto"}, "schedule=geometric"),
        ({"tokenizer": "identity", "schedule": "single", "decoder": "identity", "sampler": "greedy"}, "view=fields"),
        ({"tokenizer": {"joint_scales": 3}}, "tokenizer.joint_scales=2"),
        ({"view": "fields"}, "view=agents"),
        ({"view": "fields", "tokenizer": "multiscale", "prior": {"across_agents": False}}, "view=agents"),
    ],
)
def test_what_cannot_tell_agents_apart_is_refused(swaps: dict[str, Any], fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny.planner(**TEAM | {"view": "agents"} | swaps)
    assert fix in str(caught.value.fix)
    with pytest.raises(ConfigError, match="the data have one"):
        tiny.planner(space=replace(tiny.SPACE, agents=1), view="agents")


@pytest.mark.parametrize(
    ("joint_scales", "identify", "low", "high"), [(1, True, 0.95, 1.0), (1, False, 0.3, 0.7), (0, True, 0.3, 0.7)]
)
def test_agents_that_take_opposite_ways_agree_by_a_joint_scale_that_tells_them_apart(
    joint_scales: int, identify: bool, low: float, high: float
) -> None:
    """From the same state one goes up and the other down; without such a scale they agree by chance."""
    torch.manual_seed(0)
    planner = tiny.planner(
        view={"name": "agents", "fields": ("state",), "identify": identify},
        schedule={"name": "geometric", "scales": 2},
        tokenizer={"name": "multiscale", "joint_scales": joint_scales},
        prior={"name": "transformer", "across_agents": joint_scales > 0},
        sampler={"name": "temperature", "temperature": 1.0},
        planner={"name": "latent", "inverse_weight": 0.0, "condition_weight": 0.0},
    )
    ramp = torch.linspace(0, 2, tiny.HORIZON)[None, :, None] * torch.tensor([1.0, 1.0, -1.0, -1.0])

    def windows(size: int) -> Batch:
        batch = tiny.batch(size)
        ways = torch.randint(0, 2, (size, 1, 1)) * 2.0 - 1
        mask = torch.ones_like(batch.mask)
        return replace(batch, states=ways * ramp, mask=mask, returns=batch.returns * 0, goals=None)

    stages = {stage.name: stage for stage in planner.stages()}
    for stage in (stages["tokenizer"], stages["prior"]):
        optimizer = torch.optim.Adam(stage.trained, 3e-3)
        stage.begin(planner)
        for _ in range(100):
            optimizer.zero_grad()
            stage.loss(windows(48))["total"].backward()
            optimizer.step()
            if stage.after_step is not None:
                stage.after_step()
    plan = planner.eval().plan(windows(200).condition(), torch.Generator().manual_seed(0))
    ends = planner.view.read(plan.trajectory, "state")[:, -1].unflatten(1, (2, -1)).mean(-1)
    assert (ends.abs() > 0.5).float().mean() > 0.8  # each agent takes one of the ways
    agree = float((ends[:, 0] * ends[:, 1] < 0).float().mean())
    assert low <= agree <= high


def test_the_axis_counts_its_agents() -> None:
    assert AgentAxis(((0, 1), (0, 2), (0, 3))).agents == 3
