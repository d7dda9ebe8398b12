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
    made = tiny.planner(conditioner={"dropout": 0.0}, **swaps)
    tiny.shake(made)
    stages = {stage.name: stage for stage in made.stages()}
    for name in ("tokenizer", "prior"):
        stages[name].begin(made)
        stages[name].loss(tiny.batch(64))
    return made


@pytest.mark.parametrize("action", ["latent", "latent_state"])
def test_inverse_and_condition_loss_train_the_prior(action: str) -> None:
    norms = planner(action=action).gradient_norms()
    assert set(norms) == {"gradient_norm/prior", "gradient_norm/inverse", "gradient_norm/condition"}
    assert all(value > 0.05 * norms["gradient_norm/prior"] for value in norms.values())


def test_on_the_datas_latents_the_inverse_loss_trains_the_head_alone() -> None:
    made = planner(planner={"end_to_end": False})
    assert made.gradient_norms()["gradient_norm/inverse"] == 0
    batch = tiny.batch(16)
    encoding = made.tokenizer.encode(made.view(batch))
    expected = inverse_loss(made.action, batch, Plan(encoding.codes, encoding.latent))
    torch.testing.assert_close(made.prior_loss(batch)["inverse"], expected)


def test_the_generated_latent_is_that_of_one_hot_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Straight-through: the value is that of a code, the gradient that of a softmax."""
    made, batch = planner(), tiny.batch(16)
    ids: list[Tensor] = []

    def sample(logits: Tensor, tau: float, hard: bool) -> Tensor:
        ids.append(logits.argmax(-1))
        soft = (logits / tau).softmax(-1)
        return F.one_hot(ids[-1], logits.shape[-1]) + soft - soft.detach()

    monkeypatch.setattr(F, "gumbel_softmax", sample)
    losses = made.prior_loss(batch)
    latent = made.tokenizer.layout.latent(made.tokenizer.vectors(ids[0]))
    expected = inverse_loss(made.action, batch, Plan(ids[0], latent))
    torch.testing.assert_close(losses["inverse"], expected)
    cond = batch.condition()
    residuals = made.condition_residuals(made.decoder(latent, cond), cond)
    torch.testing.assert_close(losses["condition"], torch.cat([*residuals.values()], dim=-1).square().mean())


def test_the_decoder_reads_the_return_and_not_the_state() -> None:
    made, cond = planner().eval(), tiny.cond(8)
    latent = torch.randn(8, made.tokenizer.latent_length, made.tokenizer.code_dim)

    def changed(decode: Any, **field: Tensor) -> bool:
        return not torch.equal(decode(latent, cond), decode(latent, replace(cond, **field)))

    for decode in (made.decoder, made.decoder.base):
        assert changed(decode, returns=cond.returns + 1) and not changed(decode, state=cond.state + 1)
    copies = planner(decoder={"state": True}).eval().decoder
    assert changed(copies, state=cond.state + 1) and not changed(copies.base, state=cond.state + 1)
    without = planner(decoder={"returns": False}).eval().decoder
    assert not changed(without, returns=cond.returns + 1, state=cond.state + 1)
