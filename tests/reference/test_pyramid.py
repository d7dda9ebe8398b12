"""The residual pyramid against a naive double loop and against vector-quantize-pytorch's HierarchicalVQ."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from vector_quantize_pytorch import HierarchicalVQ

from trajgen.core.errors import ConfigError
from trajgen.core.schedule import ScaleSchedule
from trajgen.tokenizers.codebook import Codebook
from trajgen.tokenizers.latent import LatentTokenizer, multiscale_vq
from trajgen.tokenizers.layout import layout_of
from trajgen.tokenizers.pyramid import ResidualPyramid
from trajgen.tokenizers.row import TokenRow

LENGTH, CODE_DIM, SIZE = 8, 4, 20
SCHEDULES = [(1, 2, 4, 8), (8,), (1, 3, 8), (2, 5, 6, 8), (4, 4, 8)]


def tokenizer(lengths: tuple[int, ...]) -> LatentTokenizer:
    made = multiscale_vq(
        lambda _: ScaleSchedule(lengths), 5, 32, latent_length=LENGTH, code_dim=CODE_DIM,
        codebook_size=SIZE, width=16,
    )  # fmt: skip
    fill(made.codebook, torch.randn(SIZE, CODE_DIM))
    return made.eval()


def fill(codebook: Codebook, table: Tensor) -> None:
    inner = codebook.quantizer._codebook
    inner.embed.copy_(table.unsqueeze(0))
    inner.embed_avg.copy_(table.unsqueeze(0))
    inner.cluster_size.fill_(1.0)
    inner.initted.fill_(True)


def naive(f: np.ndarray, table: np.ndarray, lengths: tuple[int, ...], weights: list[Any]) -> Any:
    """Ids and running sums of one latent (N, C), written from VAR's algorithm 1 with nothing but loops."""
    n, c = f.shape
    total, ids, sums = np.zeros_like(f), [], []
    for k, length in enumerate(lengths):
        rest, picked = f - total, []
        for i in range(length):
            start, stop = (i * n) // length, -((-(i + 1) * n) // length)
            mean = rest[start:stop].mean(0)
            picked.append(int(((table - mean) ** 2).sum(1).argmin()))
        ids += picked
        grown = np.zeros_like(f)
        for t in range(n):
            place = min(max((t + 0.5) * length / n - 0.5, 0), length - 1)
            low = int(place)
            high = min(low + 1, length - 1)
            grown[t] = (1 - (place - low)) * table[picked[low]] + (place - low) * table[picked[high]]
        weight, bias = weights[k]
        smooth = np.zeros_like(f)
        for t in range(n):
            for out in range(c):
                value = bias[out]
                for tap in (-1, 0, 1):
                    if 0 <= t + tap < n:
                        value += (weight[out, :, tap + 1] * grown[t + tap]).sum()
                smooth[t, out] = value
        total = total + 0.5 * grown + 0.5 * smooth
        sums.append(total)
    return ids, sums


@pytest.mark.parametrize("lengths", SCHEDULES)
@torch.no_grad()
def test_against_a_naive_loop(lengths: tuple[int, ...]) -> None:
    made, x = tokenizer(lengths), torch.randn(3, 32, 5)
    f, ids = made.encoder(x), made.encode(x).codes
    sums = made.layout.partial_latents(made.vectors(ids))
    convolutions = [(c.weight.numpy(), c.bias.numpy()) for c in made.layout.convolutions]
    table = made.codebook.table.numpy()
    for b in range(3):
        expected_ids, expected_sums = naive(f[b].numpy(), table, lengths, convolutions)
        assert ids[b].tolist() == expected_ids
        for own, other in zip(sums[1:], expected_sums, strict=True):
            np.testing.assert_allclose(own[b].numpy(), other, atol=1e-5)
    assert not sums[0].any()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("lengths", SCHEDULES)
@torch.no_grad()
def test_against_hierarchical_vq(lengths: tuple[int, ...], shared: bool) -> None:
    made, x = tokenizer(lengths), torch.randn(5, 32, 5)
    if shared:
        for convolution in made.layout.convolutions:
            convolution.load_state_dict(made.layout.convolutions[0].state_dict())
    other = HierarchicalVQ(
        dim=CODE_DIM, codebook_size=SIZE, scales=lengths, channel_first=False, kmeans_init=False,
        quant_resi=0.5, share_quant_resi=1 if shared else 0,
    ).eval()  # fmt: skip
    inner = other.vq._codebook
    inner.embed.copy_(made.codebook.table.unsqueeze(0))
    phis = [other.phi_shared] * len(lengths) if shared else other.phi_levels
    for phi, convolution in zip(phis, made.layout.convolutions, strict=True):
        phi.conv.load_state_dict(convolution.state_dict())
    reconstruction, ids, _ = other(made.encoder(x))
    own = made.encode(x).codes
    assert torch.equal(own, torch.cat(ids, 1))
    torch.testing.assert_close(made.layout.latent(made.vectors(own)), reconstruction, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        made.layout.latent(made.vectors(own)), other.get_output_from_indices(ids), atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_codes_are_their_own_nearest_at_one_scale_without_smoothing() -> None:
    made = tokenizer((LENGTH,))
    made.layout.smoothing = 0.0
    ids = torch.randint(SIZE, (4, LENGTH))
    latent = made.layout.latent(made.vectors(ids))
    assert torch.equal(made.quantize(latent)[0], ids)


@torch.no_grad()
def test_each_scale_brings_the_sum_closer_where_codes_are_fine() -> None:
    made = tokenizer((1, 2, 4, 8))
    fine = multiscale_vq(lambda _: ScaleSchedule((1, 2, 4, 8)), 5, 32, code_dim=2, codebook_size=2000, width=16)
    fill(fine.codebook, torch.randn(2000, 2) * 2)
    fine.layout.smoothing = 0.0
    f = torch.randn(16, LENGTH, 2)
    ids, _, _, total = fine.quantize(f)
    errors = [(s - f).square().mean() for s in fine.layout.partial_latents(fine.vectors(ids))]
    assert all(later < earlier for earlier, later in pairwise(errors))
    assert float(errors[-1]) < 0.02
    torch.testing.assert_close(total, fine.layout.latent(fine.vectors(ids)))
    assert made.schedule.tokens == 15


@pytest.mark.parametrize("lengths", [(1, 2, 4), (1, 16), (8, 4), (1,) * 8, (1, 12, 8)])
def test_scales_that_do_not_end_at_the_length_are_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="end at the latent length") as caught:
        ResidualPyramid(ScaleSchedule(lengths), 4, 8)
    assert "8" in str(caught.value.expected) and caught.value.fix


@pytest.mark.parametrize(("horizon", "latent"), [(32, 5), (24, 8), (8, 16), (32, 0), (32, -8)])
def test_a_latent_that_does_not_halve_from_the_horizon_is_refused(horizon: int, latent: int) -> None:
    with pytest.raises(ConfigError) as caught:
        multiscale_vq(lambda n: ScaleSchedule((n,)), 5, horizon, latent_length=latent, width=16)
    assert "latent_length" in str(caught.value.expected)
    cure = re.match(r"tokenizer.latent_length=(\d+)", str(caught.value.fix))
    assert cure
    multiscale_vq(lambda n: ScaleSchedule((n,)), 5, horizon, latent_length=int(cure[1]), width=16)


def test_all_of_the_window_is_sketched_from_the_first_scale_on() -> None:
    made = tokenizer((1, 2, 4, 8))
    assert [made.layout.decoded_fraction(k) for k in range(4)] == [1.0] * 4


def test_names_of_what_a_checkpoint_holds() -> None:
    names = {name.rpartition(".")[0] if "encoder" in name else name for name in tokenizer((1, 8)).state_dict()}
    codebook = {f"codebook.quantizer._codebook.{name}" for name in ("initted", "cluster_size", "embed_avg", "embed")}
    pyramid = {f"layout.convolutions.{k}.{name}" for k in (0, 1) for name in ("weight", "bias")}
    assert {name for name in names if not name.startswith("encoder.layers.")} == codebook | pyramid


@pytest.mark.parametrize(
    ("lengths", "kind"),
    [((1, 2, 4, 8), ResidualPyramid), ((8,), ResidualPyramid), ((1,) * 8, TokenRow), ((1, 3, 4), TokenRow),
     ((2, 6), TokenRow), ((4, 4, 8), ResidualPyramid)],
)  # fmt: skip
def test_the_schedule_says_which_layout(lengths: tuple[int, ...], kind: type) -> None:
    assert type(layout_of(ScaleSchedule(lengths), 3, LENGTH)) is kind


@pytest.mark.parametrize("lengths", [(1, 2, 4), (1, 16), (8, 4), (1, 12, 8), (1,) * 7])
def test_a_schedule_for_neither_layout_is_refused_with_both(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        layout_of(ScaleSchedule(lengths), 3, LENGTH)
    assert "pyramid" in caught.value.rule and "row" in caught.value.rule
    assert "schedule=geometric" in str(caught.value.fix) and "schedule=unit" in str(caught.value.fix)
