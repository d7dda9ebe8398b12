"""Return targets: the return-to-go that a plan is conditioned on when acting."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.registry import register
from trajgen.core.types import Batch, Losses
from trajgen.nn.layers import FourierFeatures, Histogram, columns, mlp

DEFAULT_TARGET = 2.0
"""A constant target without a value, in standard deviations above the mean of the data's returns."""
LEVELS = 1001
"""Quantiles of the returns that are kept."""


@register("return_target", "constant")
class ConstantTarget(nn.Module):
    """The same return at the start of every episode, less the rewards received (Decision Transformer, section 3).

    Args:
        normalizer: of the data.
        value: the return-to-go, in the data's (discounted) units; null for two standard deviations above the mean of
            the data's (transformed) returns, which can be more than any return in the data, as where they are 0 or 1.
        subtract_rewards: whether rewards received are subtracted. What remains is divided by the discount at every
            step, so that in a task without end it grows without bound if rewards are too low, and shrinks if they are
            not; false uses the same target for every plan.
    """

    def __init__(self, normalizer: Normalizer, *, value: float | None = None, subtract_rewards: bool = True) -> None:
        super().__init__()
        self.value, self.subtract_rewards = value, subtract_rewards
        self._normalizer = [normalizer]  # in a list: its weights belong to the planner, not to this module

    def forward(self, state: Tensor, goal: Tensor | None, remaining: Tensor) -> Tensor:
        """The constant at an episode's first plan, then what remains of it; normalized, (B,)."""
        if self.value is None:
            first = state.new_full((len(state),), DEFAULT_TARGET)
        else:
            first = self._normalizer[0].returns(state.new_full((len(state),), self.value))
        return _first_or_remaining(first, remaining) if self.subtract_rewards else first

    def loss(self, batch: Batch) -> Losses:
        """No losses."""
        return {}


@register("return_target", "quantile")
class QuantileTarget(nn.Module):
    """A quantile of the returns in the data given state and goal.

    High where the data's returns were high, and not out of reach, as a constant would be in distant states: a plan for
    a return out of reach can wait where it is. Where states are rare, classification comes closer than regression.

    Args:
        state_dim: S.
        goal_dim: G.
        goal_state: indices of the state features that goals specify.
        return_range: the outermost bins, in standard deviations from the mean.
        quantile: of the returns reachable from a state, between 0 and 1; higher targets more.
        width: units of each hidden layer.
        depth: number of linear layers.
        fourier_frequencies: Fourier frequencies of each value.
        num_bins: into which returns are classified (arXiv 2403.03950), so that ``quantile`` is read off their
            distribution, of a trained run as well; 0 for regression by the pinball loss.
        position_only: whether the quantile depends on those features of the state alone. Otherwise it is low in a
            posture from which the data moved on late or never, and the policy stays in it.
        subtract_rewards: whether the quantile is used for an episode's first plan alone, and what remains of it for
            the others, as by ``constant``. A deterministic policy can come to rest where the same state gets the same
            target and the same plan; what remains grows while no reward is received.

    Raises:
        ConfigError: if q is not between 0 and 1, for a single bin, or for ``position_only`` without goals that specify
            state features.
    """

    def __init__(
        self,
        state_dim: int,
        goal_dim: int,
        goal_state: tuple[int, ...],
        return_range: tuple[float, float],
        *,
        quantile: float = 0.9,
        width: int = 256,
        depth: int = 4,
        fourier_frequencies: int = 4,
        num_bins: int = 0,
        position_only: bool = False,
        subtract_rewards: bool = False,
    ) -> None:
        super().__init__()
        if position_only and not goal_state:
            raise ConfigError(
                "return_target.position_only needs goals that specify features of the state.",
                got="return_target.position_only=true, and no data.goal_state",
                fix="return_target.position_only=false",
            )
        if num_bins < 0 or num_bins == 1:
            raise ConfigError(
                "A return target that classifies has at least two bins.",
                got=f"return_target.num_bins={num_bins}",
                fix="return_target.num_bins=81, or 0 for regression",
            )
        _check_quantile(quantile)
        self.quantile, self.subtract_rewards = quantile, subtract_rewards
        self.histogram = Histogram(num_bins, *return_range) if num_bins else None
        self.indices = list(goal_state) if position_only else list(range(state_dim))
        self.features = FourierFeatures(len(self.indices) + goal_dim, fourier_frequencies)
        self.network = mlp(self.features.out_features, width, max(num_bins, 1), depth=depth)

    def forward(self, state: Tensor, goal: Tensor | None, remaining: Tensor) -> Tensor:
        """The quantile of the normalized return-to-go in each state, or what remains of the first, (B,)."""
        out = self._predict(state, goal)
        quantile = out.squeeze(-1) if self.histogram is None else self.histogram.quantile(out, self.quantile)
        return _first_or_remaining(quantile, remaining) if self.subtract_rewards else quantile

    def loss(self, batch: Batch) -> Losses:
        """The cross-entropy of the distribution of R_0, or the pinball loss of its quantile."""
        out, returns = self._predict(batch.states[:, 0], batch.goals), batch.returns[:, 0]
        if self.histogram is not None:
            return {"distribution": self.histogram.loss(out, returns).mean()}
        return {"quantile": _pinball(returns - out.squeeze(-1), self.quantile)}

    def _predict(self, state: Tensor, goal: Tensor | None) -> Tensor:
        """The quantile (B, 1), or logits (B, K) of the bins of returns."""
        x = columns(state, self.indices) if len(self.indices) < state.shape[-1] else state
        x = x if goal is None else torch.cat([x, goal], dim=-1)
        return self.network(self.features(x))


@register("return_target", "best")
class BestTarget(nn.Module):
    """A high quantile of all returns in the data, less the rewards received since; the normalizer knows it.

    For tasks without goals in which any episode can reach the best return, such as locomotion.

    Args:
        normalizer: of the data.
        quantile: of the returns from all states, between 0 and 1; higher targets more.
        subtract_rewards: whether rewards received are subtracted, as by ``constant``.

    Raises:
        ConfigError: if q is not between 0 and 1.
    """

    def __init__(self, normalizer: Normalizer, *, quantile: float = 0.95, subtract_rewards: bool = True) -> None:
        super().__init__()
        _check_quantile(quantile)
        self.quantile, self.subtract_rewards = quantile, subtract_rewards
        if normalizer.returns.quantiles is None:
            normalizer.returns.fit_quantiles(LEVELS)
        self._normalizer = [normalizer]  # in a list: its weights belong to the planner, not to this module

    def forward(self, state: Tensor, goal: Tensor | None, remaining: Tensor) -> Tensor:
        """The quantile at an episode's first plan, then what remains of it; normalized, (B,)."""
        first = self._normalizer[0].returns.quantile(self.quantile).to(remaining).expand(len(state))
        return _first_or_remaining(first, remaining) if self.subtract_rewards else first

    def loss(self, batch: Batch) -> Losses:
        """No losses."""
        return {}


def _first_or_remaining(first: Tensor, remaining: Tensor) -> Tensor:
    """The first target (B,) at an episode's first plan, where ``remaining`` is NaN, and later what remains of it."""
    return torch.where(remaining.isnan(), first, remaining)


def _pinball(error: Tensor, quantile: float) -> Tensor:
    return torch.maximum(quantile * error, (quantile - 1) * error).mean()


def _check_quantile(quantile: float) -> None:
    if not 0 < quantile < 1:
        raise ConfigError(
            "A quantile is more than 0 and less than 1.",
            got=f"return_target.quantile={quantile}",
            fix="return_target.quantile=0.9",
        )
