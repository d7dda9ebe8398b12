"""The critic that learns how far goals are, by telling the future of a state from that of others."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajgen.core.checks import check_range
from trajgen.core.errors import ConfigError
from trajgen.core.registry import register
from trajgen.core.types import Batch, Cond, GoalSampling, Losses
from trajgen.critics.values import transitions_of
from trajgen.nn.layers import FourierFeatures, PlanStrides, mlp


@register("critic", "temporal_distance")
class TemporalDistance(nn.Module):
    """A distance |φ(s) - ψ(g)|, learnt by contrast (InfoNCE), that is small for goals that soon follow a state.

    Positive pairs are a state and what its episode reached after a geometric number of steps, negative ones the states
    and goals of other windows (contrastive RL, arXiv 2206.07568, section 4; temporal distances, arXiv 2406.17098). It
    needs no rewards and no target network. Micro-batches and processes each contrast their own windows.

    Args:
        state_dim: S.
        goal_dim: G.
        goal_radius: of the goals, which have to be positions that data reach.
        strides: environment steps between the points of a plan, one or several.
        embed_dim: width of φ(s) and ψ(g).
        width: units of each hidden layer.
        depth: linear layers.
        fourier_frequencies: Fourier frequencies of each value of state and goal.

    Raises:
        ConfigError: if goals are not drawn from what the data reach, or an option is out of range.
    """

    reads = ("state",)
    transitions = GoalSampling(goals=1, current=0.0, random=0.0)
    contrasts_windows = True

    def __init__(
        self,
        state_dim: int,
        goal_dim: int,
        goal_radius: float | None,
        strides: tuple[int, ...],
        *,
        embed_dim: int = 32,
        width: int = 256,
        depth: int = 3,
        fourier_frequencies: int = 4,
    ) -> None:
        super().__init__()
        check_range("critic.embed_dim", embed_dim, 1, usual=32)
        if not goal_dim or goal_radius is None:
            raise ConfigError(
                "A temporal distance needs goals that states reach within data.goal_radius.",
                got=f"goals of width {goal_dim}, data.goal_radius={goal_radius}",
                fix="critic=value",
            )
        self.strides = PlanStrides(strides)
        self.state_features = FourierFeatures(state_dim, fourier_frequencies)
        self.goal_features = FourierFeatures(goal_dim, fourier_frequencies)
        self.state_embed = mlp(self.state_features.out_features, width, embed_dim, depth=depth)
        self.goal_embed = mlp(self.goal_features.out_features, width, embed_dim, depth=depth)

    def forward(self, points: Mapping[str, Tensor], cond: Cond) -> Tensor:
        """Scores (B,) of plans: the mean distance of their states (B, T, S) to the goal, negative.

        Of plans at several strides it is that over the time which all of them cover.
        """
        if cond.goal is None:
            raise ValueError("a temporal distance needs goals")
        return -self.strides.mean(self.distance(points["state"], cond.goal.unsqueeze(1)), cond.stride)

    def distance(self, states: Tensor, goals: Tensor) -> Tensor:
        """Distances (…) of normalized states (…, S) to goals (…, G), in a unit of their own."""
        difference = self.state_embed(self.state_features(states)) - self.goal_embed(self.goal_features(goals))
        return (difference.square().sum(-1) + 1e-6).sqrt()  # smooth at 0

    def loss(self, batch: Batch) -> Losses:
        """The symmetric InfoNCE loss: each goal belongs to its state, and each state to its goal; in full precision."""
        goals = transitions_of(batch).goals
        if goals is None:
            raise ValueError("a temporal distance needs goals")
        with torch.autocast(batch.states.device.type, enabled=False):
            pairs = -self.distance(batch.chunk_states[:, :1], goals[:, 1].unsqueeze(0))  # (B, B)
            same_window = torch.arange(len(pairs), device=pairs.device)
            return {"contrast": (F.cross_entropy(pairs, same_window) + F.cross_entropy(pairs.t(), same_window)) / 2}

    def after_step(self) -> None:
        """Nothing."""
