"""Normalization: fitted once on the training data, kept in the checkpoint, used by data and policies alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

SMALLEST_DEVIATION = 1e-6
"""Least deviation of a feature, as a share of its largest value, that is not a rounding error of a constant."""


class Affine(nn.Module):
    """Maps values (..., n) to zero mean and unit variance, and back.

    Args:
        size: n, the number of features.
    """

    mean: Tensor
    scale: Tensor
    quantiles: Tensor | None

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("quantiles", None)

    def fit(self, values: Tensor) -> None:
        """Sets mean and deviation from ``values`` (M, n); a constant feature keeps its own unit."""
        self.mean.copy_(values.double().mean(0))
        deviation = values.double().std(0, unbiased=False)
        varies = deviation > SMALLEST_DEVIATION * torch.maximum(values.amax(0), -values.amin(0))
        self.scale.copy_(torch.where(varies, deviation, torch.ones_like(deviation)))
        if self.quantiles is not None:
            places = torch.linspace(0, len(values) - 1, len(self.quantiles), device=values.device).round().long()
            self.quantiles.copy_((values.sort(0).values[places] - self.mean) / self.scale)

    def fit_quantiles(self, levels: int) -> None:
        """Has `fit` keep normalized quantiles too, (levels, n), from the least value to the largest.

        Until then they are even from -3 to 3. A module that needs them calls this when it is built.
        """
        self.quantiles = torch.linspace(-3, 3, levels).unsqueeze(1).repeat(1, len(self.mean))

    def part(self, features: Sequence[int]) -> Affine:
        """The map of some of the features, in this order."""
        made = Affine(len(features))
        made.mean, made.scale = self.mean[list(features)], self.scale[list(features)]
        return made

    def forward(self, values: Tensor) -> Tensor:
        return (values - self.mean) / self.scale

    def inverse(self, values: Tensor) -> Tensor:
        """From normalized values back to the data's own units."""
        return values * self.scale + self.mean


class PowerAffine(Affine):
    """An affine map after a signed power, which spreads out the small returns of sparse rewards.

    Args:
        power: exponent p of sign(v)·|v|^p; 1 leaves values as they are.
    """

    def __init__(self, power: float = 1.0) -> None:
        super().__init__(1)
        self.power = power

    def fit(self, values: Tensor) -> None:
        """Takes mean and scale from values (n,), after the power."""
        super().fit(self._bend(values.reshape(-1, 1), self.power))

    def forward(self, values: Tensor) -> Tensor:
        return (self._bend(values, self.power) - self.mean) / self.scale

    def inverse(self, values: Tensor) -> Tensor:
        """Normalized values to the data's units, any shape."""
        return self._bend(values * self.scale + self.mean, 1.0 / self.power)

    @staticmethod
    def _bend(values: Tensor, power: float) -> Tensor:
        return values.sign() * values.abs().pow(power)


class Normalizer(nn.Module):
    """The maps of every field of a data set: state, action, goal, reward, and return-to-go.

    Args:
        state_dim, action_dim, goal_dim: widths S, A, G of the fields.
        power: exponent of the return-to-go's signed power.
    """

    def __init__(self, state_dim: int, action_dim: int, goal_dim: int = 0, power: float = 1.0) -> None:
        super().__init__()
        self.state = Affine(state_dim)
        self.action = Affine(action_dim)
        self.goal = Affine(goal_dim)
        self.reward = Affine(1)
        self.returns = PowerAffine(power)

    def for_subgoals(self) -> Normalizer:
        """The same maps, for goals that are whole states; they follow this one's when it is fitted."""
        same = Normalizer(0, 0)
        for name in ("state", "action", "reward", "returns"):
            setattr(same, name, getattr(self, name))
        same.goal = self.state
        return same

    def fit(self, values: Mapping[str, Tensor]) -> None:
        """Fits each field in ``values``: state (M, S), action (M, A), goal (M, G), reward (M, 1), returns (M,)."""
        for name, data in values.items():
            getattr(self, name).fit(data)
