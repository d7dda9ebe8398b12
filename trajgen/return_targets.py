"""Return targets: which return-to-go is asked for when acting."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.registry import register
from trajgen.core.types import Batch, Losses
from trajgen.nn.layers import FourierFeatures, mlp

AMBITION = 2.0
"""What a constant target asks for where no value is given, in deviations above the mean of the data's returns."""


@register("return_target", "constant")
class ConstantTarget(nn.Module):
    """The same return at the start of every episode, less the rewards received (Decision Transformer, section 3).

    Args:
        normalizer: maps returns to what the model sees.
        value: the return-to-go to ask for, in the data's own (discounted) units; null for two deviations above
            the mean of the data's (transformed) returns.
        subtract_rewards: whether rewards received are taken off. What remains is divided by the discount at every
            step, so that where a task goes on for ever it grows without end if rewards fall short, and shrinks if
            they do not; false asks for the same at every plan.
    """

    def __init__(self, normalizer: Normalizer, *, value: float | None = None, subtract_rewards: bool = True) -> None:
        super().__init__()
        self.value, self.subtract_rewards = value, subtract_rewards
        self._normalize = [normalizer]  # in a list: its weights belong to the planner, not to this module

    def forward(self, state: Tensor, goal: Tensor | None, remaining: Tensor) -> Tensor:
        """The constant at an episode's first plan, then what remains of it; normalized, (B,)."""
        if self.value is None:
            first = state.new_full((len(state),), AMBITION)
        else:
            first = self._normalize[0].returns(state.new_full((len(state),), self.value))
        return _rest(first, remaining) if self.subtract_rewards else first

    def loss(self, batch: Batch) -> Losses:
        """Nothing to learn."""
        return {}


@register("return_target", "quantile")
class QuantileTarget(nn.Module):
    """A quantile of the returns that the data reached from this state for this goal, learnt by the pinball loss.

    Ambitious where the data were good and modest where nothing more is possible; a constant would ask for the
    impossible in far states.

    Args:
        state_dim: S.
        goal_dim: G.
        goal_state: indices of the state features that goals speak of.
        quantile: q in (0, 1).
        width: hidden width.
        depth: linear layers.
        fourier_frequencies: Fourier frequencies of each value.
        position_only: whether of the state only those features are looked at. In a posture from which the data went
            on late or never, little is asked for, and the policy stays in it; from the same place others did go on.
        subtract_rewards: whether an episode's first plan alone asks for the quantile, and the others for what remains
            of it, as by ``constant``. A policy whose actions are not drawn can come to rest where the same state asks
            for the same and gets the same plan; what remains grows while no reward comes in.

    Raises:
        ConfigError: if q is not between 0 and 1, or the data have no goals that speak of a place.
    """

    def __init__(
        self,
        state_dim: int,
        goal_dim: int,
        goal_state: tuple[int, ...] = (),
        *,
        quantile: float = 0.9,
        width: int = 256,
        depth: int = 4,
        fourier_frequencies: int = 4,
        position_only: bool = False,
        subtract_rewards: bool = False,
    ) -> None:
        super().__init__()
        if position_only and not goal_state:
            raise ConfigError(
                "A place is what goals speak of.",
                expected="goals in the data, and data.goal_state",
                got="return_target.position_only=true without them",
                fix="return_target.position_only=false",
            )
        self.quantile, self.subtract_rewards = _share(quantile, 0.9), subtract_rewards
        self.seen = list(goal_state) if position_only else list(range(state_dim))
        self.features = FourierFeatures(len(self.seen) + goal_dim, fourier_frequencies)
        self.network = mlp(self.features.outputs, width, 1, depth=depth)

    def forward(self, state: Tensor, goal: Tensor | None, remaining: Tensor) -> Tensor:
        """The quantile of the normalized return-to-go in each state, or what remains of the first, (B,)."""
        here = self._quantile(state, goal)
        return _rest(here, remaining) if self.subtract_rewards else here

    def loss(self, batch: Batch) -> Losses:
        """The pinball loss of the quantile of R_0."""
        error = batch.returns[:, 0] - self._quantile(batch.states[:, 0], batch.goals)
        return {"quantile": _pinball(error, self.quantile)}

    def _quantile(self, state: Tensor, goal: Tensor | None) -> Tensor:
        seen = state[..., self.seen] if len(self.seen) < state.shape[-1] else state
        known = seen if goal is None else torch.cat([seen, goal], dim=-1)
        return self.network(self.features(known)).squeeze(-1)


@register("return_target", "best")
class BestTarget(nn.Module):
    """A high quantile of the returns that the data reached from anywhere, less the rewards received since.

    For tasks without goals in which every episode can be as good as any: locomotion.

    Args:
        quantile: q in (0, 1).
        subtract_rewards: whether rewards received are taken off, as by ``constant``.

    Raises:
        ConfigError: if q is not between 0 and 1.
    """

    def __init__(self, *, quantile: float = 0.95, subtract_rewards: bool = True) -> None:
        super().__init__()
        self.quantile, self.subtract_rewards = _share(quantile, 0.95), subtract_rewards
        self.value = nn.Parameter(torch.zeros(1))

    def forward(self, state: Tensor, goal: Tensor | None, remaining: Tensor) -> Tensor:
        """The quantile at an episode's first plan, then what remains of it; normalized, (B,)."""
        first = self.value.to(remaining).expand(len(state))
        return _rest(first, remaining) if self.subtract_rewards else first

    def loss(self, batch: Batch) -> Losses:
        """The pinball loss of the quantile of R_0."""
        return {"quantile": _pinball(batch.returns[:, 0] - self.value, self.quantile)}


def _rest(first: Tensor, remaining: Tensor) -> Tensor:
    """What is asked for at an episode's first plan, and then what remains of it, (B,)."""
    return torch.where(remaining.isnan(), first, remaining)


def _pinball(error: Tensor, quantile: float) -> Tensor:
    return torch.maximum(quantile * error, (quantile - 1) * error).mean()


def _share(quantile: float, usual: float) -> float:
    if not 0 < quantile < 1:
        raise ConfigError(
            "A quantile lies between 0 and 1.",
            expected="more than 0 and less than 1",
            got=f"return_target.quantile={quantile}",
            fix=f"return_target.quantile={usual}",
        )
    return quantile
