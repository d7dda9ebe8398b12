"""The decoder that continues the current state: what it looks at, and what a partial row of latents decides."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from trajgen.core.errors import ConfigError
from trajgen.core.registry import build
from trajgen.core.types import Cond
from trajgen.decoders.convolutional import StateConditionedDecoder

FEATURES, CODE_DIM = 5, 6


def decoder(latent_length: int = tiny.LATENT, goal_dim: int = 2, **options: Any) -> StateConditionedDecoder:
    """A decoder with moved weights."""
    wiring = {"features": FEATURES, "horizon": tiny.HORIZON, "latent_length": latent_length, "code_dim": CODE_DIM}
    node = tiny.node("decoder", "state_conditioned", **options)
    made = build("decoder", node, **wiring, state_dim=4, goal_dim=goal_dim)
    tiny.shake(made)
    assert isinstance(made, StateConditionedDecoder)
    return made


def latent(length: int = tiny.LATENT) -> Tensor:
    return torch.randn(6, length, CODE_DIM)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [2, 4, 16])
@torch.no_grad()
def test_every_point_follows_from_the_latent_and_the_current_state(length: int, causal: bool, cond: Cond) -> None:
    made, z = decoder(length, causal=causal), latent(length)
    decoded = made(z, cond)
    assert decoded.shape == (6, tiny.HORIZON, FEATURES)
    for changed in (made(z + 1, cond), made(z, tiny.moved(cond, state=1.0))):
        assert ((changed - decoded).abs().amax(-1) > 1e-5).all()
    assert torch.equal(made(z, tiny.moved(cond, returns=1.0, goal=1.0)), decoded)
    assert torch.equal(made(z, cond.unconditional()), decoded)  # the state is measured, whatever the prior is told


@torch.no_grad()
def test_the_goal_is_looked_at_if_asked_for(cond: Cond) -> None:
    made, z = decoder(goal=True), latent()
    assert ((made(z, tiny.moved(cond, goal=1.0)) - made(z, cond)).abs().amax(-1) > 1e-5).all()


@pytest.mark.parametrize("length", [2, 4, 8, 16])
@torch.no_grad()
def test_a_causal_decoder_decides_the_points_of_a_partial_row(length: int, cond: Cond) -> None:
    made, z, ratio = decoder(length, depth=2), latent(length), tiny.HORIZON // length
    whole = made(z, cond)
    for i in range(length):
        changed = z.clone()
        changed[:, i:] += torch.randn(6, length - i, CODE_DIM)
        moved = (made(changed, cond) - whole).abs().amax((0, 2))
        assert (moved[: i * ratio] < 1e-6).all()
        assert (moved[i * ratio :] > 1e-5).all()


@torch.no_grad()
def test_without_causality_later_latents_change_earlier_points(cond: Cond) -> None:
    made, z = decoder(causal=False), latent()
    changed = z.clone()
    changed[:, -1] += 1
    assert (made(changed, cond) - made(z, cond))[:, 0].abs().max() > 1e-5


@torch.no_grad()
def test_one_plan_does_not_depend_on_the_others(cond: Cond) -> None:
    made, z = decoder(), latent()
    alone = made(z[2:3], cond.map(lambda v: v[2:3]))
    torch.testing.assert_close(made(z, cond)[2:3], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_all_of_it_trains_with_the_tokenizer(cond: Cond) -> None:
    made, z = decoder(), latent()
    assert {id(p) for p in made.base_parameters()} == {id(p) for p in made.parameters()}
    assert made.adapter_parameters() == []
    assert torch.equal(made.base(z, cond), made(z, cond))


@pytest.mark.parametrize("causal", [True, False])
def test_every_parameter_learns(causal: bool, cond: Cond) -> None:
    made = decoder(causal=causal)
    made(latent(), cond).square().mean().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_a_latent_that_does_not_fit_the_horizon_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.horizon=16, a latent of length 5") as caught:
        decoder(5)
    tiny.check_cure(caught.value)


def test_a_goal_that_plans_do_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"decoder\.goal=true") as caught:
        decoder(goal_dim=0, goal=True)
    tiny.check_cure(caught.value)
