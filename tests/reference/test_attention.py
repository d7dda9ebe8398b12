"""Masks, the cache of keys and values, and the Gumbel draw, against what a hand or a naive loop gives."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from trajgen.core.schedule import ScaleSchedule
from trajgen.nn.attention import AdaptiveBlock, KeyValueCache, attend, block_causal_mask, modulations
from trajgen.nn.layers import FourierFeatures, mlp


def test_the_mask_by_hand() -> None:
    expected = [
        [1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1],
    ]
    assert block_causal_mask(ScaleSchedule((1, 2, 2))).int().tolist() == expected
    assert torch.equal(block_causal_mask(ScaleSchedule((1,) * 6)), torch.ones(6, 6).tril().bool())
    assert block_causal_mask(ScaleSchedule((5,))).all()


def test_attention_against_a_naive_loop() -> None:
    q, k, v = torch.randn(3, 1, 1, 4, 8)
    mask = block_causal_mask(ScaleSchedule((1, 3)))
    found = attend(q, k, v, mask)[0, 0]
    for i in range(4):
        seen = [j for j in range(4) if mask[i, j]]
        weights = [math.exp(float(q[0, 0, i] @ k[0, 0, j]) / math.sqrt(8)) for j in seen]
        expected = sum(w * v[0, 0, j] for w, j in zip(weights, seen, strict=True)) / sum(weights)
        torch.testing.assert_close(found[i], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lengths", [(7,), (1, 2, 4)])
def test_attention_in_bfloat16_is_that_in_float32_forward_and_backward(lengths: tuple[int, ...]) -> None:
    mask = block_causal_mask(ScaleSchedule(lengths))
    values = torch.randn(3, 2, 2, 7, 8)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        own = values.detach().clone().to(dtype).requires_grad_()
        found = attend(*own, None if mask.all() else mask)
        assert found.dtype == dtype
        found.sum(-1).square().sum().backward()
        assert own.grad is not None
        results.append((found.float(), own.grad.float() / own.grad.float().abs().max()))
    for exact, rounded in zip(*results, strict=True):
        torch.testing.assert_close(rounded, exact, atol=0.03, rtol=0.03)


@torch.no_grad()
def test_a_block_with_cache_is_the_block_with_mask() -> None:
    schedule = ScaleSchedule((1, 2, 4))
    block = AdaptiveBlock(16, 4)
    torch.nn.init.normal_(block.offset)
    x, modulation = torch.randn(3, 7, 16), torch.randn(3, schedule.scales, 6, 16)
    whole = block(x, modulation[:, schedule.levels], block_causal_mask(schedule))
    cache, ready = KeyValueCache(1), modulations([block], modulation)
    parts = [block.modulated(x[:, s], ready[k, 0], cache=(cache, 0)) for k, s in enumerate(schedule.spans)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_single_sequence_needs_no_axis_for_the_batch() -> None:
    schedule = ScaleSchedule((1, 2, 4))
    block = AdaptiveBlock(16, 4)
    x, modulation = torch.randn(1, 7, 16), torch.randn(1, schedule.scales, 6, 16)
    whole = block(x, modulation[:, schedule.levels], block_causal_mask(schedule))
    cache, ready = KeyValueCache(1), modulations([block], modulation)[:, :, :, 0, 0]
    parts = [block.modulated(x[0, s], ready[k, 0], cache=(cache, 0)) for k, s in enumerate(schedule.spans)]
    torch.testing.assert_close(torch.cat(parts), whole[0], atol=1e-5, rtol=1e-5)


def test_the_cache_returns_all_tokens_so_far() -> None:
    cache = KeyValueCache(2)
    one, two = torch.ones(1, 1, 1, 4), torch.full((1, 1, 2, 4), 2.0)
    cache.append(1, torch.stack([one, one * 5]))
    keys, values = cache.append(1, torch.stack([two, two * 5]))
    assert keys[0, 0, :, 0].tolist() == [1, 2, 2] and values[0, 0, :, 0].tolist() == [5, 10, 10]


def test_rows_of_a_cache_are_its_sequences() -> None:
    cache, both, index = KeyValueCache(2), torch.randn(2, 2, 3, 5, 4), torch.tensor([1, 0, 1])
    cache.append(0, both)
    keys, values = cache.rows(index).append(0, both.new_zeros(2, 3, 3, 0, 4))
    assert torch.equal(keys, both[0, index]) and torch.equal(values, both[1, index])


def test_gates_of_zero_leave_the_tokens_as_they_are() -> None:
    block, x = AdaptiveBlock(16, 4), torch.randn(2, 5, 16)
    assert torch.equal(block(x, torch.zeros(2, 1, 6, 16)), x)


def test_the_straight_through_draw_is_distributed_as_softmax() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0])
    drawn = F.gumbel_softmax(logits.expand(40_000, 3), tau=1.0, hard=True)
    assert torch.equal(drawn.sum(1), torch.ones(40_000))
    assert (drawn.mean(0) - logits.softmax(0)).abs().max() < 0.01


def test_fourier_features_by_hand() -> None:
    made = FourierFeatures(2, 3)
    x = torch.randn(5, 2)
    found = made(x)
    assert found.shape == (5, 14) and made.outputs == 14
    torch.testing.assert_close(found[:, :2], x)
    for i in range(2):
        for octave, cycles in enumerate((0.25, 0.5, 1.0)):
            phase = 2 * math.pi * cycles * x[:, i]
            torch.testing.assert_close(found[:, 2 + 3 * i + octave], phase.sin())
            torch.testing.assert_close(found[:, 8 + 3 * i + octave], phase.cos())
    assert torch.equal(FourierFeatures(2, 0)(x), x)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_an_mlp_has_as_many_linear_layers_as_asked(depth: int) -> None:
    layers = [m for m in mlp(3, 7, 2, depth=depth) if isinstance(m, torch.nn.Linear)]
    assert len(layers) == depth and layers[0].in_features == 3 and layers[-1].out_features == 2
