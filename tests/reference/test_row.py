"""A row of tokens against nothing but loops."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from trajgen.core.errors import ConfigError
from trajgen.core.schedule import ScaleSchedule
from trajgen.tokenizers.latent import vq
from trajgen.tokenizers.row import TokenRow

PARTITIONS = [(1,) * 6, (6,), (2, 2, 2), (1, 2, 3), (4, 2), (1, 5)]


def resampled(values: np.ndarray, length: int) -> np.ndarray:
    """Averages where it gets shorter, linear interpolation where it gets longer."""
    n = len(values)
    if length <= n:
        return np.stack([values[i * n // length : -(-(i + 1) * n // length)].mean(0) for i in range(length)])
    places = np.clip((np.arange(length) + 0.5) * n / length - 0.5, 0, n - 1)
    low = np.floor(places).astype(int)
    high, share = np.minimum(low + 1, n - 1), (places - low)[:, None]
    return (1 - share) * values[low] + share * values[high]


@pytest.mark.parametrize("lengths", PARTITIONS)
def test_inputs_are_the_scale_before_at_the_length_of_the_next(lengths: tuple[int, ...]) -> None:
    row, vectors = TokenRow(ScaleSchedule(lengths), 2, 6), torch.randn(3, 6, 2)
    inputs = row.inputs(vectors)
    for b in range(3):
        expected, start = [], 0
        for before, own in pairwise(lengths):
            expected.append(resampled(vectors[b, start : start + before].numpy(), own))
            start += before
        found = inputs[b].numpy()
        np.testing.assert_allclose(found, np.concatenate([*expected, np.empty((0, 2))]), atol=1e-6)


def test_single_tokens_see_the_token_before() -> None:
    row, vectors = TokenRow(ScaleSchedule((1,) * 6), 2, 6), torch.randn(3, 6, 2)
    assert torch.equal(row.inputs(vectors), vectors[:, :-1])
    partial_latent = row.extend(row.start(3), vectors[:, :1], 0)
    assert torch.equal(row.scale_input(partial_latent, 1), vectors[:, :1])


def test_the_row_fills_from_its_start() -> None:
    row, vectors = TokenRow(ScaleSchedule((1, 2, 3)), 2, 6), torch.randn(4, 6, 2)
    partial_latent = row.extend(row.extend(row.start(4), vectors[:, :1], 0), vectors[:, 1:3], 1)
    assert torch.equal(partial_latent[:, :3], vectors[:, :3]) and not partial_latent[:, 3:].any()
    assert [row.decoded_fraction(k) for k in range(3)] == [1 / 6, 0.5, 1.0]


def test_gradients_pass_through_the_row() -> None:
    row, vectors = TokenRow(ScaleSchedule((1, 5)), 2, 6), torch.randn(1, 6, 2, requires_grad=True)
    partial_latent = row.extend(row.extend(row.start(1), vectors[:, :1], 0), vectors[:, 1:], 1)
    weights = torch.randn_like(partial_latent)
    (partial_latent * weights).sum().backward()
    assert torch.equal(vectors.grad, weights)


@pytest.mark.parametrize("lengths", [(1, 2, 4), (6, 6), (1,) * 5, (7,)])
def test_scales_that_do_not_add_up_are_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="add up") as caught:
        TokenRow(ScaleSchedule(lengths), 2, 6)
    assert "6" in str(caught.value.expected) and str(sum(lengths)) in str(caught.value.got)
    assert "schedule=unit" in str(caught.value.fix)


@torch.no_grad()
def test_tokens_of_a_row_are_quantized_each_for_itself() -> None:
    made = vq(lambda n: ScaleSchedule((1,) * n), 5, 32, latent_length=4, code_dim=3, codebook_size=9, width=16).train()
    made.codebook.learn(torch.randn(1, 50, 3))
    made.eval()
    x = torch.randn(2, 32, 5)
    f, ids, table = made.encoder(x), made.encode(x).codes, made.codebook.table
    for b in range(2):
        for n in range(4):
            assert ids[b, n] == (table - f[b, n]).square().sum(-1).argmin()
    assert torch.equal(made.layout.latent(made.vectors(ids)), table[ids])
