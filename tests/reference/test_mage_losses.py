"""Which parts the losses of MAGE reach, and that they cannot be met without them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from trajgen.core.types import Plan
from trajgen.planners.latent import inverse_loss


def planner(**swaps: Any) -> Any:
    """A planner in its prior's stage, with codes in use."""
    built = tiny.planner(conditioner={"dropout": 0.0}, **swaps)
    tiny.shake(built)
    stages = {stage.name: stage for stage in built.stages()}
    for name in ("tokenizer", "prior"):
        stages[name].begin(built)
        stages[name].loss(tiny.batch(64))
    return built


@pytest.mark.parametrize("action", ["latent", "latent_state"])
def test_inverse_and_condition_loss_train_the_prior(action: str) -> None:
    norms = planner(action=action).gradient_norms()
    assert set(norms) == {"gradient_norm/prior", "gradient_norm/inverse", "gradient_norm/condition"}
    assert all(value > 0.05 * norms["gradient_norm/prior"] for value in norms.values())


def test_gradient_norms_are_of_the_last_batch_that_was_trained_on() -> None:
    built = planner()
    trained = built._last_batch
    built.eval().prior_loss(tiny.batch(8, seed=9))  # as in validation
    assert built._last_batch is trained


def test_on_the_datas_latents_the_inverse_loss_trains_the_head_alone() -> None:
    built = planner(planner={"end_to_end": False})
    assert built.gradient_norms()["gradient_norm/inverse"] == 0
    batch = tiny.batch(16)
    encoding = built.tokenizer.encode(built.view(batch))
    expected = inverse_loss(built.action, batch, Plan(encoding.codes, encoding.latent))
    torch.testing.assert_close(built.prior_loss(batch)["inverse"], expected)


def test_a_loss_that_nothing_can_lower_has_no_gradient() -> None:
    """L_cond where the view holds nothing of the condition, L_inv where the head is frozen: numbers, no errors."""
    norms = planner(view={"fields": ("action",)}, action="plan").gradient_norms()
    assert norms["gradient_norm/condition"] == 0 < norms["gradient_norm/prior"]
    built = planner(planner={"end_to_end": False})
    built.action.requires_grad_(False)  # as by train_only=[prior]
    norms = built.gradient_norms()
    assert norms["gradient_norm/inverse"] == 0 < norms["gradient_norm/condition"]


def test_the_generated_latent_is_that_of_one_hot_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Straight-through: the value is that of a code, the gradient that of a softmax."""
    built, batch = planner(), tiny.batch(16)
    ids: list[Tensor] = []

    def sample(logits: Tensor, tau: float, hard: bool) -> Tensor:
        ids.append(logits.argmax(-1))
        soft = (logits / tau).softmax(-1)
        return F.one_hot(ids[-1], logits.shape[-1]) + soft - soft.detach()

    monkeypatch.setattr(F, "gumbel_softmax", sample)
    losses = built.prior_loss(batch)
    latent = built.tokenizer.layout.latent(built.tokenizer.vectors(ids[0]))
    expected = inverse_loss(built.action, batch, Plan(ids[0], latent))
    torch.testing.assert_close(losses["inverse"], expected)
    cond = batch.condition()
    residuals = built.condition_residuals(built.decoder(latent, cond), cond)
    torch.testing.assert_close(losses["condition"], torch.cat([*residuals.values()], dim=-1).square().mean())


@pytest.mark.parametrize("tokenizer", ["bins", "identity"])
def test_known_codes_are_not_generated(tokenizer: str) -> None:
    """The head reads the present state as it does when acting, not what the prior would have drawn in its place."""
    row: dict[str, Any] = {"view": {"fields": ("state", "return")}, "schedule": "unit", "decoder": "identity"}
    tokens = {"name": tokenizer} | ({"tokens": "field"} if tokenizer == "identity" else {})
    built = planner(tokenizer=tokens, prior={"name": "gpt", "prefix": False}, sampler="greedy", **row)
    batch = tiny.batch(16)
    codes = built.tokenizer.encode(built.view(batch)).codes
    is_known = list(built.tokenizer.known_tokens)
    generated = built._codes(batch)
    assert torch.equal(generated[:, is_known], codes[:, is_known]) and any(is_known)
    assert not torch.equal(generated, codes)
    assert built.prior_loss(batch)["inverse"].requires_grad


def test_the_decoder_reads_the_return_and_not_the_state() -> None:
    built, cond = planner().eval(), tiny.cond(8)
    latent = torch.randn(8, built.tokenizer.latent_length, built.tokenizer.code_dim)

    def changed(decode: Any, **field: Tensor) -> bool:
        return not torch.equal(decode(latent, cond), decode(latent, replace(cond, **field)))

    for decode in (built.decoder, built.decoder.base):
        assert changed(decode, returns=cond.returns + 1) and not changed(decode, state=cond.state + 1)
    copies = planner(decoder={"state": True}).eval().decoder
    assert changed(copies, state=cond.state + 1) and not changed(copies.base, state=cond.state + 1)
    without = planner(decoder={"returns": False}).eval().decoder
    assert not changed(without, returns=cond.returns + 1, state=cond.state + 1)
