"""Small layers: an MLP and random Fourier features."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn


def mlp(inputs: int, width: int, outputs: int, *, depth: int = 2) -> nn.Sequential:
    """A multi-layer perceptron with SiLU between its ``depth`` linear layers, (..., inputs) to (..., outputs)."""
    sizes = [inputs, *[width] * (depth - 1), outputs]
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        layers += [nn.SiLU()] * (i > 0) + [nn.Linear(a, b)]
    return nn.Sequential(*layers)


class FourierFeatures(nn.Module):
    """Values and their sines and cosines at fixed random frequencies (Tancik et al. 2020, arXiv 2006.10739).

    Lets a network resolve a state finely from the first step: the width of a corridor, say.

    Args:
        inputs: number of values.
        frequencies: number of frequencies; 0 leaves the values as they are.
        bandwidth: standard deviation of the frequencies, in cycles per unit of the (normalised) values.
    """

    matrix: Tensor

    def __init__(self, inputs: int, frequencies: int, bandwidth: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.randn(inputs, frequencies) * bandwidth * 2 * math.pi)
        self.outputs = inputs + 2 * frequencies

    def forward(self, x: Tensor) -> Tensor:
        phase = x @ self.matrix
        return torch.cat([x, phase.sin(), phase.cos()], dim=-1)
