"""Inverse dynamics in the latent: actions read off the aggregated code, not off decoded states."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.registry import register
from trajgen.core.types import Plan
from trajgen.nn.histogram import Histogram
from trajgen.nn.layers import FourierFeatures, mlp


@register("action", "latent")
class LatentInverseDynamics(nn.Module):
    """Actions from the latent alone, a_0 = I(Σ_k z_k), and open loop for the steps after it (MAGE, section 3).

    Args:
        latent_length: N.
        code_dim: C.
        action_dim: A.
        chunk: H, for how many steps a plan can be followed.
        width: hidden width.
        depth: linear layers.
    """

    reads_trajectory = False

    def __init__(
        self,
        latent_length: int,
        code_dim: int,
        action_dim: int,
        chunk: int,
        *,
        width: int = 256,
        depth: int = 3,
    ) -> None:
        super().__init__()
        self.chunk = chunk
        self.network = mlp(latent_length * code_dim, width, chunk * action_dim, depth=depth)

    def forward(self, plan: Plan, states: Tensor, offsets: Tensor) -> Tensor:
        """Actions (B, H, A) at ``offsets`` (B, H) steps into the plan; the states are not looked at."""
        every = self.network(plan.latent.flatten(1)).unflatten(-1, (self.chunk, -1))  # (B, chunk, A)
        index = offsets.clamp(max=self.chunk - 1).unsqueeze(-1).expand(-1, -1, every.shape[-1])
        return every.gather(1, index)


@register("action", "latent_state")
class LatentStateInverseDynamics(nn.Module):
    """Actions from the latent and the current state, so that a plan can be followed in closed loop for several steps.

    The offset into the plan is an input too. Not the paper's head (that is ``latent``): it needs the state at every
    step, and gains where the state is known.

    Args:
        latent_length: N.
        code_dim: C.
        state_dim: S.
        action_dim: A.
        chunk: H, for how many steps a plan can be followed.
        width: hidden width.
        depth: linear layers after the first.
        fourier_frequencies: Fourier frequencies of each value of the state, for bodies that must be controlled finely.
        num_bins: into which each action is classified, for data that act in several ways or at their bounds; 0
            regresses.
        bin_limit: the outermost bins, in standard deviations of the actions.
        temperature: at which actions are drawn from the bins, anew at every step; 0 takes their mean. A body that
            stands still where the mean leaves it is shaken loose, as it was in data that were recorded with noise.

    Raises:
        ConfigError: for a single bin, a limit that leaves no room between them, or draws without bins.
    """

    reads_trajectory = False

    def __init__(
        self,
        latent_length: int,
        code_dim: int,
        state_dim: int,
        action_dim: int,
        chunk: int,
        *,
        width: int = 256,
        depth: int = 2,
        fourier_frequencies: int = 0,
        num_bins: int = 0,
        bin_limit: float = 3.0,
        temperature: float = 0.0,
    ) -> None:
        super().__init__()
        if num_bins < 0 or num_bins == 1 or bin_limit <= 0:
            raise ConfigError(
                "An action head that classifies has several bins between two limits.",
                expected="action.num_bins of 2 or more, or 0 for regression, and action.bin_limit above 0",
                got=f"action.num_bins={num_bins} action.bin_limit={bin_limit}",
                fix="action.num_bins=41 action.bin_limit=3",
            )
        if temperature < 0 or (temperature and not num_bins):
            raise ConfigError(
                "An action head draws from the bins into which it classifies actions.",
                expected="action.temperature of 0, or above it with action.num_bins",
                got=f"action.temperature={temperature} action.num_bins={num_bins}",
                fix="action.temperature=0, or train with action.num_bins=41",
            )
        self.from_latent = nn.Linear(latent_length * code_dim, width)
        self.features = FourierFeatures(state_dim, fourier_frequencies)
        self.from_state = nn.Linear(self.features.outputs, width)
        self.from_offset = nn.Embedding(chunk, width)
        self.network = nn.Sequential(nn.SiLU(), mlp(width, width, action_dim * max(num_bins, 1), depth=depth))
        self.histogram = Histogram(num_bins, bin_limit) if num_bins else None
        self.action_dim, self.temperature = action_dim, temperature

    def noise(self, plans: int, rng: Generator | None, device: torch.device) -> Tensor | None:
        """What is drawn with so many plans, for every step that they can be followed; None where nothing is."""
        if not self.temperature:
            return None
        return torch.rand(plans, self.from_offset.num_embeddings, self.action_dim, generator=rng, device=device)

    def forward(self, plan: Plan, states: Tensor, offsets: Tensor) -> Tensor:
        """Actions (B, H, A) in the ``states`` (B, H, S) met ``offsets`` (B, H) steps into the plan."""
        read = self._read(plan, states, offsets)
        if self.histogram is None:
            return read
        if plan.noise is None or not self.temperature:
            return self.histogram.mean(read)
        shares = plan.noise.gather(1, self._known(offsets).unsqueeze(-1).expand(-1, -1, self.action_dim))
        return self.histogram.draw(read / self.temperature, shares)

    def loss(self, plan: Plan, states: Tensor, offsets: Tensor, actions: Tensor) -> Tensor:
        """L_inv (B, H) of actions (B, H, A): the mean of their squared errors, or of their cross-entropies."""
        read = self._read(plan, states, offsets)
        error = (read - actions).square() if self.histogram is None else self.histogram.loss(read, actions)
        return error.mean(-1)

    def _read(self, plan: Plan, states: Tensor, offsets: Tensor) -> Tensor:
        """Actions (B, H, A), or logits (B, H, A, K) of their bins."""
        latent = self.from_latent(plan.latent.flatten(1)).unsqueeze(1)
        step = self.from_offset(self._known(offsets))
        read: Tensor = self.network(latent + self.from_state(self.features(states)) + step)
        return read if self.histogram is None else read.unflatten(-1, (-1, len(self.histogram.centers)))

    def _known(self, offsets: Tensor) -> Tensor:
        """The offsets, of which those beyond the chunk count as its last."""
        return offsets.clamp(max=self.from_offset.num_embeddings - 1)
