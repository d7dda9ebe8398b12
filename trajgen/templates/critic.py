"""A critic of one's own: what a plan is worth, where several are chosen among."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trajgen import register
from trajgen.core.types import Batch, Cond, GoalSampling, Losses


@register("critic", "mine")
class MineCritic(nn.Module):
    """The mean return of the data from the states of a plan, less the length of its steps.

    Args:
        state_dim: S.
        goal_dim: G; 0 without goals.
        step_weight: what the length of a step counts against a plan.
        width: of the hidden layer.
    """

    reads = ("state",)  # the fields of a plan's points that it reads
    transitions: GoalSampling | None = None  # the goals of `Batch.transitions`, where it learns from single steps

    # Before the *: what the composition gives, by name. After it: options, with types and literal defaults.
    def __init__(self, state_dim: int, goal_dim: int, *, step_weight: float = 0.1, width: int = 128) -> None:
        super().__init__()
        self.step_weight = step_weight
        self.network = nn.Sequential(nn.Linear(state_dim + goal_dim, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, points: Mapping[str, Tensor], cond: Cond) -> Tensor:
        """Scores (B,) of plans with states (B, T, S); of partial plans the first points alone are given."""
        states = points["state"]
        lengths = (states[:, 1:] - states[:, :-1]).norm(dim=-1).sum(1)
        return self._mean(states, cond.goal).mean(1) - self.step_weight * lengths

    def loss(self, batch: Batch) -> Losses:
        """The squared error of the mean; an empty dictionary where there is nothing to learn."""
        errors = (self._mean(batch.states, batch.goals) - batch.returns).square()
        return {"mean": batch.mean(errors, lambda each: each.mask)}

    def after_step(self) -> None:
        """Called after each optimizer step: target networks."""

    def _mean(self, states: Tensor, goal: Tensor | None) -> Tensor:
        goals = [] if goal is None else [goal.unsqueeze(1).expand(-1, states.shape[1], -1)]
        return self.network(torch.cat([states, *goals], dim=-1)).squeeze(-1)
