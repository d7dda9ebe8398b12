"""An action head of one's own: plan to action."""

import torch
from torch import Tensor, nn

from trajgen import register
from trajgen.core.types import Plan


@register("action", "mine")
class MineAction(nn.Module):
    """Actions from the latent, the current state, and the offset into the plan.

    Args:
        latent_length: points N of the latent, the number of tokens of the finest scale.
        code_dim: C.
        state_dim: S.
        action_dim: A.
        chunk: H, for how many steps a plan is followed.
        width: of the hidden layer.
    """

    reads_trajectory = False  # the latent is enough: when acting, plans need not be decoded

    # Before the *: what the composition gives, by name. After it: options, with types and literal defaults.
    def __init__(
        self, latent_length: int, code_dim: int, state_dim: int, action_dim: int, chunk: int, *, width: int = 256
    ) -> None:
        super().__init__()
        self.chunk = chunk
        inputs = latent_length * code_dim + state_dim + 1
        self.network = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, action_dim))

    def forward(self, plan: Plan, states: Tensor, offsets: Tensor) -> Tensor:
        """Actions (B, H, A) in the states (B, H, S) met ``offsets`` (B, H) steps after the plan was made."""
        latent = plan.latent.flatten(1).unsqueeze(1).expand(-1, states.shape[1], -1)
        return self.network(torch.cat([latent, states, offsets.unsqueeze(-1) / self.chunk], dim=-1))
