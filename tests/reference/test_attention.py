"""Masks, attention, the cache and small layers against hand-computed values and naive loops."""

from __future__ import annotations

import math

import pytest
import torch

from trajgen.core.schedule import ScaleSchedule
from trajgen.nn.attention import AdaptiveBlock, Cache, attend, block_causal_mask, cache_rows, modulations
from trajgen.nn.layers import FourierFeatures, mlp

SCHEDULE = ScaleSchedule((1, 2, 4))


def test_the_mask_by_hand() -> None:
    expected = [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert block_causal_mask(ScaleSchedule((1, 2, 2))).int().tolist() == expected
    assert torch.equal(block_causal_mask(ScaleSchedule((1,) * 6)), torch.ones(6, 6).tril().bool())
    assert block_causal_mask(ScaleSchedule((5,))).all()


def test_attention_against_a_naive_loop() -> None:
    q, k, v = torch.randn(3, 1, 1, 4, 8)
    mask = block_causal_mask(ScaleSchedule((1, 3)))
    attended = attend(torch.cat([q, k, v], -1)[0], 1, mask)[0]
    for i in range(4):
        keys = [j for j in range(4) if mask[i, j]]
        weights = [math.exp(float(q[0, 0, i] @ k[0, 0, j]) / math.sqrt(8)) for j in keys]
        expected = sum(w * v[0, 0, j] for w, j in zip(weights, keys, strict=True)) / sum(weights)
        torch.testing.assert_close(attended[i], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lengths", [(7,), (1, 2, 4)])
def test_attention_in_bfloat16_is_that_in_float32_forward_and_backward(lengths: tuple[int, ...]) -> None:
    mask = block_causal_mask(ScaleSchedule(lengths))
    values = torch.randn(2, 7, 3 * 16)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        qkv = values.detach().clone().to(dtype).requires_grad_()
        attended = attend(qkv, 2, None if mask.all() else mask)
        assert attended.dtype == dtype
        attended.sum(-1).square().sum().backward()
        assert qkv.grad is not None
        results.append((attended.float(), qkv.grad.float() / qkv.grad.float().abs().max()))
    for exact, rounded in zip(*results, strict=True):
        torch.testing.assert_close(rounded, exact, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("batch", [3, 1])
@torch.no_grad()
def test_a_block_with_cache_is_the_block_with_mask(batch: int) -> None:
    block = AdaptiveBlock(16, 4)
    torch.nn.init.normal_(block.offset)
    x, modulation = torch.randn(batch, 7, 16), torch.randn(batch, SCHEDULE.scales, 6, 16)
    expected = block(x, modulation[:, SCHEDULE.levels], block_causal_mask(SCHEDULE))
    cache: Cache = [None]
    parts = modulations([block], modulation)
    steps = [block.modulated(x[:, s], parts[k, 0].unbind(), cache=cache) for k, s in enumerate(SCHEDULE.spans)]
    torch.testing.assert_close(torch.cat(steps, 1), expected, atol=1e-5, rtol=1e-5)
    if batch == 1:  # a single sequence needs no batch axis
        cache, parts = [None], parts[:, :, :, 0, 0]
        steps = [block.modulated(x[0, s], parts[k, 0].unbind(), cache=cache) for k, s in enumerate(SCHEDULE.spans)]
        torch.testing.assert_close(torch.cat(steps), expected[0], atol=1e-5, rtol=1e-5)


def test_the_cache_keeps_all_tokens_and_its_rows_are_its_sequences() -> None:
    cache: Cache = [None, None]
    first, second = torch.randn(2, 5, 3 * 12), torch.randn(3, 1, 3 * 12)
    index = torch.tensor([1, 0, 1])
    attend(first, 3, cache=cache, layer=1)
    selected = cache_rows(cache, index)
    attended = attend(second, 3, cache=selected, layer=1)
    assert cache[0] is None and selected[0] is None
    torch.testing.assert_close(attended, attend(torch.cat([first[index], second], 1), 3)[:, -1:])


def test_gates_of_zero_leave_the_tokens_as_they_are() -> None:
    block, x = AdaptiveBlock(16, 4), torch.randn(2, 5, 16)
    assert torch.equal(block(x, torch.zeros(2, 1, 6, 16)), x)


def test_fourier_features_by_hand() -> None:
    layer, x = FourierFeatures(2, 3), torch.randn(5, 2)
    features = layer(x)
    assert features.shape == (5, 14) and layer.out_features == 14
    torch.testing.assert_close(features[:, :2], x)
    for i in range(2):
        for octave, cycles in enumerate((0.25, 0.5, 1.0)):
            phase = 2 * math.pi * cycles * x[:, i]
            torch.testing.assert_close(features[:, 2 + 3 * i + octave], phase.sin())
            torch.testing.assert_close(features[:, 8 + 3 * i + octave], phase.cos())
    assert torch.equal(FourierFeatures(2, 0)(x), x)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_depth_of_an_mlp_is_its_linear_layers(depth: int) -> None:
    layers = [m for m in mlp(3, 7, 2, depth=depth) if isinstance(m, torch.nn.Linear)]
    assert len(layers) == depth and layers[0].in_features == 3 and layers[-1].out_features == 2
