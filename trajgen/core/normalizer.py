"""Normalization: fitted once on the training data, kept in the checkpoint, used by data and policies alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

SMALLEST_DEVIATION = 1e-6
"""Least deviation of a feature, as a share of its largest value, that is not a rounding error of a constant."""

SMALL_DEVIATION = 1e-3
"""Largest deviation, as a share of 1 or of a feature's largest value, that is told to the user."""
NAMED = 8
"""Features that are named one by one."""


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
        self.constant: list[int] = []
        """Features that did not vary when it was fitted."""
        self.small: dict[int, float] = {}
        """Deviations of features that are at most a thousandth of 1, or of the feature's size, when it was fitted."""

    def fit(self, values: Tensor) -> None:
        """Sets mean and deviation from ``values`` (M, n); a constant feature keeps its own unit."""
        values = values.to(self.mean.device)
        self.mean.copy_(values.double().mean(0))
        deviation = values.double().std(0, unbiased=False)
        size = torch.maximum(values.amax(0), -values.amin(0))
        varies = deviation > SMALLEST_DEVIATION * size
        is_small = varies & (deviation <= SMALL_DEVIATION * size.clamp(min=1))
        self.constant = (~varies).nonzero()[:, 0].tolist()
        self.small = {index: float(deviation[index]) for index in is_small.nonzero()[:, 0].tolist()}
        self.scale.copy_(torch.where(varies, deviation, torch.ones_like(deviation)))
        if self.quantiles is not None:
            indices = torch.linspace(0, len(values) - 1, len(self.quantiles), device=values.device).round().long()
            self.quantiles.copy_((values.sort(0).values[indices] - self.mean) / self.scale)

    def fit_quantiles(self, levels: int) -> None:
        """Has `fit` keep normalized quantiles too, (levels, n), from the least value to the largest.

        Until then they are even from -3 to 3. A module that needs them calls this when it is built.
        """
        self.quantiles = torch.linspace(-3, 3, levels).unsqueeze(1).repeat(1, len(self.mean))

    def quantile(self, level: float) -> Tensor:
        """The normalized quantile (n,) of a level from 0 to 1, between those that `fit` keeps."""
        if self.quantiles is None:
            raise ValueError("no quantiles are kept: call fit_quantiles first")
        position = level * (len(self.quantiles) - 1)
        lower = min(int(position), len(self.quantiles) - 2)
        return torch.lerp(self.quantiles[lower], self.quantiles[lower + 1], position - lower)

    def part(self, features: Sequence[int]) -> Affine:
        """The map of some of the features, in this order."""
        selected = Affine(len(features))
        selected.mean, selected.scale = self.mean[list(features)], self.scale[list(features)]
        return selected

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
        values = values.reshape(-1, 1)
        super().fit(values.sign() * values.abs().pow(self.power))

    def forward(self, values: Tensor) -> Tensor:
        return (values.sign() * values.abs().pow(self.power) - self.mean) / self.scale

    def inverse(self, values: Tensor) -> Tensor:
        """Normalized values to the data's units, any shape."""
        values = values * self.scale + self.mean
        return values.sign() * values.abs().pow(1.0 / self.power)


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

    def remarks(self) -> list[str]:
        """What a user may want to know of the data that it was fitted on: features that hardly vary, a line a kind."""
        fields = {name: getattr(self, name) for name in ("state", "action", "goal", "reward", "returns")}
        constant = [f"{name} {index}" for name, field in fields.items() for index in field.constant]
        small = [f"{name} {i} ({d:.1e})" for name, field in fields.items() for i, d in field.small.items()]
        return [
            f"{title}: {', '.join(names[:NAMED])}" + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
            for title, names in (("Constant features", constant), ("Features of very small deviation", small))
            if names
        ]

    def fit(self, values: Mapping[str, Tensor]) -> None:
        """Fits each field in ``values``: state (M, S), action (M, A), goal (M, G), reward (M, 1), returns (M,)."""
        for name, data in values.items():
            getattr(self, name).fit(data)
