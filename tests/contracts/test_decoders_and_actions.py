"""Every registered decoder and action head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from accepts import cells, check_cell
from torch import Tensor

from trajgen.assemble import assemble
from trajgen.core.errors import ConfigError
from trajgen.core.registry import build
from trajgen.core.types import Cond, Plan
from trajgen.views import FieldView

WIRING: dict[str, Any] = {
    "features": 5, "horizon": tiny.HORIZON, "latent_length": tiny.LATENT, "code_dim": 6, "state_dim": 4,
    "action_dim": 2, **tiny.GOALS, "chunk": tiny.CHUNK, "strides": (tiny.STRIDE,), "vocabulary": 12,
    "schedule": tiny.schedule("geometric"),
    "view": FieldView(4, 2, (tiny.STRIDE,), fields=("return", "state")),
}  # fmt: skip


@cells("decoder")
def test_contracts_of_decoders(name: str, words: str, advice: str) -> None:
    check_cell("decoder", name, words, advice)


@cells("action")
def test_contracts_of_actions(name: str, words: str, advice: str) -> None:
    check_cell("action", name, words, advice)


def make_decoder(name: str, *, latent_length: int = tiny.LATENT, goal_dim: int = 2, **options: Any) -> Any:
    wiring = {**WIRING, "latent_length": latent_length, "goal_dim": goal_dim}
    return tiny.shake(build("decoder", tiny.node("decoder", name, **options), **wiring))


def make_action(name: str = "latent_state", **options: Any) -> Any:
    return tiny.shake(build("action", tiny.node("action", name, **options), **WIRING))


@pytest.fixture
def latent() -> Tensor:
    return torch.randn(6, tiny.LATENT, 6)


@pytest.mark.parametrize("returns", [True, False])
@torch.no_grad()
def test_adapters_see_returns_only_if_the_option_says_so(returns: bool, latent: Tensor, cond: Cond) -> None:
    decoder = make_decoder("adapter", returns=returns)
    assert torch.equal(decoder(latent, cond), decoder(latent, tiny.moved(cond, returns=2.0))) is not returns


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [2, 4, 16])
@torch.no_grad()
def test_state_conditioned_points_depend_on_the_latent_and_the_state(length: int, causal: bool, cond: Cond) -> None:
    decoder, latent = make_decoder("state_conditioned", latent_length=length, causal=causal), torch.randn(6, length, 6)
    decoded = decoder(latent, cond)
    assert decoded.shape == (6, tiny.HORIZON, 5)
    for changed in (decoder(latent + 1, cond), decoder(latent, tiny.moved(cond, state=1.0))):
        assert ((changed - decoded).abs().amax(-1) > 1e-5).all()
    assert torch.equal(decoder(latent, tiny.moved(cond, returns=1.0, goal=1.0)), decoded)
    assert torch.equal(decoder(latent, cond.unconditional()), decoded)  # the state is measured, never withheld


@torch.no_grad()
def test_a_state_conditioned_decoder_sees_the_goal_if_the_option_says_so(latent: Tensor, cond: Cond) -> None:
    decoder = make_decoder("state_conditioned", goal=True)
    assert ((decoder(latent, tiny.moved(cond, goal=1.0)) - decoder(latent, cond)).abs().amax(-1) > 1e-5).all()


@torch.no_grad()
def test_states_are_differences_from_the_current_one_if_the_option_says_so(latent: Tensor, cond: Cond) -> None:
    plain, residual = (make_decoder("state_conditioned", residual=residual) for residual in (False, True))
    residual.load_state_dict(plain.state_dict())
    difference = residual(latent, cond) - plain(latent, cond)
    torch.testing.assert_close(difference[..., 1:], cond.state.unsqueeze(1).expand(-1, tiny.HORIZON, -1))
    assert not difference[..., 0].any()  # the return
    with pytest.raises(ConfigError, match="needs a view with the state"):
        build("decoder", tiny.node("decoder", "state_conditioned", residual=True),
              **{**WIRING, "view": FieldView(4, 2, (tiny.STRIDE,), fields=("action",))})  # fmt: skip


@pytest.mark.parametrize("length", [2, 4, 8, 16])
@torch.no_grad()
def test_a_causal_decoder_gives_points_that_later_latents_leave_alone(length: int, cond: Cond) -> None:
    decoder, latent = make_decoder("state_conditioned", latent_length=length, depth=2), torch.randn(6, length, 6)
    decoded, points = decoder(latent, cond), tiny.HORIZON // length
    for i in range(length):
        changed = latent.clone()
        changed[:, i:] += torch.randn(6, length - i, 6)
        difference = (decoder(changed, cond) - decoded).abs().amax((0, 2))
        assert (difference[: i * points] < 1e-6).all() and (difference[i * points :] > 1e-5).all()


@torch.no_grad()
def test_without_causality_later_latents_change_earlier_points(latent: Tensor, cond: Cond) -> None:
    decoder, changed = make_decoder("state_conditioned", causal=False), latent.clone()
    changed[:, -1] += 1
    assert (decoder(changed, cond) - decoder(latent, cond))[:, 0].abs().max() > 1e-5


@pytest.mark.parametrize("name", ["plain", "adapter", "state_conditioned"])
def test_a_latent_that_does_not_double_to_the_horizon_is_refused(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_decoder(name, latent_length=5)
    tiny.check_cure(caught.value)


def test_a_decoder_of_goals_reads_none_where_there_are_none(latent: Tensor) -> None:
    with_goals, without = (make_decoder("state_conditioned", goal_dim=n, goal=True) for n in (2, 0))
    assert with_goals.embed[0].in_features == without.embed[0].in_features + 2
    assert without(latent, replace(tiny.cond(), goal=None)).isfinite().all()


@pytest.mark.parametrize("name", ["latent", "latent_state"])
@torch.no_grad()
def test_only_latent_state_looks_at_the_state(name: str, latent: Tensor) -> None:
    plan, action = Plan(torch.zeros(6, 3, dtype=torch.long), latent), make_action(name)
    states, offsets = torch.randn(6, tiny.CHUNK, 4), torch.arange(tiny.CHUNK).expand(6, -1)
    is_same = torch.allclose(action(plan, states, offsets), action(plan, states + 1, offsets))
    assert is_same is (name == "latent")


@pytest.mark.parametrize("planner", ["latent", "direct", "hierarchy", "agents"])
@torch.no_grad()
def test_a_head_reads_the_goal_of_its_plan_if_the_option_says_so(planner: str, cond: Cond) -> None:
    kinds = {"view": "agents", "planner": "latent"} if planner == "agents" else {"planner": planner}
    nodes = tiny.nodes(**kinds, action={"name": "latent_state", "goal": True}, return_target="quantile")
    if planner == "direct":
        nodes = {kind: nodes[kind] for kind in ("conditioner", "action", "return_target", "planner")}
    built: Any = tiny.shake(assemble(nodes, tiny.SPACE, tiny.WINDOW)).eval()
    plan, states = built.plan(cond, torch.Generator().manual_seed(0)), torch.randn(6, tiny.CHUNK, 4)
    offsets = torch.arange(tiny.CHUNK).expand(6, -1)
    actions = built.action(plan, states, offsets)
    if planner != "hierarchy":  # whose goals are those of the legs
        assert torch.equal(plan.goal, cond.goal)
    later = replace(plan, codes=plan.codes.clone(), latent=plan.latent.clone(), trajectory=None, goal=plan.goal + 1)
    changed = built.action(later, states, offsets)
    assert ((changed - actions).abs().amax(-1) > 1e-6).all()
    assert torch.equal(built.action(plan.with_rows(torch.arange(6), later), states, offsets), changed)


def test_a_head_without_the_option_does_not_read_the_goal(cond: Cond) -> None:
    planner = tiny.shake(tiny.planner(action={"name": "latent_state", "goal": False}))
    plan, offsets = planner.plan(cond), torch.zeros(6, 1, dtype=torch.long)
    other = replace(plan, goal=plan.goal + 1)
    assert torch.equal(*(planner.action(each, cond.state.unsqueeze(1), offsets) for each in (plan, other)))


def test_a_classifying_head_learns_the_distribution_of_actions(latent: Tensor) -> None:
    """In the same state the data act at one bound or the other, three times of four at the upper one."""
    action = build("action", {"name": "latent_state", "num_bins": 11, "bin_limit": 1.0}, **WIRING)
    plan = Plan(torch.zeros(6, 3, dtype=torch.long), latent[:1].expand(6, -1, -1))
    states, offsets = torch.zeros(6, 4, 4), torch.zeros(6, 4, dtype=torch.long)
    actions = torch.tensor([1.0, 1.0, 1.0, -1.0]).view(1, 4, 1).expand(6, -1, 2)
    optimizer = torch.optim.Adam(action.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        action.loss(plan, states, offsets, actions).mean().backward()
        optimizer.step()
    predicted = action(plan, states, offsets)
    torch.testing.assert_close(predicted, torch.full_like(predicted, 0.5), atol=0.05, rtol=0)
    entropy = torch.distributions.Categorical(torch.tensor([0.25, 0.75])).entropy()
    torch.testing.assert_close(action.loss(plan, states, offsets, actions).mean(), entropy, atol=0.02, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("planner", ["latent", "direct"])
def test_a_sampling_head_draws_actions_by_their_probability(planner: str) -> None:
    """Drawn anew for each plan and step, by the generator; the same seed gives the same actions."""
    action = {"name": "latent_state", "num_bins": 3, "bin_limit": 1.0, "temperature": 0.5}
    nodes = tiny.nodes(planner=planner, action=action, return_target="quantile")
    if planner == "direct":
        nodes = {kind: nodes[kind] for kind in ("conditioner", "action", "return_target", "planner")}
    built: Any = tiny.shake(assemble(nodes, tiny.SPACE, tiny.WINDOW)).eval()
    last = built.action.network[-1][-1]
    last.weight.zero_()
    last.bias.copy_(torch.tensor([0.2, 0.3, 0.5]).log().repeat(tiny.SPACE.action_dim) * action["temperature"])
    cond, states = tiny.cond(400), torch.zeros(400, tiny.CHUNK, 4)
    offsets = torch.arange(tiny.CHUNK).expand(400, -1)
    first, again, other = (built.plan(cond, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    sampled = built.action(first, states, offsets)
    assert torch.equal(sampled, built.action(again, states, offsets))
    assert not torch.equal(sampled, built.action(other, states, offsets))
    assert not torch.equal(sampled[:, 0], sampled[:, 1])
    frequencies = [float((sampled == center).float().mean()) for center in (-1.0, 0.0, 1.0)]
    assert frequencies == pytest.approx([0.2, 0.3, 0.5], abs=0.04)
    assert torch.equal(built.action(first, states, offsets + tiny.CHUNK)[:, 0], sampled[:, -1])


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"temperature": 1.0}, "temperature"),
        ({"num_bins": 5, "temperature": -0.5}, "temperature"),
        ({"num_bins": 1}, "num_bins"),
        ({"num_bins": -3}, "num_bins"),
        ({"num_bins": 5, "bin_limit": 0.0}, "num_bins"),
    ],
)
def test_bins_and_temperatures_out_of_range_are_refused(options: dict[str, float], option: str) -> None:
    with pytest.raises(ConfigError, match=rf"action\.{option}"):
        make_action(**options)


def test_inverse_dynamics_hold_the_last_point_of_a_plan_that_is_over() -> None:
    planner = tiny.shake(tiny.planner(view={"fields": ("state",)}, action="state"))
    steps = (tiny.HORIZON - 1) * tiny.STRIDE
    assert planner.action.plan_steps == steps
    states = torch.randn(1, 1, 4)
    x = torch.randn(1, tiny.HORIZON, 4)
    changed = x.clone()
    changed[:, :-1] += 1
    offset = torch.full((1, 1), steps - 1)
    at_end, later = (planner.action(Plan(x, x, x), states, offset + beyond * tiny.STRIDE) for beyond in (0, 5))
    assert torch.equal(at_end, later)
    assert torch.equal(later, planner.action(Plan(x, x, changed), states, offset))  # of the last point alone


@pytest.mark.parametrize(("chunk", "steps"), [(2, 2), (3, (tiny.HORIZON - 1) * 3)])
def test_inverse_dynamics_are_followed_beyond_the_chunk_where_they_learn_every_step_of_a_stride(
    chunk: int, steps: int
) -> None:
    view = build(
        "view", {"name": "fields", "fields": ["state"]}, state_dim=4, action_dim=2, strides=(3,), goal_state=()
    )
    dims = {"state_dim": 4, "action_dim": 2, "horizon": tiny.HORIZON, "strides": (3,)}
    assert build("action", {"name": "state"}, view=view, chunk=chunk, **dims).plan_steps == steps


def test_planned_actions_are_those_of_the_trajectory() -> None:
    fields = {"name": "fields", "fields": ["state", "action"]}
    view = build("view", fields, state_dim=4, action_dim=2, strides=(3,), goal_state=())
    action = build("action", {"name": "plan"}, view=view, action_dim=2, horizon=tiny.HORIZON, stride=3, chunk=4)
    batch, offsets = tiny.batch(), torch.arange(7).expand(6, -1)
    plan = Plan(batch.time, batch.states, view(batch))
    assert torch.equal(action(plan, batch.states[:, :7], offsets), batch.actions.flatten(1, 2)[:, :7])
