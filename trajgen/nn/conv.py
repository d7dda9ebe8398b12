"""One-dimensional convolutional networks that shorten or lengthen a sequence by powers of two."""

from __future__ import annotations

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two convolutions with normalisation, added to their input; (B, W, n) to (B, W, n)."""

    def __init__(self, width: int, groups: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(min(groups, width), width),
            nn.SiLU(),
            nn.Conv1d(width, width, 3, padding=1),
            nn.GroupNorm(min(groups, width), width),
            nn.SiLU(),
            nn.Conv1d(width, width, 3, padding=1),
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
    """

    def __init__(self, inputs: int, features: int, doublings: int, *, width: int = 64, depth: int = 1) -> None:
        super().__init__()
        self.head = nn.Conv1d(inputs, width, 3, padding=1)
        levels: list[nn.Module] = [nn.Sequential(*[ResidualBlock(width) for _ in range(depth)])]
        for _ in range(doublings):
            grow = nn.ConvTranspose1d(width, width, 4, stride=2, padding=1)
            levels.append(nn.Sequential(grow, *[ResidualBlock(width) for _ in range(depth)]))
        self.levels = nn.ModuleList(levels)
        self.tail = nn.Sequential(
            nn.GroupNorm(min(8, width), width), nn.SiLU(), nn.Conv1d(width, features, 3, padding=1)
        )
