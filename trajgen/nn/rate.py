"""Rate and distortion of a latent that is quantized scale by scale, for Gaussian windows.

The windows' second moments are all that is used, so that every figure is a closed form: no sampling, no training.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trajgen.nn.layers import resampling

HALVINGS = 100
"""Of the interval that holds a water level."""
BEAM = 8
"""Schedules of as many scales to which a further one is added."""
SMALLEST = 1e-12
"""Share of the largest variance below which a variance counts as this share."""


def latent_covariance(x: Tensor, length: int, channels: int) -> Tensor:
    """The covariance (N, C, N, C) of the best linear latent of windows (W, T, D), in 64-bit floats.

    Each of the N latent points stands for T / N points of the window and holds their C principal components: what a
    linear encoder without overlap keeps. Each point's mean is subtracted.
    """
    cells = x.double().reshape(len(x), length, -1)
    _, components = torch.linalg.eigh(torch.atleast_2d(torch.cov(cells.flatten(0, 1).T)))  # of one feature, a number
    latent = cells @ components[:, -channels:]
    width = latent.shape[-1]
    return torch.cov(latent.flatten(1).T).reshape(length, width, length, width)


def water_level(covariance: Tensor, bits: float) -> float:
    """The distortion θ of each channel at which a latent's points need so many bits each, on average.

    Reverse water-filling: a channel of variance λ needs ½ log2(λ / θ) bits, and none below θ (Cover & Thomas, section
    10.3).

    Args:
        covariance: of the latent, (N, C, N, C).
        bits: of a point.
    """
    variances, _ = _eigen(_blocks(covariance))
    low, high = variances.min().log2() - 2 * bits, variances.max().log2()
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        needs_more = _rate(variances, 2**middle).mean() > bits
        low, high = torch.where(needs_more, middle, low), torch.where(needs_more, high, middle)
    return float(2**high)


def bits_of_scales(covariance: Tensor, lengths: Sequence[int], level: float) -> list[float]:
    """The bits of each scale of a residual pyramid, whose tokens are coded at distortion ``level`` one by one.

    Scale k codes the residual, pooled to l_k points, and what it codes is interpolated and subtracted, as
    `trajgen.tokenizers.layouts.ResidualPyramid` does. A token is coded as the rate-distortion function of a Gaussian
    allows, without knowing the others of its scale.

    Args:
        covariance: of the latent, (N, C, N, C).
        lengths: l_1 to l_K = N.
        level: θ, see `water_level`.
    """
    length, channels = covariance.shape[:2]
    residual, bits = covariance, []
    for count in lengths:
        pool, grow = resampling(length, count).double(), resampling(count, length).double()
        tokens = torch.einsum("ln,ncmd,lm->lcd", pool, residual, pool)
        variances, axes = _eigen(tokens)
        bits.append(float(_rate(variances, level).sum()))
        error = variances.clamp(max=level)
        share = 1 - error / variances  # of a component that the test channel keeps; it adds noise of share · error
        gain = (axes * share.unsqueeze(1)) @ axes.mT
        noise = (axes * (share * error).unsqueeze(1)) @ axes.mT
        coded = torch.einsum("nl,lcd,lm->ncmd", grow, gain, pool).reshape(length * channels, -1)
        remainder = torch.eye(length * channels, dtype=torch.float64) - coded
        added = torch.einsum("nl,lcd,ml->ncmd", grow, noise, grow)
        residual = (remainder @ residual.reshape(length * channels, -1) @ remainder.T).reshape(covariance.shape) + added
    return bits


def cheapest_lengths(covariance: Tensor, level: float, least_gain: float) -> tuple[int, ...]:
    """The lengths that need the fewest bits, with as many scales as pay.

    The schedule of K scales with the fewest bits is sought among those that add a length to one of the `BEAM` best of
    K - 1, as long as K scales need fewer bits than K - 1. Of these schedules the longest is taken whose scales
    save ``least_gain`` each on average, since two can pay where neither does alone.

    Args:
        covariance: of the latent, (N, C, N, C).
        level: θ, see `water_level`.
        least_gain: share of the bits that each further scale saves.
    """
    length = len(covariance)
    chosen: tuple[int, ...] = (length,)
    fewest = sum(bits_of_scales(covariance, chosen, level))
    best = [(fewest, chosen)]
    while True:
        longer = {tuple(sorted((*lengths, n))) for _, lengths in best for n in range(1, length) if n not in lengths}
        before = best[0][0]
        best = sorted((sum(bits_of_scales(covariance, each, level)), each) for each in longer)[:BEAM]
        if not best or best[0][0] >= before:
            return chosen
        bits, lengths = best[0]
        if bits <= (1 - least_gain) ** (len(lengths) - len(chosen)) * fewest:
            fewest, chosen = bits, lengths


def _blocks(covariance: Tensor) -> Tensor:
    """The covariance (N, C, C) of each point with itself."""
    return torch.einsum("ncnd->ncd", covariance)


def _eigen(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (n, C), positive, and axes (n, C, C) of covariances (n, C, C)."""
    variances, axes = torch.linalg.eigh(blocks)
    return variances.clamp(min=SMALLEST * float(variances.max().clamp(min=SMALLEST))), axes


def _rate(variances: Tensor, level: Tensor | float) -> Tensor:
    """The bits (n) of points whose channels have variances (n, C)."""
    return (variances / level).clamp(min=1).log2().sum(-1) / 2
