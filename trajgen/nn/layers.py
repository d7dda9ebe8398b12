"""Small layers, resampling, and convolutional networks that halve or double the length of a sequence."""

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
            "Convolutional networks normalize their channels in eight groups.",
            expected="a multiple of 8, or less than 8",
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
