"""Small layers: an MLP, Fourier features, and columns by their indices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

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
