"""GPT: codes of several types, step by step and in one pass, and embedded steps of the episode."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Cond
from trajgen.priors.gpt import GPTPrior


def assert_same(first: Tensor, second: Tensor) -> None:
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


def gpt(**options: Any) -> GPTPrior:
    """A small GPT over points of three codes, with perturbed weights."""

    class Embedding(nn.Module):
        width = 4

        def forward(self, cond: Cond) -> Tensor:
            return cond.state.unsqueeze(1)

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2}
    prior = GPTPrior(ScaleSchedule((1,) * 12), 6, None, Embedding(), 3, 2, **{**sizes, **options})
    tiny.shake(prior)
    return prior.eval()


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("timesteps", [0, 9])
@torch.no_grad()
def test_codes_of_several_types_step_by_step(prefix: bool, timesteps: int) -> None:
    prior, cond, codes = gpt(prefix=prefix, timesteps=timesteps), tiny.cond(), torch.randn(6, 12, 6)
    forced = prior.logits(codes[:, :-1], cond)
    state = prior.start(cond)
    stepwise = [prior.step(codes[:, k - 1 : k] if k else None, k, state) for k in range(5)]
    assert_same(torch.cat(stepwise, dim=1), forced[:, :5])
    order = torch.tensor([2, 2, 0])
    assert_same(prior.step(codes[order, 4:5], 5, state.rows(order)), forced[order, 5:6])
    assert forced[:, 0].any() == prefix
    loss, predicted = prior(codes, codes[:, :-1], cond)
    assert_same(predicted, forced)
    assert_same(loss, (forced - codes)[:, 0 if prefix else 1 :].square().mean())


@torch.no_grad()
def test_steps_beyond_the_table_share_its_last_entry() -> None:
    prior, cond, inputs = gpt(timesteps=9), tiny.cond(), torch.randn(6, 11, 6)

    def at(step: int) -> Tensor:
        return prior.logits(inputs, replace(cond, time=torch.full((6,), step)))

    assert torch.equal(at(9), at(100)) and torch.equal(at(0), prior.logits(inputs, replace(cond, time=None)))
    # Points are two steps apart: from step 7 on only the first is not at the table's end.
    assert not torch.allclose(at(7), at(8)) and not torch.allclose(at(0), at(1))
    table = prior.time_embed.weight.clone()
    prior.time_embed.weight[1::2] += 1
    changed = at(0)
    prior.time_embed.weight.copy_(table)
    assert torch.equal(changed, at(0))  # points at even steps read even entries
