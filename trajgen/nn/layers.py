"""Layers that several rooms share: perceptrons, features, histograms, strides of plans, and convolutional networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajgen.core.errors import ConfigError

LOWEST_FREQUENCY = 0.25
"""Of Fourier features, in cycles per standard deviation of a value."""


def columns(values: Tensor, indices: Sequence[int]) -> Tensor:
    """The features (…, n) of values (…, D) with these indices: a list as an index is a copy to the device."""
    return torch.stack([values[..., index] for index in indices], dim=-1)


def mlp(in_features: int, width: int, out_features: int, *, depth: int = 2) -> nn.Sequential:
    """A multi-layer perceptron with SiLU between its ``depth`` linear layers, (..., in) to (..., out)."""
    layers: list[nn.Module] = []
    for sizes in pairwise([in_features, *[width] * (depth - 1), out_features]):
        layers += [nn.SiLU(), nn.Linear(*sizes)]
    return nn.Sequential(*layers[1:])


def resampling(source: int, target: int) -> Tensor:
    """The matrix (target, source) of average pooling, or of linear interpolation to a greater length."""
    eye = torch.eye(source).unsqueeze(0)
    if target <= source:
        return F.adaptive_avg_pool1d(eye, target)[0].T.contiguous()
    return F.interpolate(eye, size=target, mode="linear", align_corners=False)[0].T.contiguous()


class FourierFeatures(nn.Module):
    """Values with their sines and cosines at doubling frequencies (arXiv 2003.08934, section 5.1).

    Lets a network resolve a state finely from the first step, such as on which side of a wall it is. Frequencies apply
    to each value on its own, so that velocities do not mask positions.

    Args:
        in_features: number of values.
        frequencies: number of frequencies, from a quarter cycle per unit of the (normalized) values on; 0 for none.
    """

    frequencies: Tensor

    def __init__(self, in_features: int, frequencies: int) -> None:
        super().__init__()
        angular_frequencies = 2 * math.pi * LOWEST_FREQUENCY * 2.0 ** torch.arange(frequencies)
        self.register_buffer("frequencies", angular_frequencies, persistent=False)
        self.out_features = in_features * (1 + 2 * frequencies)

    def forward(self, x: Tensor) -> Tensor:
        """Values (..., in_features) to features (..., out_features)."""
        phase = (x.unsqueeze(-1) * self.frequencies).flatten(-2)
        return torch.cat([x, phase.sin(), phase.cos()], dim=-1)


class Histogram(nn.Module):
    """Represents a number as the mean of a distribution over evenly spaced bins.

    Trained by cross-entropy against the two bins next to a number, weighted by nearness (the two-hot target of
    arXiv 2403.03950, section 3.1). Learns all answers where data are multimodal, and stays within their bounds.

    Args:
        num_bins: K.
        low, high: the centers of the outermost bins; numbers beyond are clamped.
    """

    centers: Tensor

    def __init__(self, num_bins: int, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high, self.width = low, high, (high - low) / (num_bins - 1)
        self.register_buffer("centers", torch.linspace(low, high, num_bins), persistent=False)

    def loss(self, logits: Tensor, values: Tensor) -> Tensor:
        """The cross-entropy (...) of logits (..., K) for values (...)."""
        position = (values.clamp(self.low, self.high) - self.low) * (1 / self.width)
        lower = position.floor().clamp(max=len(self.centers) - 2)
        weight = (position - lower).unsqueeze(-1)
        index = lower.long().unsqueeze(-1)
        log_probs = logits.float().log_softmax(-1)
        two_hot = (1 - weight) * log_probs.gather(-1, index) + weight * log_probs.gather(-1, index + 1)
        return -two_hot.squeeze(-1)

    def mean(self, logits: Tensor) -> Tensor:
        """The means (...) of the distributions of logits (..., K)."""
        return logits.float().softmax(-1) @ self.centers

    def quantile(self, logits: Tensor, level: float) -> Tensor:
        """Quantiles (...) of the distributions of logits (..., K), each bin's probability spread evenly over it."""
        probabilities = logits.float().softmax(-1)
        cdf = probabilities.cumsum(-1)
        index = (cdf < level).sum(-1, keepdim=True).clamp(max=len(self.centers) - 1)
        probability = probabilities.gather(-1, index)
        inside = (level - cdf.gather(-1, index)) / probability.clamp(min=1e-9) + 0.5  # bins, from the center
        return (self.centers[index] + inside.clamp(-0.5, 0.5) * self.width).squeeze(-1)

    def sample(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Bin centers (...) sampled from logits (..., K) by the inverse of the cdf at ``uniform`` (...)."""
        below = logits.float().softmax(-1).cumsum(-1) < uniform.unsqueeze(-1)
        return self.centers[below.sum(-1).clamp(max=len(self.centers) - 1)]


class PlanStrides(nn.Module):
    """The strides of plans; with a single one, which plans then do not name, nothing is looked up.

    Args:
        strides: environment steps between points, in increasing order.
    """

    _table: Tensor

    def __init__(self, strides: Sequence[int]) -> None:
        super().__init__()
        self.steps = tuple(strides)
        self.register_buffer("_table", torch.tensor(self.steps), persistent=False)

    def of(self, stride: Tensor | None) -> Tensor | int:
        """The environment steps between points, (B, 1), or a number where there is a single stride."""
        return self.steps[0] if len(self.steps) == 1 else self._named(stride).unsqueeze(1)

    def number(self, stride: Tensor | None) -> Tensor | int:
        """Which of the strides plans have, (B, 1), or 0 where there is a single one."""
        if len(self.steps) == 1:
            return 0
        return (self._named(stride).unsqueeze(1) == self._table).int().argmax(1, keepdim=True)

    def mean(self, values: Tensor, stride: Tensor | None) -> Tensor:
        """The means (B,) of values (B, T) at points over the time that plans of all strides cover.

        A plan of a larger stride looks further ahead: its mean over all points would be no measure of the way there.
        """
        is_common = self.is_common(values.shape[1], stride, values.device)
        return (values * is_common).sum(1) / is_common.sum(1)

    def is_common(self, points: int, stride: Tensor | None, device: torch.device) -> Tensor:
        """Whether each of T points lies within the time that plans of all strides cover, (B, T), or (1, T)."""
        index = torch.arange(points, device=device).unsqueeze(0)
        return index * self.of(stride) <= (points - 1) * self.steps[0]

    def _named(self, stride: Tensor | None) -> Tensor:
        if stride is None:
            raise ValueError(f"plans at the strides {list(self.steps)} name theirs: Cond.stride and Plan.stride")
        return stride


class CausalConv(nn.Conv1d):
    """A convolution over a position and those before it; (B, W, n) to (B, W', n)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.kernel_size[0] - 1, 0)))


class CausalUpsample(nn.ConvTranspose1d):
    """Doubles the length; positions 2i and 2i + 1 depend on positions up to i; (B, W, n) to (B, W', 2n)."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return super().forward(x, output_size)[..., : 2 * x.shape[-1]]


class ChannelNorm(nn.LayerNorm):
    """Layer normalization of the channels of each position (B, W, n), independent of all other positions."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def convolution(in_channels: int, out_channels: int, causal: bool = False) -> nn.Conv1d:
    """A convolution over three positions: a position and its neighbors, or and the two before it."""
    return CausalConv(in_channels, out_channels, 3) if causal else nn.Conv1d(in_channels, out_channels, 3, padding=1)


def normalization(width: int, causal: bool = False) -> nn.Module:
    """Normalization over eight groups of channels and all positions, or over the channels of each position.

    Raises:
        ConfigError: if there are more than 8 channels and their number is not a multiple of 8.
    """
    if width > 8 and width % 8:
        raise ConfigError(
            "Convolutional networks normalize their channels in eight groups, or each alone up to eight.",
            got=f"width={width}",
            fix=f"width={8 * round(width / 8)}",
        )
    return ChannelNorm(width) if causal else nn.GroupNorm(min(8, width), width)


def doublings(horizon: int, latent_length: int) -> int:
    """How often the length N of a latent is doubled to make T points.

    Raises:
        ConfigError: if T is not N times a power of two.
    """
    ratio = horizon // latent_length
    if ratio * latent_length != horizon or ratio & (ratio - 1) or not ratio:
        lengths = [horizon >> i for i in range(horizon.bit_length()) if horizon % (1 << i) == 0]
        shorter = latent_length << max(0, ratio.bit_length() - 1)  # a longer one may not fit into the episodes
        raise ConfigError(
            "The horizon is the length of the latent times a power of two.",
            expected=f"a latent of length {' or '.join(map(str, lengths))}",
            got=f"data.horizon={horizon}, a latent of length {latent_length}",
            # Only tokens that are values of the window outnumber its points.
            fix="decoder=identity"
            if latent_length > horizon
            else f"tokenizer.latent_length={lengths[min(2, len(lengths) - 1)]} or data.horizon={shorter}",
        )
    return ratio.bit_length() - 1


class ResidualBlock(nn.Module):
    """Two convolutions with normalization, added to their input; (B, W, n) to (B, W, n).

    Args:
        width: W.
        causal: whether a position depends on itself and those before it only.
    """

    def __init__(self, width: int, causal: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(
            normalization(width, causal),
            nn.SiLU(),
            convolution(width, width, causal),
            normalization(width, causal),
            nn.SiLU(),
            convolution(width, width, causal),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ConvEncoder(nn.Module):
    """Sequence (B, T, D) to (B, T / 2^halvings, C).

    Args:
        in_features: D.
        out_features: C.
        halvings: how many times the length is halved.
        width: channels inside.
        depth: residual blocks at each length.
    """

    def __init__(self, in_features: int, out_features: int, halvings: int, *, width: int = 64, depth: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = [convolution(in_features, width)]
        for _ in range(halvings):
            layers += [ResidualBlock(width) for _ in range(depth)]
            layers.append(nn.Conv1d(width, width, 4, stride=2, padding=1))
        layers += [ResidualBlock(width) for _ in range(depth)]
        layers += [normalization(width), nn.SiLU(), convolution(width, out_features)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.transpose(1, 2)).transpose(1, 2)


class ConvDecoder(nn.Module):
    """Sequence (B, N, C) to (B, N * 2^doublings, D), as a head, one level per length, and a tail.

    Args:
        in_features: C.
        out_features: D.
        doublings: how many times the length is doubled.
        width: channels inside.
        depth: residual blocks at each length.
        causal: whether the points of a latent depend on it and the latents before it only.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        doublings: int,
        *,
        width: int = 64,
        depth: int = 1,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.head = convolution(in_features, width, causal)
        self.levels = nn.ModuleList()
        for i in range(doublings + 1):
            layers: list[nn.Module] = []
            if i:
                layers = [
                    CausalUpsample(width, width, 4, stride=2)
                    if causal
                    else nn.ConvTranspose1d(width, width, 4, stride=2, padding=1)
                ]
            self.levels.append(nn.Sequential(*layers, *[ResidualBlock(width, causal) for _ in range(depth)]))
        self.tail = nn.Sequential(normalization(width, causal), nn.SiLU(), convolution(width, out_features, causal))

    def forward(self, latent: Tensor, bias: Tensor | None = None) -> Tensor:
        """Latent (B, N, C) to (B, T, D); ``bias`` (B, W) is added to the features of every latent."""
        x = self.head(latent.transpose(1, 2))
        if bias is not None:
            x = x + bias.unsqueeze(-1)
        for level in self.levels:
            x = level(x)
        return self.tail(x).transpose(1, 2)
