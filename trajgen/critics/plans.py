"""Critics that judge a plan by its own points: the return that it promises, its length, or what such plans brought."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trajgen.core.checks import check_range
from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.registry import register
from trajgen.core.types import Batch, Cond, GoalSampling, Losses
from trajgen.nn.attention import check_heads
from trajgen.nn.layers import FourierFeatures, PlanStrides, columns, mlp


class _Untrained(nn.Module):
    """A critic with nothing to learn."""

    transitions: GoalSampling | None = None

    def loss(self, batch: Batch) -> Losses:
        """None."""
        return {}

    def after_step(self) -> None:
        """Nothing."""


@register("critic", "return")
class PlannedReturn(_Untrained):
    """The discounted return that the points of a plan promise, in the data's own units.

    With rewards in the view, their discounted sum, which the return-to-go of the last point continues where the view
    has it ("reward-to-go", arXiv 2106.02039, section 2.3; arXiv 2208.10291, section 3.3). That return counts its own
    point's reward, which is therefore left out of the sum. With the return-to-go alone, that of the first point.
    Of plans at several strides, rewards count as if spread evenly over their stride, and without returns only within
    the time that all of the plans cover.
    Where the view has terminals, rewards and returns are left out from the first terminal above 0.5 on.

    Args:
        normalizer: of the data.
        discount: per environment step.
        strides: environment steps between points, one or several; a point's reward is their sum.
    """

    reads = ("return", "reward")

    def __init__(self, normalizer: Normalizer, discount: float, strides: tuple[int, ...]) -> None:
        super().__init__()
        self._normalizer = [normalizer]  # in a list: its buffers belong to the planner, not to this module
        self.discount, self.strides = discount, PlanStrides(strides)

    def forward(self, points: Mapping[str, Tensor], cond: Cond) -> Tensor:
        """The returns (B,) of plans with returns or rewards (B, T, 1)."""
        normalizer = self._normalizer[0]
        returns, rewards = points.get("return"), points.get("reward")
        if returns is not None:
            returns = normalizer.returns.inverse(returns).squeeze(-1)
        if rewards is None:
            assert returns is not None  # one of the two is there: `reads`
            return returns[:, 0]
        rewards = normalizer.reward.inverse(rewards).squeeze(-1)
        if returns is not None:
            rewards = torch.cat([rewards[:, :-1], returns[:, -1:]], dim=1)
        if "terminal" in points:
            rewards = rewards * ((points["terminal"].squeeze(-1) > 0.5).cumsum(1) == 0)  # ONNX has no cumprod
        index = torch.arange(rewards.shape[1], device=rewards.device, dtype=rewards.dtype)
        stride = self.strides.of(cond.stride)
        weights = (self.discount**stride) ** index  # (T,) or (B, T)
        if len(self.strides.steps) > 1:
            steps = torch.arange(self.strides.steps[-1], device=rewards.device)
            within = (self.discount**steps * (steps < stride)).sum(1, keepdim=True) / stride  # (B, 1)
            if returns is None:
                weights = weights * within * ((index + 1) * stride <= len(index) * self.strides.steps[0])
            else:
                weights = torch.cat([weights[:, :-1] * within, weights[:, -1:]], dim=1)
        return rewards @ weights if weights.ndim == 1 else (rewards * weights).sum(1)


@register("critic", "length")
class PlanLength(_Untrained):
    """The length of a plan, negative: the way along its positions until it is within the goal radius.

    What is left to the goal where a plan ends counts as well, in a straight line, ``detour`` times. That line passes
    through walls: a plan that stands still before one looks shorter than a long way around it. ``critic=value`` learns
    the ways of the data.

    Args:
        goal_dim: G.
        goal_state: indices of the state features that goals specify.
        goal_radius: within which a goal is reached.
        normalizer: of the data.
        detour: how much longer the way beyond the plan is than a straight line.

    Raises:
        ConfigError: if there are no goals that specify state features within a radius.
    """

    reads = ("state", "position")

    def __init__(
        self,
        goal_dim: int,
        goal_state: tuple[int, ...],
        goal_radius: float | None,
        normalizer: Normalizer,
        *,
        detour: float = 2.0,
    ) -> None:
        super().__init__()
        check_range("critic.detour", detour, 0, usual=2)
        if not (goal_dim and goal_state and goal_radius):
            raise ConfigError(
                "The length of a plan is that of its way to a goal, by data.goal_state and data.goal_radius.",
                got=f"data.goal_state={list(goal_state)} data.goal_radius={goal_radius}",
                fix="critic=value",
            )
        self.indices, self.goal_radius, self.detour = list(goal_state), goal_radius, detour
        self._normalizer = [normalizer]  # in a list: its buffers belong to the planner, not to this module

    def forward(self, points: Mapping[str, Tensor], cond: Cond) -> Tensor:
        """Lengths (B,) of plans with states (B, T, S) or positions (B, T, G), in units of the goal, times -1."""
        normalizer = self._normalizer[0]
        positions = points["position"] if "position" in points else columns(points["state"], self.indices)
        mean, scale = columns(normalizer.state.mean, self.indices), columns(normalizer.state.scale, self.indices)
        assert cond.goal is not None
        goal = normalizer.goal.inverse(cond.goal)
        way = positions * scale + mean  # (B, T, G)
        distance = (way - goal.unsqueeze(1)).norm(dim=-1)  # (B, T)
        on_the_way = ((distance <= self.goal_radius).cumsum(1) == 0).float()  # ONNX has no cumprod
        steps = (way[:, 1:] - way[:, :-1]).norm(dim=-1)  # (B, T - 1)
        missing = on_the_way[:, -1] * (distance[:, -1] - self.goal_radius)
        return -((steps * on_the_way[:, :-1]).sum(1) + self.detour * missing)


@register("critic", "horizon")
class HorizonCritic(nn.Module):
    """The normalized return that windows like the plan brought, by regression (Diffusion Veteran, arXiv 2503.00535).

    There it is the critic of Monte Carlo sampling with selection. A transformer reads all states of the window, and the
    goal. It judges plans as a whole, by the data's own way of going on after them.

    Args:
        state_dim: S.
        goal_dim: G; 0 without goals.
        horizon: T.
        strides: environment steps between points, one or several.
        width: width W of the tokens.
        depth: number of layers.
        heads: attention heads; must divide the width.
        fourier_frequencies: Fourier frequencies of each value of state and goal.

    Raises:
        ConfigError: if the heads do not divide the width.
    """

    reads = ("state",)
    transitions: GoalSampling | None = None
    whole_plans = True

    def __init__(
        self,
        state_dim: int,
        goal_dim: int,
        horizon: int,
        strides: tuple[int, ...],
        *,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        fourier_frequencies: int = 4,
    ) -> None:
        super().__init__()
        check_heads(width, heads, "critic")
        self.features = FourierFeatures(state_dim, fourier_frequencies)
        self.state_proj = nn.Linear(self.features.out_features, width)
        self.goal_features = FourierFeatures(goal_dim, fourier_frequencies) if goal_dim else None
        self.goal_proj = mlp(self.goal_features.out_features, width, width) if self.goal_features else None
        self.pos_embed = nn.Parameter(torch.randn(horizon, width) * 0.02)
        self.strides = PlanStrides(strides)
        self.stride_embed = nn.Embedding(len(strides), width) if len(strides) > 1 else None
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.out = nn.Linear(width, 1)

    def forward(self, points: Mapping[str, Tensor], cond: Cond) -> Tensor:
        """Normalized returns (B,) of plans with states (B, T, S), fewer where a history comes before the present."""
        states = points["state"]
        x = self.state_proj(self.features(states)) + self.pos_embed[: states.shape[1]]
        if self.goal_features is not None and self.goal_proj is not None and cond.goal is not None:
            x = x + self.goal_proj(self.goal_features(cond.goal)).unsqueeze(1)
        if self.stride_embed is not None:
            x = x + self.stride_embed(self.strides.number(cond.stride))
        return self.out(self.layers(x).mean(1)).squeeze(-1).float()

    def loss(self, batch: Batch) -> Losses:
        """The mean squared error of R_0."""
        predicted = self({"state": batch.states}, batch.condition())
        return {"horizon": (predicted - batch.returns[:, 0]).square().mean()}

    def after_step(self) -> None:
        """Nothing."""
