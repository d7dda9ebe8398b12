"""Inverse dynamics in the latent: actions read off the aggregated code, not off decoded states."""

from __future__ import annotations

from torch import Tensor, nn

from trajgen.core.registry import register
from trajgen.core.types import Plan
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
        octaves: Fourier frequencies of each value of the state, for bodies that must be controlled finely.
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
        octaves: int = 0,
    ) -> None:
        super().__init__()
        self.from_latent = nn.Linear(latent_length * code_dim, width)
        self.features = FourierFeatures(state_dim, octaves)
        self.from_state = nn.Linear(self.features.outputs, width)
        self.from_offset = nn.Embedding(chunk, width)
        self.network = nn.Sequential(nn.SiLU(), mlp(width, width, action_dim, depth=depth))

    def forward(self, plan: Plan, states: Tensor, offsets: Tensor) -> Tensor:
        """Actions (B, H, A) in the ``states`` (B, H, S) met ``offsets`` (B, H) steps into the plan."""
        latent = self.from_latent(plan.latent.flatten(1)).unsqueeze(1)
        known = offsets.clamp(max=self.from_offset.num_embeddings - 1)
        return self.network(latent + self.from_state(self.features(states)) + self.from_offset(known))
