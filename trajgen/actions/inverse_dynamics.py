"""Inverse dynamics in the latent: actions from the aggregated latent instead of decoded states."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from trajgen.core.checks import check_range
from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.registry import register
from trajgen.core.types import Plan
from trajgen.nn.goals import RelativeGoal
from trajgen.nn.layers import FourierFeatures, Histogram, PlanStrides, mlp


@register("action", "latent")
class LatentInverseDynamics(nn.Module):
    """Actions from the latent alone, a_0 = I(Σ_k z_k), and open loop for the steps after it (MAGE, section 3).

    Args:
        latent_length: points N of the latent, the number of tokens of the finest scale.
        code_dim: C.
        action_dim: A.
        chunk: H, the steps for which a plan can be followed.
        strides: at which plans are made, one or several.
        width: units of each hidden layer.
        depth: number of linear layers.
    """

    reads_trajectory = False

    def __init__(
        self,
        latent_length: int,
        code_dim: int,
        action_dim: int,
        chunk: int,
        strides: tuple[int, ...] = (1,),
        *,
        width: int = 256,
        depth: int = 3,
    ) -> None:
        super().__init__()
        self.chunk, self.strides = chunk, PlanStrides(strides)
        self.network = mlp(latent_length * code_dim, width, len(strides) * chunk * action_dim, depth=depth)

    def forward(self, plan: Plan, states: Tensor, offsets: Tensor) -> Tensor:
        """Actions (B, H, A) at ``offsets`` (B, H) steps into the plan; the states are ignored."""
        actions = self.network(plan.latent.flatten(1)).unflatten(-1, (len(self.strides.steps) * self.chunk, -1))
        rows = self.strides.number(plan.stride) * self.chunk + offsets.clamp(max=self.chunk - 1)
        return actions.gather(1, rows.unsqueeze(-1).expand(-1, -1, actions.shape[-1]))


@register("action", "latent_state")
class LatentStateInverseDynamics(nn.Module):
    """Actions from the latent, the current state, the goal and the offset into the plan: closed loop between two plans.

    Not the paper's head, which is ``latent``.

    Args:
        latent_length: points N of the latent, the number of tokens of the finest scale.
        code_dim: C.
        state_dim: S.
        goal_dim: G.
        action_dim: A.
        chunk: H, the steps for which a plan can be followed.
        strides: at which plans are made, one or several.
        goal_state: the state features that goals specify.
        normalizer: of the data.
        relative_goals: whether direction and distance to the goal from the current position are read with it.
        width: units of each hidden layer.
        depth: linear layers after the first.
        fourier_frequencies: Fourier frequencies of each value of the state and the goal, for fine control.
        goal: whether the goal is read as well, if there is one: codes tell less exactly where a plan ends.
        num_bins: into which each action is classified, for multimodal actions or actions at their bounds; 0 for
            regression.
        bin_limit: the outermost bins, in standard deviations of the actions.
        temperature: at which actions are sampled from the bins at every step, for data that were recorded with noise;
            0 for their mean.

    Raises:
        ConfigError: for a single bin, a limit that is not positive, a temperature without bins, or
            relative goals that specify no state features.
    """

    reads_trajectory = False

    def __init__(
        self,
        latent_length: int,
        code_dim: int,
        state_dim: int,
        goal_dim: int,
        action_dim: int,
        chunk: int,
        strides: tuple[int, ...] = (1,),
        goal_state: tuple[int, ...] = (),
        normalizer: Normalizer | None = None,
        relative_goals: bool = False,
        *,
        width: int = 256,
        depth: int = 2,
        fourier_frequencies: int = 0,
        goal: bool = False,
        num_bins: int = 0,
        bin_limit: float = 3.0,
        temperature: float = 0.0,
    ) -> None:
        super().__init__()
        if num_bins < 0 or num_bins == 1 or bin_limit <= 0:
            raise ConfigError(
                "An action head that classifies has at least two bins, and a limit above 0.",
                got=f"action.num_bins={num_bins} action.bin_limit={bin_limit}",
                fix="action.num_bins=41 action.bin_limit=3; action.num_bins=0 for regression",
            )
        check_range("action.temperature", temperature, 0, usual=0)
        if temperature and not num_bins:
            raise ConfigError(
                "An action head samples from the bins into which it classifies actions.",
                got=f"action.temperature={temperature} action.num_bins={num_bins}",
                fix="action.temperature=0, or train with action.num_bins=41",
            )
        self.latent_proj = nn.Linear(latent_length * code_dim, width)
        self.features = FourierFeatures(state_dim, fourier_frequencies)
        self.state_proj = nn.Linear(self.features.out_features, width)
        self.strides = PlanStrides(strides)
        self.reads_goal = goal and goal_dim > 0
        if self.reads_goal:
            self.goal_features = FourierFeatures(goal_dim, fourier_frequencies)
            self.goal_proj = nn.Linear(self.goal_features.out_features, width)
        self.relative_goal: RelativeGoal | None = None
        if self.reads_goal and relative_goals:
            self.relative_goal = RelativeGoal(goal_dim, goal_state, normalizer, state_dim)
            self.relative_proj = nn.Linear(self.relative_goal.out_features, width)
        self.offset_embed = nn.Embedding(len(strides) * chunk, width)
        self.network = nn.Sequential(nn.SiLU(), mlp(width, width, action_dim * max(num_bins, 1), depth=depth))
        self.histogram = Histogram(num_bins, -bin_limit, bin_limit) if num_bins else None
        self.action_dim, self.chunk, self.temperature = action_dim, chunk, temperature

    def noise(self, plans: int, rng: Generator | None, device: torch.device) -> Tensor | None:
        """Uniform numbers (plans, chunk, A) from which a plan's actions are sampled; None without a temperature."""
        if not self.temperature:
            return None
        return torch.rand(plans, self.chunk, self.action_dim, generator=rng, device=device)

    def forward(self, plan: Plan, states: Tensor, offsets: Tensor) -> Tensor:
        """Actions (B, H, A) in the ``states`` (B, H, S) observed ``offsets`` (B, H) steps into the plan."""
        offsets = offsets.clamp(max=self.chunk - 1)
        out = self._predict(plan, states, offsets)
        if self.histogram is None:
            return out
        if plan.noise is None or not self.temperature:
            return self.histogram.mean(out)
        uniform = plan.noise.gather(1, offsets.unsqueeze(-1).expand(-1, -1, self.action_dim))
        return self.histogram.sample(out / self.temperature, uniform)

    def loss(self, plan: Plan, states: Tensor, offsets: Tensor, actions: Tensor) -> Tensor:
        """L_inv (B, H) of actions (B, H, A): the mean of their squared errors, or of their cross-entropies."""
        out = self._predict(plan, states, offsets.clamp(max=self.chunk - 1))
        error = (out - actions).square() if self.histogram is None else self.histogram.loss(out, actions)
        return error.mean(-1)

    def _predict(self, plan: Plan, states: Tensor, offsets: Tensor) -> Tensor:
        """Actions (B, H, A), or logits (B, H, A, K) of their bins."""
        embedded = self.latent_proj(plan.latent.flatten(1))
        if self.reads_goal and plan.goal is not None:
            embedded = embedded + self.goal_proj(self.goal_features(plan.goal))
        offset = self.offset_embed(self.strides.number(plan.stride) * self.chunk + offsets)
        embedded = embedded.unsqueeze(1)
        if self.relative_goal is not None and plan.goal is not None:
            embedded = embedded + self.relative_proj(self.relative_goal(plan.goal.unsqueeze(1), states))
        out = self.network(embedded + self.state_proj(self.features(states)) + offset)
        return out if self.histogram is None else out.unflatten(-1, (-1, len(self.histogram.centers)))
