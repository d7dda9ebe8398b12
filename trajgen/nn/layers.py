"""Small layers: an MLP and random Fourier features."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

LOWEST = 0.25
"""The lowest frequency of Fourier features, in cycles per standard deviation of a value."""


def mlp(inputs: int, width: int, outputs: int, *, depth: int = 2) -> nn.Sequential:
    """A multi-layer perceptron with SiLU between its ``depth`` linear layers, (..., inputs) to (..., outputs)."""
    sizes = [inputs, *[width] * (depth - 1), outputs]
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        layers += [nn.SiLU()] * (i > 0) + [nn.Linear(a, b)]
    return nn.Sequential(*layers)


class FourierFeatures(nn.Module):
    """Values with their sines and cosines at doubling frequencies (arXiv 2003.08934, section 5.1).

    Lets a network resolve a state finely from the first step: on which side of a wall it is, say. Each value has its
    own: in a mixture of position and velocity, velocity would drown what position says.

    Args:
        inputs: number of values.
        fourier_frequencies: number of frequencies, from a quarter cycle per unit of the (normalized) values on; 0 for
            none.
    """

    frequencies: Tensor

    def __init__(self, inputs: int, fourier_frequencies: int) -> None:
        super().__init__()
        self.register_buffer(
            "frequencies", 2 * math.pi * LOWEST * 2.0 ** torch.arange(fourier_frequencies), persistent=False
        )
        self.outputs = inputs * (1 + 2 * fourier_frequencies)

    def forward(self, x: Tensor) -> Tensor:
        """Values (..., inputs) to features (..., outputs)."""
        phase = (x.unsqueeze(-1) * self.frequencies).flatten(-2)
        return torch.cat([x, phase.sin(), phase.cos()], dim=-1)
