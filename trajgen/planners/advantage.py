"""The direct planner whose data are weighed by what was gained: a critic, then a policy that is extracted from it."""

from __future__ import annotations

from typing import Any

from trajgen.core.checks import check_range
from trajgen.core.critics import HasAdvantage
from trajgen.core.errors import ConfigError
from trajgen.core.registry import register
from trajgen.core.stages import Stage
from trajgen.core.types import Batch, GoalSampling, Losses
from trajgen.planners.direct import DirectPlanner
from trajgen.planners.latent import critic_stage, inverse_loss


@register("planner", "advantage")
class AdvantagePlanner(DirectPlanner):
    """Advantage-weighted regression: errors weigh exp(β A), so that better actions are learnt (arXiv 1910.00177).

    With critic=value it is IQL (arXiv 2110.06169, equation 7): stage ``critic`` trains the critic, stage ``policy``
    conditioner and action head. A is the critic's advantage of a chunk for the window's own goal.

    Args:
        conditioner: module from `Cond` to embeddings (B, K or 1, E), of which the first is read.
        action: the action head, which reads the latent (B, 1, E).
        critic: that compares actions.
        return_target: the target return-to-go when acting.
        latent_length, code_dim: of what the action head reads; 1 and E, unless a tokenizer is in the composition.
        beta: β, per unit of the data's rewards; 0 is behaviour cloning.
        max_weight: above which weights are cut.

    Raises:
        ConfigError: if the critic does not compare actions, an option is out of range, or the action head reads
            trajectories or the latent of a tokenizer.
    """

    def __init__(
        self,
        conditioner: Any,
        action: Any,
        critic: Any,
        return_target: Any,
        latent_length: int,
        code_dim: int,
        *,
        beta: float = 3.0,
        max_weight: float = 100.0,
    ) -> None:
        super().__init__(conditioner, action, return_target, latent_length, code_dim)
        check_range("planner.beta", beta, 0, usual=3)
        check_range("planner.max_weight", max_weight, 1, usual=100)
        if not isinstance(critic, HasAdvantage):
            raise ConfigError(
                "Planner 'advantage' weighs actions by what they gain, and needs a critic with an advantage.",
                got=f"{type(critic).__name__}, which judges plans alone",
                fix="critic=value",
            )
        self.critic: Any = critic
        self.beta, self.max_weight = beta, max_weight

    def stages(self) -> list[Stage]:
        """The critic before the policy that is extracted from it."""
        return_target, policy = super().stages()
        policy.frozen, policy.transitions = [self.critic], GoalSampling(goals=0)
        return [return_target, critic_stage(self.critic), policy]

    def policy_loss(self, batch: Batch) -> Losses:
        """The weighted errors of the chunks' actions, and the mean weight."""
        weight = (self.beta * self.critic.advantage(batch)).exp().clamp(max=self.max_weight)
        total = inverse_loss(self.action, batch, self.embed(batch.condition()), weight)
        return {"total": total, "action": total, "weight": weight.mean()}
