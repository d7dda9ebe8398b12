"""Rate and distortion of scales, against hand computations, sampled codes, and signals whose best schedule is known."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from trajgen.core.protocols import ChoosesScales
from trajgen.core.registry import build
from trajgen.nn import rate
from trajgen.nn.layers import resampling
from trajgen.nn.rate import bits_of_scales, cheapest_lengths, latent_covariance, water_level
from trajgen.schedules import AutoSchedule

N, BITS = 8, 7.0
PYRAMIDS = [(*shorter, N) for k in range(N) for shorter in combinations(range(1, N), k)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def held(values: Tensor, length: int = 32) -> Tensor:
    """Values (W, n, D), each held for as many of the points of a window."""
    return values.repeat_interleave(length // values.shape[1], 1)


SIGNALS = {
    "one level for each window": (held(noise(2000, 1, 1)), (1, 8)),
    "a level for each half": (held(noise(2000, 2, 1)), (2, 8)),
    "independent points": (held(noise(2000, 8, 1)), (8,)),
    "two periods: halves, and faint eighths": (
        held(noise(2000, 2, 1)) + 0.05 * held(noise(2000, 8, 1, seed=1)),
        (2, 8),
    ),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_s_best_schedule_is_chosen(name: str) -> None:
    x, expected = SIGNALS[name]
    schedule = AutoSchedule(N, ())
    assert isinstance(schedule, ChoosesScales)
    lengths, why = schedule.choose(x, 4, BITS)
    assert lengths == expected and "bits" in why
    assert schedule.choose(x, 4, BITS) == (lengths, why)
    assert AutoSchedule(N, lengths).lengths == expected
    covariance = latent_covariance(x, N, 4)
    level = water_level(covariance, BITS)
    totals = {pyramid: sum(bits_of_scales(covariance, pyramid, level)) for pyramid in PYRAMIDS}
    assert min(totals.values()) > 0.98 * totals[expected]  # of all 128 pyramids, none saves as much as a scale must


@pytest.mark.parametrize(("width", "bits"), [(4, 3.0), (8, 5.0), (12, BITS)])
def test_lengths_that_pay_together_alone_are_chosen(width: int, bits: float) -> None:
    """The best two scales of smooth windows are (2, 8) or (3, 8), and the best three (1, 4, 8)."""
    distance = torch.arange(N).double() - torch.arange(N).unsqueeze(1)
    covariance = (-((distance / width) ** 2) / 2).exp() + 1e-6 * torch.eye(N)
    covariance = covariance.reshape(N, 1, N, 1)
    level = water_level(covariance, bits)
    totals = {pyramid: sum(bits_of_scales(covariance, pyramid, level)) for pyramid in PYRAMIDS}
    two, three = (min((p for p in PYRAMIDS if len(p) == scales), key=lambda p: totals[p]) for scales in (2, 3))
    assert two in {(2, N), (3, N)} and three == (1, 4, N) and totals[three] < 0.98 * totals[two]
    assert cheapest_lengths(covariance, level, 0.02) == three
    assert min(totals.values()) > 0.98 * totals[three]


def test_scales_that_pay_on_average_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first saves 1 % and the second 4 %, together more than 2 % each; a third saves nothing."""
    bits = {(4,): 100.0, (1, 4): 99.0, (2, 4): 99.5, (3, 4): 99.5, (1, 2, 4): 95.0}
    monkeypatch.setattr(rate, "bits_of_scales", lambda _, lengths, __: [bits.get(lengths, 98.0)])
    covariance = torch.eye(4).reshape(4, 1, 4, 1)
    assert [cheapest_lengths(covariance, 1.0, gain) for gain in (0.02, 0.03)] == [(1, 2, 4), (4,)]


def test_bits_by_hand() -> None:
    """A constant window: one token codes it, and N tokens code it N times."""
    constant = torch.ones(N, 1, N, 1, dtype=torch.float64)
    level = water_level(constant, BITS)
    assert level == pytest.approx(2 ** (-2 * BITS))  # ½ log2(1 / θ) = 7
    assert bits_of_scales(constant, (N,), level) == pytest.approx([N * BITS])
    assert bits_of_scales(constant, (1, N), level) == pytest.approx([BITS, 0.0], abs=1e-6)
    white = torch.eye(N, dtype=torch.float64).reshape(N, 1, N, 1)
    coarse = BITS - math.log2(N) / 2  # the mean of N points has a variance of 1 / N
    assert bits_of_scales(white, (1,), level) == pytest.approx([coarse])
    two_channels = torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64)).reshape(1, 2, 1, 2)
    assert water_level(two_channels, 2.0) == pytest.approx(0.5)  # ½ log2(8) + ½ log2(2)
    assert water_level(two_channels, 0.5) == pytest.approx(2.0)  # the second channel is left out


def test_residuals_are_those_of_sampled_codes() -> None:
    """The covariances that the closed form carries on are those of windows that are coded with noise."""
    mixing = noise(N * 2, N * 2, seed=3).double() / 4
    covariance = (mixing @ mixing.T).reshape(N, 2, N, 2)
    level = water_level(covariance, 3.0)
    residual = noise(20000, N * 2, seed=4).double() @ mixing.T
    residual = residual.reshape(-1, N, 2)
    for k, count in enumerate(lengths := (2, 3, N)):
        pool, grow = resampling(N, count).double(), resampling(count, N).double()
        tokens, coded = pool @ residual, []
        bits = 0.0
        for token in tokens.unbind(1):
            variances, axes = torch.linalg.eigh(torch.cov(token.T))
            error = variances.clamp(max=level)
            share = 1 - error / variances
            spread = (share * error).sqrt() * noise(*token.shape, seed=5 + k + len(coded))
            coded.append((token @ axes * share + spread) @ axes.T)
            bits += float((variances / error).log2().sum() / 2)
        assert bits_of_scales(covariance, lengths, level)[k] == pytest.approx(bits, rel=0.05, abs=0.1)
        residual = residual - grow @ torch.stack(coded, 1)


def test_the_latent_keeps_the_principal_components_of_its_points() -> None:
    x = torch.cat([held(noise(500, 4, 2)), 0.01 * noise(500, 32, 1)], -1)
    covariance = latent_covariance(x, 4, 2)
    assert covariance.shape == (4, 2, 4, 2)
    variance = torch.einsum("ncnc->", covariance)
    assert float(variance) == pytest.approx(float(8 * (x[..., :2].var((0, 1)).sum()) * 4), rel=0.02)
    assert latent_covariance(x, 4, 100).shape == (4, 24, 4, 24)  # there are no more components
    of_one_feature = latent_covariance(x[..., :1], 32, 8)  # a latent point for each point of the window
    torch.testing.assert_close(of_one_feature, torch.cov(x[..., 0].double().T).reshape(32, 1, 32, 1))


def test_a_scale_that_saves_little_is_left_out() -> None:
    x, _ = SIGNALS["a level for each half"]
    covariance = latent_covariance(x, N, 4)
    level = water_level(covariance, BITS)
    assert cheapest_lengths(covariance, level, 0.95) == (N,)
    assert cheapest_lengths(covariance, level, 0.02) == (2, N)
    assert build("schedule", {"name": "auto"}, length=6, scale_lengths=(3, 6)).lengths == (3, 6)
