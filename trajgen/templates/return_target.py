"""A return target of one's own: which return-to-go plans are conditioned on when acting."""

import torch
from torch import Tensor, nn

from trajgen import register
from trajgen.core.types import Batch, Losses


@register("return_target", "mine")
class MineReturnTarget(nn.Module):
    """The mean return of the data from a state, plus an offset.

    Args:
        state_dim: S.
        goal_dim: G; 0 without goals.
        offset: what is added to the mean, in standard deviations of the data's returns.
        width: of the hidden layer.
    """

    # Before the *: what the composition gives, by name. After it: options, with types and literal defaults.
    def __init__(self, state_dim: int, goal_dim: int, *, offset: float = 0.5, width: int = 128) -> None:
        super().__init__()
        self.offset = offset
        self.network = nn.Sequential(nn.Linear(state_dim + goal_dim, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, state: Tensor, goal: Tensor | None, remaining: Tensor) -> Tensor:
        """The target return-to-go (B,), normalized; ``remaining`` is NaN at an episode's first plan."""
        return self._mean(state, goal) + self.offset

    def loss(self, batch: Batch) -> Losses:
        """The squared error of the mean; an empty dictionary where there is nothing to learn."""
        mean = self._mean(batch.states[:, 0], batch.goals)
        return {"mean": (mean - batch.returns[:, 0]).square().mean()}

    def _mean(self, state: Tensor, goal: Tensor | None) -> Tensor:
        inputs = state if goal is None else torch.cat([state, goal], dim=-1)
        return self.network(inputs).squeeze(-1)
