"""Quantizers against vector-quantize-pytorch itself, and against naive formulas of their papers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from vector_quantize_pytorch import FSQ, LFQ, SimVQ

from trajgen.core.errors import ConfigError
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Batch
from trajgen.tokenizers.codebook import FiniteScalars, LinearCodebook, Signs
from trajgen.tokenizers.latent import LatentTokenizer, fsq, lfq, simvq

LEVELS = [(8, 6, 5), (3,), (4, 7), (5, 5, 5, 3)]
QUANTISERS: list[Any] = [
    lambda: FiniteScalars((8, 6, 5)),
    lambda: Signs(3, entropy=0.1, diversity=1.0, commitment=0.25),
    lambda: LinearCodebook(20, 3, commitment=0.25),
]


def unit(length: int) -> ScaleSchedule:
    return ScaleSchedule((1,) * length)


def known(x: Tensor) -> Batch:
    """A batch of which only the mask matters."""
    n, points = x.shape[:2]
    real, few = torch.ones(n, points, dtype=torch.bool), torch.ones(n, 1, dtype=torch.bool)
    zeros = torch.zeros(n, points)
    return Batch(x, x.unsqueeze(2), zeros, zeros, real, x[:, :1], x[:, :1], few)


def flat_decoder(made: LatentTokenizer, x: Tensor) -> Any:
    weight = torch.randn(made.latent_length * made.code_dim, x[0].numel()) * 0.1
    return lambda latent: (latent.flatten(1) @ weight).view_as(x)


@pytest.mark.parametrize("levels", LEVELS)
def test_finite_scalars_are_those_of_the_library(levels: tuple[int, ...]) -> None:
    own, other = FiniteScalars(levels), FSQ(list(levels))
    z = torch.cat([torch.randn(2, 200, len(levels)) * 2, torch.full((2, 1, len(levels)), 50.0)], 1)
    z = torch.cat([z, -z, z * 0], 1).requires_grad_()
    f = own.bound(z)
    ids = own.nearest(f.detach())
    codes, other_ids = other(z)
    assert torch.equal(ids, other_ids.long()) and own.size == len(own.table)
    torch.testing.assert_close(own.table[ids], codes.detach())
    # Straight through f, gradients are those of the library's rounding.
    weights = torch.randn_like(codes)
    (wanted,) = torch.autograd.grad((codes * weights).sum(), z)
    (found,) = torch.autograd.grad(((own.table[ids] + f - f.detach()) * weights).sum(), z)
    torch.testing.assert_close(found, wanted)


@torch.no_grad()
def test_a_row_of_finite_scalars_is_the_encoder_s_output_through_the_library() -> None:
    made = fsq(unit, 5, 32, latent_length=4, width=16)
    x = torch.randn(3, 32, 5) * 20  # far beyond the levels, unless it is bounded
    codes, ids = FSQ([8, 6, 5])(made.encoder(x))
    assert torch.equal(made.encode(x).codes, ids.long()) and len(ids.unique()) > 2
    torch.testing.assert_close(made.layout.latent(made.vectors(made.encode(x).codes)), codes)


@pytest.mark.parametrize("build", QUANTISERS)
def test_ids_are_those_of_the_nearest_row_of_the_table(build: Any) -> None:
    own, x = build(), torch.randn(3, 40, 3)
    ids = own.nearest(x)
    assert ids.dtype == torch.int64 and own.table.shape == (own.size, 3)
    distance = (x.unsqueeze(-2) - own.table).square().sum(-1)
    torch.testing.assert_close(distance.gather(-1, ids.unsqueeze(-1)).squeeze(-1), distance.amin(-1))
    assert torch.equal(own.nearest(own.table.unsqueeze(0).detach())[0], torch.arange(own.size))


@pytest.mark.parametrize("build", QUANTISERS)
def test_codes_are_the_same_in_lower_precision(build: Any) -> None:
    own, x = build(), torch.randn(3, 40, 3)
    exact, table, loss = own.nearest(own.bound(x)), own.table, own.learn(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert own.table.dtype == torch.float32 and torch.equal(own.table, table)
        assert torch.equal(own.nearest(own.bound(x)), exact)
        torch.testing.assert_close(own.learn(x), loss)


def test_signs_are_those_of_the_library_and_so_is_their_loss() -> None:
    own = Signs(4, entropy=0.3, diversity=1.5, commitment=0.25)
    other = LFQ(dim=4, entropy_loss_weight=0.3, diversity_gamma=1.5, commitment_loss_weight=0.25)
    x = torch.randn(2, 30, 4)
    quantized, ids, loss = other.train()(x)
    assert torch.equal(own.nearest(x), ids) and own.size == 16
    torch.testing.assert_close(own.table[ids], quantized)
    torch.testing.assert_close(own.train().learn(x), loss)
    assert float(own.eval().learn(x)) == 0


def test_the_entropy_loss_of_signs_by_hand() -> None:
    own = Signs(2, entropy=0.3, diversity=2.0, commitment=0.25).train()
    x = torch.tensor([[[0.01, 0.02], [-0.005, 0.01], [0.0, 0.03]]])
    codes = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    assert torch.equal(own.table, codes)
    shares = torch.stack([torch.stack([-100 * (v - c).square().sum() for c in codes]).softmax(0) for v in x[0]])
    each = torch.stack([torch.special.entr(row).sum() for row in shares]).mean()
    together = torch.special.entr(shares.mean(0)).sum()
    signs = torch.where(x > 0, 1.0, -1.0)
    expected = 0.3 * (each - 2.0 * together) + 0.25 * (x - signs).square().mean()
    assert float(own.learn(x)) == pytest.approx(float(expected), abs=2e-4)  # the library cuts off logarithms


def test_linear_codes_are_those_of_the_library_and_so_is_their_loss() -> None:
    own, other = LinearCodebook(20, 3, commitment=0.4), SimVQ(3, 20, input_to_quantize_commit_loss_weight=0.4)
    other.load_state_dict(own.quantizer.state_dict())
    x = torch.randn(2, 30, 3)
    quantized, ids, loss = other(x)
    assert torch.equal(own.nearest(x), ids)
    torch.testing.assert_close(own.table[ids], quantized)
    torch.testing.assert_close(own.learn(x), loss)
    code = own.quantizer.frozen_codebook @ own.quantizer.code_transform.weight.T
    torch.testing.assert_close(own.table, code)
    expected = (1 + 0.4) * (x - code[ids]).square().mean()
    torch.testing.assert_close(own.learn(x), expected)


def test_linear_codes_move_all_together_and_by_their_own_loss_alone() -> None:
    made = simvq(unit, 5, 32, latent_length=4, code_dim=3, codebook_size=20, width=16)
    x = torch.randn(4, 32, 5)
    losses = made.loss(known(x), x, flat_decoder(made, x))
    weight = made.codebook.quantizer.code_transform.weight
    (by_decoder,) = torch.autograd.grad(losses["reconstruction"], weight, retain_graph=True, allow_unused=True)
    assert by_decoder is None
    before = made.codebook.table.detach().clone()
    losses["commitment"].backward()
    with torch.no_grad():
        weight -= 0.1 * weight.grad
    assert (made.codebook.table - before).abs().sum(-1).gt(0).all()


@pytest.mark.parametrize("levels", [(), (2, 8), (1,), (8, 0), (300, 300), (100,) * 8])
def test_levels_that_cannot_be_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        fsq(unit, 5, 32, levels=levels)
    assert caught.value.expected and "levels" in str(caught.value.got)
    assert caught.value.fix == "tokenizer.levels=[8,6,5]"
    assert fsq(unit, 5, 32, levels=(8, 6, 5), width=16).vocabulary == 240


def test_more_signs_than_a_prior_can_tell_apart_are_refused() -> None:
    with pytest.raises(ConfigError, match="2\\^40") as caught:
        lfq(unit, 5, 32, code_dim=40)
    assert caught.value.expected and caught.value.fix
    assert lfq(unit, 5, 32, code_dim=9, width=16).vocabulary == 512


@pytest.mark.parametrize("build", [fsq, lfq, simvq])
@pytest.mark.parametrize("lengths", [(1,) * 4, (1, 2, 4)])
def test_a_few_steps_bring_the_reconstruction_down(build: Any, lengths: tuple[int, ...]) -> None:
    made = build(lambda _: ScaleSchedule(lengths), 2, 16, latent_length=4, width=16)
    phase = torch.rand(64, 1) * 6
    x = torch.stack([torch.sin(phase + torch.arange(16) / 4), torch.cos(phase + torch.arange(16) / 4)], -1)
    read = torch.nn.Linear(4 * made.code_dim, 32)
    optimizer = torch.optim.Adam([*made.parameters(), *read.parameters()], lr=1e-2)
    history = []
    for _ in range(60):
        losses = made.loss(known(x), x, lambda latent: read(latent.flatten(1)).view_as(x))
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        history.append(float(losses["reconstruction"].detach()))
    assert history[-1] < 0.4 * history[0]
    assert F.one_hot(made.encode(x).codes, made.vocabulary).sum((0, 1)).gt(0).sum() > 4
