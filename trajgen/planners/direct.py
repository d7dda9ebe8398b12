"""The direct planner: actions are read off the condition, without a plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.registry import register
from trajgen.core.stages import Stage
from trajgen.core.types import Batch, Cond, Losses, Plan
from trajgen.planners.latent import action_noise, inverse_loss, return_target_stage


class PlansNoTrajectory(nn.Module):
    """A planner whose plans have no trajectory: nothing of them can be drawn, or compared with the condition."""

    history = 0

    def refinements(self, plan: Plan, cond: Cond) -> dict[str, Tensor]:
        """None."""
        return {}

    def condition_residuals(self, trajectory: Tensor, cond: Cond) -> dict[str, Tensor]:
        """None."""
        return {}


@register("planner", "direct")
class DirectPlanner(PlansNoTrajectory):
    """Supervised learning of actions from conditions: behaviour cloning, or RvS (arXiv 2112.10751, section 3).

    The latent is the embedded condition. Which of the two it is follows from whether the return-to-go or the goal is
    among the conditioner's fields. Stage ``return_target`` trains the return target, stage ``policy`` all the rest.

    Args:
        conditioner: module from `Cond` to embeddings (B, K or 1, E), of which the first is read.
        action: the action head, which reads the latent (B, 1, E).
        return_target: the target return-to-go when acting.
        latent_length, code_dim: of what the action head reads; 1 and E, unless a tokenizer is in the composition.

    Raises:
        ConfigError: if the action head reads trajectories, or the latent of a tokenizer.
    """

    def __init__(self, conditioner: Any, action: Any, return_target: Any, latent_length: int, code_dim: int) -> None:
        super().__init__()
        if (latent_length, code_dim) != (1, conditioner.width):
            raise ConfigError(
                "Planner 'direct' reads actions off the embedded condition, and tokenizes nothing.",
                got=f"a tokenizer with a latent of {latent_length} vectors of width {code_dim}",
                fix="'~tokenizer' '~schedule' '~view', or recipe=bc",
            )
        if action.reads_trajectory:
            raise ConfigError(
                "Planner 'direct' makes no trajectory that an action could be read off.",
                got=f"{type(action).__name__}, which reads the trajectory",
                fix="action=latent_state '~view', or action=latent '~view'",
            )
        self.conditioner, self.action, self.return_target = conditioner, action, return_target

    def stages(self) -> list[Stage]:
        """The stages of training, in order."""
        policy = [*self.conditioner.parameters(), *self.action.parameters()]
        return [return_target_stage(self.return_target), Stage("policy", self.policy_loss, policy)]

    def policy_loss(self, batch: Batch) -> Losses:
        """The error of the actions of the batch's chunks."""
        total = inverse_loss(self.action, batch, self.embed(batch.condition()))
        return {"total": total, "action": total}

    @torch.no_grad()
    def plan(self, cond: Cond, rng: Generator | None = None, *, decode: bool = True) -> Plan:
        """The embedded conditions (B, 1, E); there are no codes and no trajectory."""
        return replace(self.embed(cond), noise=action_noise(self.action, cond, rng))

    def embed(self, cond: Cond) -> Plan:
        """The plan for the conditions (B, ·), through which gradients flow."""
        latent: Tensor = self.conditioner(cond)[:, :1]
        codes = latent.new_zeros(len(cond), 0, dtype=torch.long)
        return Plan(codes, latent, goal=cond.goal)
