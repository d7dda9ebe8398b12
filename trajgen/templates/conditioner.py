"""A conditioner of one's own: what a plan is conditioned on."""

import torch
from torch import Tensor, nn

from trajgen import register
from trajgen.core.types import Cond


@register("conditioner", "mine")
class MineConditioner(nn.Module):
    """Embeds state, return-to-go and goal by one network.

    Args:
        state_dim: S.
        goal_dim: G; 0 without goals.
        width: E, of the embedding.
        dropout: fraction of training windows whose return and goal are withheld.
    """

    # Before the *: what the composition gives, by name. After it: options, with types and literal defaults.
    def __init__(self, state_dim: int, goal_dim: int, *, width: int = 128, dropout: float = 0.1) -> None:
        super().__init__()
        self.width, self.dropout = width, dropout
        self.learns_unconditional = dropout > 0  # if false, classifier-free guidance is refused
        self.missing = nn.Parameter(torch.zeros(1 + goal_dim))  # in place of return and goal
        self.network = nn.Sequential(nn.Linear(state_dim + 1 + goal_dim, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, cond: Cond) -> Tensor:
        """Embeddings (B, 1, E), the same at all scales; (B, K, E) for one per scale."""
        optional = cond.returns.unsqueeze(-1)
        if cond.goal is not None:
            optional = torch.cat([optional, cond.goal], dim=-1)
        is_given = torch.ones_like(cond.returns, dtype=torch.bool) if cond.cond_mask is None else cond.cond_mask
        if self.training:
            is_given = is_given & (torch.rand_like(cond.returns) >= self.dropout)
        optional = torch.where(is_given.unsqueeze(-1), optional, self.missing)
        return self.network(torch.cat([cond.state, optional], dim=-1)).unsqueeze(1)
