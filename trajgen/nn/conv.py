"""One-dimensional convolutional networks that shorten or lengthen a sequence by powers of two."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from trajgen.core.errors import ConfigError


class CausalConv(nn.Conv1d):
    """A convolution that looks at a place and at those before it; (B, W, n) to (B, W', n)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.kernel_size[0] - 1, 0)))


class CausalGrowth(nn.ConvTranspose1d):
    """Doubles the length; places 2i and 2i + 1 follow from the places up to i; (B, W, n) to (B, W', 2n)."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return super().forward(x, output_size)[..., : 2 * x.shape[-1]]


class ChannelNorm(nn.LayerNorm):
    """Normalizes the channels of each place on its own, so that no place learns of a later one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def convolution(inputs: int, outputs: int, causal: bool = False) -> nn.Conv1d:
    """A convolution over three places: the neighbours, or the two before."""
    return CausalConv(inputs, outputs, 3) if causal else nn.Conv1d(inputs, outputs, 3, padding=1)


def normalization(width: int, causal: bool = False, groups: int = 8) -> nn.Module:
    """Normalization over groups of channels and all places, or over the channels of each place."""
    return ChannelNorm(width) if causal else nn.GroupNorm(min(groups, width), width)


def doublings(horizon: int, latent_length: int) -> int:
    """How many times a latent is doubled in length to reach the horizon.

    Raises:
        ConfigError: if the horizon is not the latent's length times a power of two.
    """
    ratio = horizon // latent_length
    if ratio < 1 or ratio * latent_length != horizon or ratio & (ratio - 1):
        raise ConfigError(
            "A convolutional decoder lengthens the latent by a power of two.",
            expected=f"data.horizon one of {', '.join(str(latent_length << i) for i in range(4))}, …",
            got=f"data.horizon={horizon}, a latent of length {latent_length}",
            # Tokens that outnumber the points of a window grow with the horizon: they are its values.
            fix="decoder=identity" if latent_length > horizon else f"data.horizon={latent_length * 4}",
        )
    return ratio.bit_length() - 1


class ResidualBlock(nn.Module):
    """Two convolutions with normalization, added to their input; (B, W, n) to (B, W, n).

    Args:
        width: W.
        groups: of the normalization.
        causal: whether a place looks at itself and those before it only.
    """

    def __init__(self, width: int, groups: int = 8, causal: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(
            normalization(width, causal, groups),
            nn.SiLU(),
            convolution(width, width, causal),
            normalization(width, causal, groups),
            nn.SiLU(),
            convolution(width, width, causal),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ConvEncoder(nn.Module):
    """Sequence (B, T, D) to (B, T / 2^halvings, C).

    Args:
        features: D.
        outputs: C.
        halvings: how many times the length is halved.
        width: channels inside.
        depth: residual blocks at each length.
    """

    def __init__(self, features: int, outputs: int, halvings: int, *, width: int = 64, depth: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv1d(features, width, 3, padding=1)]
        for _ in range(halvings):
            layers += [ResidualBlock(width) for _ in range(depth)]
            layers.append(nn.Conv1d(width, width, 4, stride=2, padding=1))
        layers += [ResidualBlock(width) for _ in range(depth)]
        layers += [nn.GroupNorm(min(8, width), width), nn.SiLU(), nn.Conv1d(width, outputs, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.transpose(1, 2)).transpose(1, 2)


class ConvDecoder(nn.Module):
    """Sequence (B, N, C) to (B, N * 2^doublings, D), in levels between which a caller may act.

    Args:
        inputs: C.
        features: D.
        doublings: how many times the length is doubled.
        width: channels inside.
        depth: residual blocks at each length.
        causal: whether the points of a latent follow from it and the latents before it only.
    """

    def __init__(
        self, inputs: int, features: int, doublings: int, *, width: int = 64, depth: int = 1, causal: bool = False
    ) -> None:
        super().__init__()
        self.head = convolution(inputs, width, causal)
        levels: list[nn.Module] = [nn.Sequential(*[ResidualBlock(width, causal=causal) for _ in range(depth)])]
        for _ in range(doublings):
            grow: nn.Module = (
                CausalGrowth(width, width, 4, stride=2)
                if causal
                else nn.ConvTranspose1d(width, width, 4, stride=2, padding=1)
            )
            levels.append(nn.Sequential(grow, *[ResidualBlock(width, causal=causal) for _ in range(depth)]))
        self.levels = nn.ModuleList(levels)
        self.tail = nn.Sequential(normalization(width, causal), nn.SiLU(), convolution(width, features, causal))
