"""Residual pyramid and row of tokens against naive loops and vector-quantize-pytorch's HierarchicalVQ."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vector_quantize_pytorch import HierarchicalVQ

from trajgen.core.errors import ConfigError
from trajgen.core.schedule import ScaleSchedule
from trajgen.tokenizers.layouts import ResidualPyramid, TokenRow, layout_of
from trajgen.tokenizers.multiscale import MultiscaleTokenizer

LENGTH, CODE_DIM, SIZE = 8, 4, 20
PYRAMIDS = [(1, 2, 4, 8), (8,), (1, 3, 8), (2, 5, 6, 8), (4, 4, 8)]
ROWS = [(1,) * 6, (6,), (2, 2, 2), (1, 2, 3), (4, 2), (1, 5)]


def build(lengths: tuple[int, ...], **options: Any) -> MultiscaleTokenizer:
    """A tokenizer with random codes."""
    sizes = {"latent_length": LENGTH, "code_dim": CODE_DIM, "codebook_size": SIZE, "width": 16}
    tokenizer = MultiscaleTokenizer(lambda _: ScaleSchedule(lengths), 5, 32, **(sizes | options))
    tokenizer.quantizer.get_buffer("embed").normal_()
    return tokenizer.eval()


def pyramid(tokenizer: MultiscaleTokenizer) -> ResidualPyramid:
    assert isinstance(tokenizer.layout, ResidualPyramid)
    return tokenizer.layout


def naive_resampling(values: np.ndarray, length: int) -> np.ndarray:
    """Average pooling to a shorter length, linear interpolation to a longer one."""
    n = len(values)
    if length <= n:
        return np.stack([values[i * n // length : -(-(i + 1) * n // length)].mean(0) for i in range(length)])
    positions = np.clip((np.arange(length) + 0.5) * n / length - 0.5, 0, n - 1)
    low = np.floor(positions).astype(int)
    high, weight = np.minimum(low + 1, n - 1), (positions - low)[:, None]
    return (1 - weight) * values[low] + weight * values[high]


def naive_encoding(f: np.ndarray, codebook: np.ndarray, lengths: tuple[int, ...], convolutions: list[Any]) -> Any:
    """Ids, inputs and latent of f (N, C) by VAR's algorithm 1 with plain loops."""
    latent, ids, inputs = np.zeros_like(f), [], []
    for length, (weight, bias) in zip(lengths, convolutions, strict=True):
        inputs.append(naive_resampling(latent, length))
        nearest = [int(((codebook - v) ** 2).sum(1).argmin()) for v in naive_resampling(f - latent, length)]
        ids += nearest
        grown = naive_resampling(codebook[nearest], len(f))
        padded = np.pad(grown, ((1, 1), (0, 0)))
        smooth = [bias + sum(weight[:, :, tap] @ padded[t + tap] for tap in range(3)) for t in range(len(f))]
        latent = latent + 0.5 * grown + 0.5 * np.stack(smooth)
    return ids, np.concatenate([*inputs[1:], np.empty((0, f.shape[1]))]), latent


@pytest.mark.parametrize("lengths", PYRAMIDS)
@torch.no_grad()
def test_a_pyramid_against_a_naive_loop(lengths: tuple[int, ...]) -> None:
    tokenizer, x = build(lengths), torch.randn(3, 32, 5)
    encoding, codebook = tokenizer.encode(x), tokenizer.quantizer.codebook.numpy()
    convolutions = [(c.weight.numpy(), c.bias.numpy()) for c in pyramid(tokenizer).convolutions]
    for b, f in enumerate(tokenizer.encoder(x).numpy()):
        ids, inputs, latent = naive_encoding(f, codebook, lengths, convolutions)
        assert encoding.codes[b].tolist() == ids
        np.testing.assert_allclose(encoding.inputs[b].numpy(), inputs, atol=1e-5)
        np.testing.assert_allclose(encoding.latent[b].numpy(), latent, atol=1e-5)
    assert not tokenizer.layout.start(3).any()
    assert [tokenizer.layout.decoded_fraction(k) for k in range(len(lengths))] == [1.0] * len(lengths)


def test_the_latent_agrees_with_f_after_the_last_scale_or_after_every_one() -> None:
    lengths, x = (1, 2, 4, 8), torch.randn(3, 32, 5)
    batch = SimpleNamespace(mean=lambda errors, real: errors.mean())
    for agreement in ("last", "every"):
        tokenizer = build(lengths, agreement=agreement)
        layout, f = pyramid(tokenizer), tokenizer.encoder(x)
        vectors, sums = tokenizer.vectors(tokenizer.encode(x).codes), [layout.start(3)]
        for k, span in enumerate(tokenizer.schedule.spans):
            sums.append(layout.extend(sums[-1], vectors[:, span], k))
        errors = torch.stack([(each - f).square().mean() for each in sums[1:]])
        loss = tokenizer.loss(batch, x, lambda latent: x + 0 * latent.sum())["agreement"]
        torch.testing.assert_close(loss, errors[-1] if agreement == "last" else errors.mean())
        first = torch.autograd.grad(loss, layout.convolutions[0].weight)[0]
        assert first.abs().max() > 0
    assert build((1,) * 8, agreement="every").layout.after_scales(vectors[:, :8])[0].equal(vectors[:, :8])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("lengths", PYRAMIDS)
@torch.no_grad()
def test_a_pyramid_against_hierarchical_vq(lengths: tuple[int, ...], shared: bool) -> None:
    tokenizer, x = build(lengths), torch.randn(5, 32, 5)
    convolutions = pyramid(tokenizer).convolutions
    if shared:
        for convolution in convolutions:
            convolution.load_state_dict(convolutions[0].state_dict())
    reference = HierarchicalVQ(
        dim=CODE_DIM, codebook_size=SIZE, scales=lengths, channel_first=False, kmeans_init=False,
        quant_resi=0.5, share_quant_resi=1 if shared else 0,
    ).eval()  # fmt: skip
    reference.vq.codebook = tokenizer.quantizer.codebook
    phis = [reference.phi_shared] * len(lengths) if shared else reference.phi_levels
    for phi, convolution in zip(phis, convolutions, strict=True):
        phi.conv.load_state_dict(convolution.state_dict())
    reconstruction, ids, _ = reference(tokenizer.encoder(x))
    encoding = tokenizer.encode(x)
    assert torch.equal(encoding.codes, torch.cat(ids, 1))
    torch.testing.assert_close(encoding.latent, reconstruction, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoding.latent, reference.get_output_from_indices(ids), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_codes_are_their_own_nearest_at_one_scale_without_smoothing() -> None:
    tokenizer, ids = build((LENGTH,)), torch.randint(SIZE, (4, LENGTH))
    pyramid(tokenizer).smoothing = 0.0
    latent = tokenizer.layout.latent(tokenizer.vectors(ids))
    assert torch.equal(tokenizer.layout.encode(latent, tokenizer.quantizer.quantize)[0], ids)


@torch.no_grad()
def test_each_scale_reduces_the_error_where_codes_are_fine() -> None:
    tokenizer, f = build((1, 2, 4, 8), code_dim=2, codebook_size=2000), torch.randn(16, LENGTH, 2)
    tokenizer.quantizer.codebook.mul_(2)
    layout = pyramid(tokenizer)
    layout.smoothing = 0.0
    ids, _, _, latent = layout.encode(f, tokenizer.quantizer.quantize)
    vectors, partial_latent, errors = tokenizer.vectors(ids), layout.start(16), []
    for k, span in enumerate(layout.schedule.spans):
        partial_latent = layout.extend(partial_latent, vectors[:, span], k)
        errors.append((partial_latent - f).square().mean())
    assert all(later < earlier for earlier, later in pairwise(errors)) and float(errors[-1]) < 0.02
    torch.testing.assert_close(latent, partial_latent)


@pytest.mark.parametrize("lengths", ROWS)
def test_inputs_of_a_row_are_the_scale_before_at_the_length_of_the_next(lengths: tuple[int, ...]) -> None:
    row, vectors = TokenRow(ScaleSchedule(lengths), 2, 6), torch.randn(3, 6, 2)
    inputs = row.inputs(vectors)
    for b in range(3):
        parts = [vectors[b, span].numpy() for span in row.schedule.spans]
        expected = [naive_resampling(part, n) for part, n in zip(parts, lengths[1:], strict=False)]
        np.testing.assert_allclose(inputs[b].numpy(), np.concatenate([*expected, np.empty((0, 2))]), atol=1e-6)
    if set(lengths) == {1}:
        assert torch.equal(inputs, vectors[:, :-1])


def test_a_row_fills_from_its_start_and_passes_gradients() -> None:
    row, vectors = TokenRow(ScaleSchedule((1, 2, 3)), 2, 6), torch.randn(4, 6, 2, requires_grad=True)
    partial_latent = row.start(4)
    for k, span in enumerate(row.schedule.spans):
        partial_latent = row.extend(partial_latent, vectors[:, span], k)
        assert torch.equal(partial_latent[:, : span.stop], vectors[:, : span.stop])
        assert not partial_latent[:, span.stop :].any()
    assert [row.decoded_fraction(k) for k in range(3)] == [1 / 6, 0.5, 1.0]
    weights = torch.randn_like(vectors)
    (partial_latent * weights).sum().backward()
    assert vectors.grad is not None and torch.equal(vectors.grad, weights)


@torch.no_grad()
def test_tokens_of_a_row_are_quantized_each_on_its_own() -> None:
    tokenizer, x = build((1,) * LENGTH), torch.randn(2, 32, 5)
    f, encoding, codebook = tokenizer.encoder(x), tokenizer.encode(x), tokenizer.quantizer.codebook
    expected = (codebook - f.unsqueeze(2)).square().sum(-1).argmin(-1)
    assert torch.equal(encoding.codes, expected) and torch.equal(encoding.latent, codebook[expected])


@pytest.mark.parametrize(
    ("lengths", "kind"),
    [((1, 2, 4, 8), ResidualPyramid), ((8,), ResidualPyramid), ((4, 4, 8), ResidualPyramid),
     ((4, 2, 8), ResidualPyramid), ((1,) * 8, TokenRow), ((1, 3, 4), TokenRow), ((2, 6), TokenRow)],
)  # fmt: skip
def test_the_schedule_decides_the_layout(lengths: tuple[int, ...], kind: type) -> None:
    assert type(layout_of(ScaleSchedule(lengths), 3, LENGTH)) is kind


@pytest.mark.parametrize("lengths", [(1, 2, 4), (1, 16), (8, 4), (1, 12, 8), (1,) * 7])
def test_a_schedule_for_neither_layout_is_refused_with_both(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="end at the latent length") as caught:
        layout_of(ScaleSchedule(lengths), 3, LENGTH)
    assert "8" in str(caught.value.expected)
    assert "schedule=geometric" in str(caught.value.fix) and "schedule=unit" in str(caught.value.fix)


@pytest.mark.parametrize("lengths", [(1, 2, 4), (6, 6), (1,) * 5, (7,)])
def test_a_schedule_that_does_not_add_up_is_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="add up") as caught:
        TokenRow(ScaleSchedule(lengths), 2, 6)
    assert "6" in str(caught.value.expected) and str(sum(lengths)) in str(caught.value.got)
    assert "schedule=unit" in str(caught.value.fix)


@pytest.mark.parametrize(("horizon", "latent_length"), [(32, 5), (24, 16), (8, 16), (32, 0), (32, -8)])
def test_a_latent_that_does_not_fit_the_horizon_is_refused(horizon: int, latent_length: int) -> None:
    with pytest.raises(ConfigError, match="latent"):
        MultiscaleTokenizer(lambda n: ScaleSchedule((n,)), 5, horizon, latent_length=latent_length, width=16)


def test_the_names_in_a_checkpoint() -> None:
    names = {name for name in build((1, 8)).state_dict() if not name.startswith("encoder.layers.")}
    codebook = {f"quantizer.{name}" for name in ("cluster_size", "embed_avg", "embed")}
    assert names == codebook | {f"layout.convolutions.{k}.{name}" for k in (0, 1) for name in ("weight", "bias")}
