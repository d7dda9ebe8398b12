"""Every registered decoder and action head."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from kept import accepted, check_kept

from trajgen.assemble import assemble
from trajgen.core.errors import ConfigError
from trajgen.core.registry import build, names
from trajgen.core.types import Cond, Plan

DECODERS, HEADS = names("decoder"), names("action")
DECODED = [
    "mage",
    "flat_ar",
    # Without L_cond nothing trains adapters.
    *(f"{recipe} planner.condition_weight=0.1" for recipe in ("tap", "diffuser", "tt")),
]
ACTED = ["mage", "bc", "carp", "diffuser", "mage decoder=state_conditioned view.fields=[action,state]"]
SHAPES: dict[str, Any] = {
    "features": 5, "horizon": tiny.HORIZON, "latent_length": tiny.LATENT, "code_dim": 6, "state_dim": 4,
    "action_dim": 2, "goal_dim": 2, "chunk": tiny.CHUNK, "vocabulary": 12,
    "schedule": tiny.schedule("geometric"),
}  # fmt: skip


def decoder(name: str, **options: Any) -> Any:
    return build("decoder", tiny.node("decoder", name, **options), **SHAPES)


def head(name: str) -> Any:
    return tiny.shake(build("action", tiny.node("action", name), **SHAPES))


@pytest.fixture
def latent() -> torch.Tensor:
    return torch.randn(6, tiny.LATENT, 6)


@pytest.mark.parametrize("words", DECODED)
@pytest.mark.parametrize("name", DECODERS)
def test_contracts_of_decoders_are_kept_in_every_composition(name: str, words: str) -> None:
    check_kept("decoder", name, words)


@pytest.mark.parametrize("words", ACTED)
@pytest.mark.parametrize("name", HEADS)
def test_contracts_of_heads_are_kept_in_every_composition(name: str, words: str) -> None:
    check_kept("action", name, words)


def test_each_accepts_a_composition() -> None:
    assert all(accepted("decoder", name, DECODED) for name in DECODERS)
    assert all(accepted("action", name, ACTED) for name in HEADS)


@torch.no_grad()
def test_adapters_change_nothing_before_training_and_never_the_base(latent: torch.Tensor, cond: Cond) -> None:
    made = decoder("adapter")
    before = made(latent, cond)
    torch.testing.assert_close(made.base(latent, cond), before, atol=0, rtol=0)
    for parameter in made.adapter_parameters():
        parameter.add_(0.3)
    torch.testing.assert_close(made.base(latent, cond), before, atol=0, rtol=0)
    assert not torch.allclose(made(latent, cond), before)


@torch.no_grad()
def test_without_returns_the_adapters_do_not_see_them(latent: torch.Tensor, cond: Cond) -> None:
    other = tiny.moved(cond, returns=2.0)
    seeing, blind = tiny.shake(decoder("adapter")), tiny.shake(decoder("adapter", returns=False))
    assert not torch.allclose(seeing(latent, cond), seeing(latent, other))
    assert torch.equal(blind(latent, cond), blind(latent, other))


@torch.no_grad()
def test_a_causal_decoder_gives_points_that_later_latents_leave_alone(latent: torch.Tensor, cond: Cond) -> None:
    made = tiny.shake(decoder("state_conditioned"))
    whole, points = made(latent, cond), tiny.HORIZON // tiny.LATENT
    for i in range(1, tiny.LATENT):
        other = latent.clone()
        other[:, i:] += 1
        assert torch.equal(made(other, cond)[:, : i * points], whole[:, : i * points])
        assert not torch.allclose(made(other, cond)[:, i * points :], whole[:, i * points :])
    assert not torch.allclose(made(latent, tiny.moved(cond, state=1.0)), whole)
    assert torch.equal(made(latent, tiny.moved(cond, goal=1.0)), whole)
    told = tiny.shake(decoder("state_conditioned", goal=True))
    assert not torch.allclose(told(latent, tiny.moved(cond, goal=1.0)), told(latent, cond))


@pytest.mark.parametrize("name", ["plain", "adapter", "state_conditioned"])
def test_a_latent_that_does_not_double_to_the_horizon_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        build("decoder", tiny.node("decoder", name), **{**SHAPES, "latent_length": 5})


@torch.no_grad()
def test_only_latent_state_looks_at_the_state(latent: torch.Tensor) -> None:
    plan = Plan(torch.zeros(6, 3, dtype=torch.long), latent)
    states, offsets = torch.randn(6, tiny.CHUNK, 4), torch.arange(tiny.CHUNK).expand(6, -1)
    blind, seeing = head("latent"), head("latent_state")
    assert torch.equal(blind(plan, states, offsets), blind(plan, states + 1, offsets))
    assert not torch.allclose(seeing(plan, states, offsets), seeing(plan, states + 1, offsets))


def test_a_head_that_classifies_learns_the_ways_there_are_and_stays_within_them(latent: torch.Tensor) -> None:
    """In the same state the data act at one bound or the other, three times of four at the upper one."""
    made = build("action", {"name": "latent_state", "num_bins": 11, "bin_limit": 1.0}, **SHAPES)
    plan = Plan(torch.zeros(6, 3, dtype=torch.long), latent[:1].expand(6, -1, -1))
    states, offsets = torch.zeros(6, 4, 4), torch.arange(4).expand(6, -1)
    actions = torch.tensor([1.0, 1.0, 1.0, -1.0]).view(1, 4, 1).expand(6, -1, 2)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.02)
    same = torch.zeros_like(offsets)
    for _ in range(100):
        optimizer.zero_grad()
        made.loss(plan, states, same, actions).mean().backward()
        optimizer.step()
    told = made(plan, states, same)
    torch.testing.assert_close(told, torch.full_like(told, 0.5), atol=0.05, rtol=0)
    sure = torch.tensor([0.25, 0.75]).log()
    entropy = -(sure.exp() * sure).sum()
    torch.testing.assert_close(made.loss(plan, states, same, actions).mean(), entropy, atol=0.02, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("planner", ["latent", "direct"])
def test_a_head_that_draws_takes_actions_as_often_as_it_holds_them_likely(planner: str) -> None:
    """Drawn anew for each plan and step, by the generator; with the same numbers the same actions."""
    action = {"name": "latent_state", "num_bins": 3, "bin_limit": 1.0, "temperature": 0.5}
    nodes = tiny.nodes(planner=planner, action=action, return_target="quantile")
    if planner == "direct":
        nodes = {kind: nodes[kind] for kind in ("conditioner", "action", "return_target", "planner")}
    made = tiny.shake(assemble(nodes, tiny.SPACE, tiny.WINDOW)).eval()
    last = made.action.network[-1][-1]
    last.weight.zero_()
    last.bias.copy_(torch.tensor([0.2, 0.3, 0.5]).log().repeat(tiny.SPACE.action_dim) * action["temperature"])
    cond = tiny.batch(400).condition()
    offsets = torch.arange(tiny.CHUNK).expand(400, -1)
    states = torch.zeros(400, tiny.CHUNK, 4)
    first, again, other = (made.plan(cond, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    drawn = made.action(first, states, offsets)
    assert torch.equal(drawn, made.action(again, states, offsets))
    assert not torch.equal(drawn, made.action(other, states, offsets))
    assert not torch.equal(drawn[:, 0], drawn[:, 1])
    shares = [float((drawn == center).float().mean()) for center in (-1.0, 0.0, 1.0)]
    assert shares == pytest.approx([0.2, 0.3, 0.5], abs=0.04)
    assert torch.equal(made.action(first, states, offsets + tiny.CHUNK)[:, 0], drawn[:, -1])


@pytest.mark.parametrize("options", [{"temperature": 1.0}, {"num_bins": 5, "temperature": -0.5}])
def test_draws_without_bins_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"action\.temperature"):
        build("action", {"name": "latent_state", **options}, **SHAPES)


@pytest.mark.parametrize("options", [{"num_bins": 1}, {"num_bins": -3}, {"num_bins": 5, "bin_limit": 0.0}])
def test_bins_that_classify_nothing_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"action\.num_bins"):
        build("action", {"name": "latent_state", **options}, **SHAPES)


def test_planned_actions_are_those_of_the_trajectory() -> None:
    view = build(
        "view", {"name": "fields", "fields": ["state", "action"]}, state_dim=4, action_dim=2, stride=3, goal_state=()
    )
    made = build("action", {"name": "plan"}, view=view, action_dim=2, horizon=tiny.HORIZON, stride=3, chunk=4)
    known = tiny.batch()
    plan = Plan(known.time, known.states, view(known))
    offsets = torch.arange(7).expand(6, -1)
    expected = known.actions.flatten(1, 2)[:, :7]
    assert torch.equal(made(plan, known.states[:, :7], offsets), expected)
