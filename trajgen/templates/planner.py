"""A planner of one's own: stages of training, and the making of a plan."""

from typing import Any

import torch
from torch import Generator, Tensor, nn

from trajgen import register
from trajgen.core.stages import Stage
from trajgen.core.types import Batch, Cond, Losses, Plan


@register("planner", "mine")
class MinePlanner(nn.Module):
    """Reads actions off the embedded condition, with noise added to it in training.

    Args:
        conditioner: module from `Cond` to embeddings (B, K or 1, E).
        action: the action head.
        return_target: the return-to-go that plans are conditioned on.
        noise: on the embedding.
    """

    history = 0  # past points that a plan continues

    # Before the *: the parts, by name; a recipe has those that are used. After it: options.
    def __init__(self, conditioner: nn.Module, action: Any, return_target: Any, *, noise: float = 0.1) -> None:
        super().__init__()
        self.conditioner, self.action, self.return_target, self.noise = conditioner, action, return_target, noise

    def stages(self) -> list[Stage]:
        """What is trained, one after the other: a loss of a batch, and the weights it trains."""
        learners = [self.conditioner, self.action, self.return_target]
        return [Stage("policy", self.policy_loss, [p for part in learners for p in part.parameters()])]

    def policy_loss(self, batch: Batch) -> Losses:
        """A batch to its losses; the engine minimizes ``total``."""
        latent = self.conditioner(batch.condition())[:, :1]
        plan = Plan(latent.new_zeros(len(batch), 0), latent + self.noise * torch.randn_like(latent))
        offsets = torch.arange(batch.chunk_states.shape[1], device=latent.device).expand(len(batch), -1)
        actions = self.action(plan, batch.chunk_states, offsets)
        error = (actions - batch.chunk_actions).square().mean(-1)  # (B, H)
        losses = {"action": batch.mean(error, lambda batch: batch.chunk_mask)}
        losses |= self.return_target.loss(batch)
        return {"total": torch.stack(list(losses.values())).sum(), **losses}

    @torch.no_grad()
    def plan(self, cond: Cond, rng: Generator | None = None, *, decode: bool = True) -> Plan:
        """Plans for the conditions (B, ·): codes, a latent (B, N, C), and a trajectory (B, T, D) or None."""
        return Plan(cond.state.new_zeros(len(cond), 0, dtype=torch.long), self.conditioner(cond)[:, :1])

    def refinements(self, plan: Plan, cond: Cond) -> dict[str, Tensor]:
        """How the plan grew, for pictures: trajectories by name."""
        return {}

    def condition_residuals(self, trajectory: Tensor, cond: Cond) -> dict[str, Tensor]:
        """How far trajectories start from the condition: state (B, S), return (B, 1)."""
        return {}
