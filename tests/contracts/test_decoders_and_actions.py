"""Every registered decoder and action head."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from trajgen.core.errors import ConfigError
from trajgen.core.registry import build, names
from trajgen.core.types import Cond, Plan

SHAPES: dict[str, Any] = {
    "features": 5, "horizon": tiny.HORIZON, "latent_length": tiny.LATENT, "code_dim": 6, "state_dim": 4,
    "action_dim": 2, "goal_dim": 2, "chunk": tiny.CHUNK, "vocabulary": 12,
    "schedule": tiny.schedule("geometric"),
}  # fmt: skip
DECODERS, HEADS = names("decoder"), names("action")


def decoder(name: str, **options: Any) -> Any:
    return build("decoder", tiny.node("decoder", name, **options), **SHAPES)


def head(name: str) -> Any:
    return tiny.shake(build("action", tiny.node("action", name), **SHAPES))


@pytest.fixture
def latent() -> torch.Tensor:
    return torch.randn(6, tiny.LATENT, 6)


@pytest.fixture
def plan(latent: torch.Tensor) -> Plan:
    return Plan(torch.zeros(6, 3, dtype=torch.long), latent)


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_a_decoder_starts_out_blind_to_the_condition(name: str, latent: torch.Tensor, cond: Cond) -> None:
    made = decoder(name)
    alone = made(latent)
    assert alone.shape == (6, tiny.HORIZON, 5)
    torch.testing.assert_close(made(latent, cond), alone, atol=0, rtol=0)
    assert not torch.equal(alone, made(latent + 1))


@pytest.mark.parametrize("name", DECODERS)
def test_base_and_adapter_parameters_partition_the_parameters(name: str) -> None:
    made = decoder(name)
    base, adapters = ({id(p) for p in some} for some in (made.base_parameters(), made.adapter_parameters()))
    assert base
    assert not base & adapters
    assert base | adapters == {id(p) for p in made.parameters()}


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_without_a_condition_the_adapters_change_nothing(name: str, latent: torch.Tensor, cond: Cond) -> None:
    made = decoder(name)
    before = made(latent)
    for parameter in made.adapter_parameters():
        parameter.add_(0.3)
    torch.testing.assert_close(made(latent), before, atol=0, rtol=0)
    if made.adapter_parameters():
        guided = made(latent, cond)
        assert not torch.allclose(guided, before)
        assert not torch.allclose(guided, made(latent, tiny.moved(cond, state=1.0)))


@torch.no_grad()
def test_without_returns_the_adapters_do_not_see_them(latent: torch.Tensor, cond: Cond) -> None:
    other = tiny.moved(cond, returns=2.0)
    seeing, blind = tiny.shake(decoder("adapter")), tiny.shake(decoder("adapter", returns=False))
    assert not torch.allclose(seeing(latent, cond), seeing(latent, other))
    assert torch.equal(blind(latent, cond), blind(latent, other))


@pytest.mark.parametrize("name", DECODERS)
def test_a_latent_that_does_not_double_to_the_horizon_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        build("decoder", tiny.node("decoder", name), **{**SHAPES, "latent_length": 5})


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_an_action_depends_on_its_own_offset_alone(name: str, plan: Plan) -> None:
    made, states = head(name), torch.randn(6, tiny.CHUNK, 4)
    offsets = torch.arange(tiny.CHUNK).expand(6, -1)
    together = made(plan, states, offsets)
    assert together.shape == (6, tiny.CHUNK, 2)
    for h in range(tiny.CHUNK):  # as a policy asks: one step at a time
        alone = made(plan, states[:, h : h + 1], offsets[:, h : h + 1])
        torch.testing.assert_close(alone[:, 0], together[:, h])
    shuffled = made(plan, states.flip(1), offsets.flip(1))
    torch.testing.assert_close(shuffled.flip(1), together)
    assert (together[:, 0] - together[:, -1]).abs().max() > 1e-4


@pytest.mark.parametrize("name", HEADS)
def test_an_action_is_read_off_the_plan(name: str, plan: Plan) -> None:
    made, states = head(name), torch.randn(6, tiny.CHUNK, 4)
    offsets = torch.arange(tiny.CHUNK).expand(6, -1)
    made(plan, states, offsets).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in made.parameters())
    other = Plan(plan.codes, plan.latent + 1)
    assert not torch.allclose(made(plan, states, offsets), made(other, states, offsets))


@torch.no_grad()
def test_only_latent_state_looks_at_the_state(plan: Plan) -> None:
    states, offsets = torch.randn(6, tiny.CHUNK, 4), torch.arange(tiny.CHUNK).expand(6, -1)
    blind, seeing = head("latent"), head("latent_state")
    assert torch.equal(blind(plan, states, offsets), blind(plan, states + 1, offsets))
    assert not torch.allclose(seeing(plan, states, offsets), seeing(plan, states + 1, offsets))
