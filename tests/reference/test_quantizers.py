"""Quantizers against vector-quantize-pytorch, and against formulas of their papers by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from vector_quantize_pytorch import FSQ, LFQ, SimVQ, VectorQuantize

from trajgen.core.errors import ConfigError
from trajgen.core.schedule import ScaleSchedule
from trajgen.tokenizers.multiscale import CodeUsage, MultiscaleTokenizer
from trajgen.tokenizers.quantizers import (
    QUANTIZERS,
    EMAVectorQuantizer,
    FSQQuantizer,
    LFQQuantizer,
    Quantizer,
    SimVQQuantizer,
)


def build(kind: str) -> Quantizer:
    """A quantizer of width 3 with codes in use."""
    torch.manual_seed(0)
    options: dict[str, dict[str, Any]] = {
        "vq": {"codebook_size": 20, "code_dim": 3},
        "fsq": {"levels": (8, 6, 5)},
        "lfq": {"code_dim": 3},
        "simvq": {"codebook_size": 20, "code_dim": 3},
    }
    quantizer = QUANTIZERS[kind](**options[kind])
    quantizer.initialize(torch.randn(4, 50, 3))
    return quantizer


def ema(codebook: Tensor, **options: Any) -> EMAVectorQuantizer:
    """A quantizer in training with these codes, each of which has been used once."""
    quantizer = EMAVectorQuantizer(*codebook.shape, **options)
    state = {"embed": codebook, "embed_avg": codebook, "cluster_size": torch.ones(len(codebook))}
    quantizer.load_state_dict(state)
    return quantizer.train()


def step(quantizer: Quantizer, *batches: Tensor) -> Tensor:
    """One training step on micro-batches; the loss of the last."""
    torch.manual_seed(1)
    for x in batches:
        loss = quantizer.loss(x, quantizer.nearest(x))
    quantizer.after_step()
    return loss


def tokenizer(quantizer: Any, lengths: tuple[int, ...] = (1,) * 4, features: int = 5, **options: Any) -> Any:
    sizes = {"latent_length": 4, "width": 16} | ({"code_dim": 3} if quantizer != "fsq" else {}) | options
    return MultiscaleTokenizer(lambda _: ScaleSchedule(lengths), features, 16, quantizer=quantizer, **sizes)


# --- moving averages ------------------------------------------------------------------------------------------------


def test_one_step_of_the_moving_averages_by_hand() -> None:
    quantizer = ema(torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]), dead_code_threshold=0.0)
    x = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [9.0, 1.0]]])  # two nearest to code 0, one to code 1, none to code 2
    loss = step(quantizer, x)
    counts = torch.tensor([0.9 + 0.1 * n for n in (2, 1, 0)])
    averages = torch.tensor([[0.1 * 1, 0.1 * 2], [0.9 * 10 + 0.1 * 9, 0.1 * 1], [0.0, 0.9 * 10]])
    torch.testing.assert_close(quantizer.cluster_size, counts)
    torch.testing.assert_close(quantizer.embed_avg, averages)
    torch.testing.assert_close(quantizer.codebook, averages / counts.unsqueeze(1), atol=1e-3, rtol=1e-4)  # smoothing
    assert float(loss) == pytest.approx(0.25 * (1 + 4 + 1 + 1) / 6, rel=1e-6)  # over 3 vectors of 2 numbers


def test_moving_averages_are_those_of_the_library() -> None:
    reference = VectorQuantize(
        dim=3, codebook_size=30, decay=0.8, threshold_ema_dead_code=0, commitment_weight=0.4, rotation_trick=False
    ).train()
    quantizer = ema(reference.codebook.clone(), decay=0.8, commitment=0.4, dead_code_threshold=0.0)
    for _ in range(3):
        x = torch.randn(4, 50, 3)
        ids = quantizer.nearest(x)
        quantized, expected_ids, expected_loss = reference(x)
        assert torch.equal(ids, expected_ids)
        torch.testing.assert_close(F.embedding(ids, quantizer.codebook), quantized)
        torch.testing.assert_close(step(quantizer, x), expected_loss.sum())
        torch.testing.assert_close(quantizer.codebook, reference.codebook)


def test_micro_batches_update_the_codes_once_as_the_whole_batch_does() -> None:
    x, codebook = torch.randn(6, 10, 3), torch.randn(40, 3)
    undivided, divided = ema(codebook, dead_code_threshold=0.95), ema(codebook, dead_code_threshold=0.95)
    step(undivided, x)
    step(divided, x[0::3], x[1::3], x[2::3])
    assert all(torch.equal(a, b) for a, b in zip(undivided.buffers(), divided.buffers(), strict=True))
    before = divided.codebook.clone()
    divided.after_step()  # without a loss there is nothing to learn from
    assert torch.equal(divided.codebook, before) and not torch.equal(before, codebook)


@pytest.mark.parametrize("vectors", [64, 2])
def test_dead_codes_are_replaced_by_different_vectors_of_the_batch(vectors: int) -> None:
    quantizer = ema(torch.tensor([[0.0, 0.0], [50.0, 50.0], [60.0, 60.0], [70.0, 70.0]]), dead_code_threshold=0.95)
    x = torch.randn(1, vectors, 2)
    step(quantizer, x)
    replaced = [row for row in quantizer.codebook if (row == x[0]).all(-1).any()]
    assert len(replaced) == len({tuple(row.tolist()) for row in replaced}) == min(3, vectors)
    for _ in range(2):  # what did not fit is replaced later
        step(quantizer, torch.randn(1, 64, 2))
    assert quantizer.codebook.abs().max() < 10 and len(quantizer.nearest(torch.randn(1, 200, 2)).unique()) == 4


def test_codes_start_as_centers_of_the_data() -> None:
    quantizer = EMAVectorQuantizer(2, 2).train()
    assert not quantizer.initialized
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quantizer.initialize(torch.cat([torch.randn(1, 50, 2) * 0.1 + 5, torch.randn(1, 50, 2) * 0.1 - 5], 1))
    assert sorted(quantizer.codebook[:, 0].round().tolist()) == [-5, 5] and quantizer.initialized
    assert quantizer.cluster_size.tolist() == [50, 50]
    other = EMAVectorQuantizer(2, 2)
    other.load_state_dict(quantizer.state_dict())
    assert other.initialized
    few = EMAVectorQuantizer(5, 2)
    few.initialize(torch.randn(1, 3, 2))  # fewer vectors than codes
    assert few.codebook.isfinite().all() and float(few.cluster_size.sum()) == 3


class RefuseWaiting(TorchDispatchMode):
    """Raises for operations that copy a value to the host, or whose output's shape depends on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal"), name
        assert not by_mask, name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_a_training_step_does_not_wait_for_the_device(kind: str) -> None:
    quantizer, x = build(kind).train(), torch.randn(4, 30, 3, requires_grad=True)
    with RefuseWaiting():
        loss = quantizer.loss(quantizer.bound(x), quantizer.nearest(x.detach()))
        (loss + 0 * x.sum()).backward()
        quantizer.after_step()
    assert loss.isfinite() and x.grad is not None and x.grad.isfinite().all()


# --- all quantizers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", QUANTIZERS)
@torch.no_grad()
def test_ids_are_those_of_the_nearest_code(kind: str) -> None:
    quantizer, x = build(kind), torch.randn(3, 40, 3)
    ids = quantizer.nearest(x)
    assert ids.dtype == torch.int64 and quantizer.codebook.shape == (quantizer.size, 3)
    distances = (x.unsqueeze(-2) - quantizer.codebook).square().sum(-1)
    torch.testing.assert_close(distances.gather(-1, ids.unsqueeze(-1)).squeeze(-1), distances.amin(-1))
    assert torch.equal(quantizer.nearest(quantizer.codebook.unsqueeze(0))[0], torch.arange(quantizer.size))


@pytest.mark.parametrize("kind", QUANTIZERS)
@torch.no_grad()
def test_codes_and_losses_are_the_same_under_autocast(kind: str) -> None:
    exact, lower, x = build(kind).train(), build(kind).train(), torch.randn(3, 40, 3).bfloat16()
    ids, loss = exact.nearest(exact.bound(x)), step(exact, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lower.nearest(lower.bound(x)), ids)
        torch.testing.assert_close(step(lower, x), loss)
        assert lower.codebook.dtype == torch.float32 and torch.equal(lower.codebook, exact.codebook)


@pytest.mark.parametrize(("lengths", "dtype"), [((1,) * 4, torch.float32), ((1, 2, 4), torch.bfloat16)], ids=str)
@pytest.mark.parametrize("kind", QUANTIZERS)
def test_training_reduces_the_reconstruction(kind: str, lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    built = tokenizer(kind, lengths, 2, **({"code_dim": 8} if kind != "fsq" else {}))
    phase = torch.rand(32, 1) * 6 + torch.arange(16) / 4
    x, batch = torch.stack([phase.sin(), phase.cos()], -1), tiny.batch(32)
    batch.mask.fill_(True)
    decoder = torch.nn.Linear(4 * built.code_dim, 32)
    optimizer = torch.optim.Adam([*built.parameters(), *decoder.parameters()], lr=1e-2)
    history = []
    for _ in range(60):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not torch.float32):
            losses = built.loss(batch, x, lambda latent: decoder(latent.flatten(1)).view_as(x))
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        built.after_step()
        history.append(float(losses["reconstruction"].detach()))
    assert history[-1] < 0.4 * history[0]
    assert len(built.encode(x).codes.unique()) > 4


@pytest.mark.parametrize(
    ("kind", "options", "fix"),
    [
        ("fsq", {"code_dim": 4}, "tokenizer.code_dim=8"),
        ("fsq", {"commitment": 0.5}, "tokenizer.commitment=0.25"),
        ("lfq", {"codebook_size": 64}, "tokenizer.codebook_size=128"),
        ("simvq", {"decay": 0.5}, "tokenizer.decay=0.9"),
        ("vq", {"levels": (5, 5)}, "tokenizer.levels=[8,6,5]"),
        ("fsq", {"levels": ()}, "tokenizer.levels=[8,6,5]"),
        ("fsq", {"levels": (2, 8)}, "tokenizer.levels=[8,6,5]"),
        ("fsq", {"levels": (8, 0)}, "tokenizer.levels=[8,6,5]"),
        ("fsq", {"levels": (300, 300)}, "tokenizer.levels=[8,6,5]"),
        ("lfq", {"code_dim": 40}, "tokenizer.code_dim=8"),
        ("vq", {"decay": 1.5}, "tokenizer.decay=0.9"),
    ],
)
def test_options_that_a_quantizer_cannot_take_are_refused(kind: Any, options: dict[str, Any], fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MultiscaleTokenizer(lambda n: ScaleSchedule((n,)), 5, 32, quantizer=kind, **options)
    tiny.check_cure(caught.value)
    assert caught.value.fix == fix


def test_vocabularies() -> None:
    assert [tokenizer(kind).vocabulary for kind in QUANTIZERS] == [128, 240, 8, 128]
    assert tokenizer("fsq", levels=(5, 4)).code_dim == 2


# --- FSQ ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [(8, 6, 5), (3,), (4, 7), (5, 5, 5, 3)])
def test_fsq_is_that_of_the_library(levels: tuple[int, ...]) -> None:
    quantizer, reference = FSQQuantizer(levels), FSQ(list(levels))
    z = torch.cat([torch.randn(2, 200, len(levels)) * 2, torch.full((2, 1, len(levels)), 50.0)], 1)
    z = torch.cat([z, -z, z * 0], 1).requires_grad_()
    f = quantizer.bound(z)
    ids = quantizer.nearest(f.detach())
    codes, expected_ids = reference(z)
    assert torch.equal(ids, expected_ids.long()) and quantizer.size == len(quantizer.codebook)
    torch.testing.assert_close(quantizer.codebook[ids], codes.detach())
    # Straight through f, gradients are those of the library's rounding.
    weights = torch.randn_like(codes)
    (expected,) = torch.autograd.grad((codes * weights).sum(), z)
    (gradient,) = torch.autograd.grad(((quantizer.codebook[ids] + f - f.detach()) * weights).sum(), z)
    torch.testing.assert_close(gradient, expected)


@torch.no_grad()
def test_a_row_of_fsq_codes_is_the_encoder_s_output_through_the_library() -> None:
    built, x = tokenizer("fsq"), torch.randn(3, 16, 5) * 20  # far beyond the levels, unless it is bounded
    codes, ids = FSQ([8, 6, 5])(built.encoder(x))
    encoding = built.encode(x)
    assert torch.equal(encoding.codes, ids.long()) and len(ids.unique()) > 2
    torch.testing.assert_close(encoding.latent, codes)


# --- LFQ ------------------------------------------------------------------------------------------------------------


def test_lfq_is_that_of_the_library() -> None:
    quantizer = LFQQuantizer(4, entropy=0.3, diversity=1.5, commitment=0.25)
    reference = LFQ(dim=4, entropy_loss_weight=0.3, diversity_gamma=1.5, commitment_loss_weight=0.25)
    x = torch.randn(2, 30, 4)
    quantized, ids, loss = reference.train()(x)
    assert torch.equal(quantizer.nearest(x), ids) and quantizer.size == 16
    torch.testing.assert_close(quantizer.codebook[ids], quantized)
    torch.testing.assert_close(quantizer.train().loss(x, ids), loss)
    assert float(quantizer.eval().loss(x, ids)) == 0


def test_the_entropy_loss_of_lfq_by_hand() -> None:
    quantizer = LFQQuantizer(2, entropy=0.3, diversity=2.0, commitment=0.25).train()
    x = torch.tensor([[[0.01, 0.02], [-0.005, 0.01], [0.0, 0.03]]])
    codes = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    assert torch.equal(quantizer.codebook, codes)
    probs = torch.stack([torch.stack([-100 * (v - c).square().sum() for c in codes]).softmax(0) for v in x[0]])
    per_vector = torch.stack([torch.special.entr(row).sum() for row in probs]).mean()
    of_batch = torch.special.entr(probs.mean(0)).sum()
    signs = torch.where(x > 0, 1.0, -1.0)
    expected = 0.3 * (per_vector - 2.0 * of_batch) + 0.25 * (x - signs).square().mean()
    loss = quantizer.loss(x, quantizer.nearest(x))
    assert float(loss) == pytest.approx(float(expected), abs=2e-4)  # the library clamps logarithms


# --- SimVQ ----------------------------------------------------------------------------------------------------------


def test_simvq_is_that_of_the_library() -> None:
    quantizer = SimVQQuantizer(20, 3, commitment=0.4)
    reference = SimVQ(3, 20, input_to_quantize_commit_loss_weight=0.4)
    reference.load_state_dict(quantizer.simvq.state_dict())
    x = torch.randn(2, 30, 3)
    quantized, ids, loss = reference(x)
    assert torch.equal(quantizer.nearest(x), ids)
    torch.testing.assert_close(quantizer.codebook[ids], quantized)
    torch.testing.assert_close(quantizer.loss(x, ids), loss)
    torch.testing.assert_close(quantizer.loss(x, ids), (1 + 0.4) * (x - quantizer.codebook[ids]).square().mean())


def test_simvq_moves_all_codes_and_by_its_own_loss_alone() -> None:
    built, x, batch = tokenizer("simvq"), torch.randn(4, 16, 5), tiny.batch(4)
    decode = torch.nn.Linear(12, 80)
    losses = built.loss(batch, x, lambda latent: decode(latent.flatten(1)).view_as(x))
    weight = built.quantizer.simvq.code_transform.weight
    (gradient,) = torch.autograd.grad(losses["reconstruction"], weight, retain_graph=True, allow_unused=True)
    assert gradient is None
    before = built.quantizer.codebook.detach().clone()
    losses["commitment"].backward()
    with torch.no_grad():
        weight -= 0.1 * weight.grad
    assert (built.quantizer.codebook - before).abs().sum(-1).gt(0).all()


# --- how codes are used ---------------------------------------------------------------------------------------------


def test_usage_by_hand() -> None:
    code_usage = CodeUsage(ScaleSchedule((1, 2)), 4)
    code_usage.add(torch.tensor([[0, 1, 1], [0, 2, 1]]))
    figures = code_usage.take()
    assert figures["usage/scale_1"] == pytest.approx(1 / 4) and figures["usage/scale_2"] == pytest.approx(2 / 4)
    assert figures["usage/all"] == pytest.approx(3 / 4) and figures["perplexity/scale_1"] == pytest.approx(1)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert figures["perplexity/scale_2"] == pytest.approx(math.exp(entropy))
    assert code_usage.take()["usage/all"] == 0
