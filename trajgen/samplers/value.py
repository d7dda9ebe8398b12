"""What a plan is worth: the measure by which a search prefers one to another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer


class PlanValue:
    """The discounted return that decoded points promise, in the data's own units.

    With rewards in the view, their discounted sum, which the return-to-go of the last point continues where the view
    has it ("reward-to-go", arXiv 2106.02039, section 2.3; arXiv 2208.10291, section 3.3). That return counts its own
    point's reward, which is therefore left out of the sum. With the return-to-go alone, that of the first point.

    Args:
        view: features of a window.
        normalizer: of the data.
        discount: per environment step.
        stride: environment steps between points; a point's reward is their sum.

    Raises:
        ConfigError: if the view tells neither rewards nor returns.
    """

    def __init__(self, view: Any, normalizer: Normalizer, discount: float, stride: int) -> None:
        if not {"reward", "return"} & set(view.slices):
            fields = ",".join(view.slices)
            raise ConfigError(
                "A search for plans of high return needs points that tell it.",
                expected="return, or reward and return, in view.fields",
                got=f"view.fields=[{fields}]",
                fix=f"view.fields=[return,{fields}] or sampler=temperature",
            )
        self.view, self.normalizer = view, normalizer
        self.discount = discount**stride

    def __call__(self, trajectory: Tensor, points: int | None = None) -> Tensor:
        """What trajectories (B, T, D) are worth, (B,).

        Args:
            trajectory: decoded plans.
            points: how many of the first points are decided, at least 1; None for all.
        """
        trajectory = trajectory[:, :points]
        rewards, returns = self.view.read(trajectory, "reward"), self.view.read(trajectory, "return")
        if returns is not None:
            returns = self.normalizer.returns.inverse(returns).squeeze(-1)
        if rewards is None:
            return returns[:, 0]
        rewards = self.normalizer.reward.inverse(rewards).squeeze(-1)
        if returns is not None:
            rewards = torch.cat([rewards[:, :-1], returns[:, -1:]], dim=1)
        return rewards @ (self.discount ** torch.arange(rewards.shape[1], device=rewards.device, dtype=rewards.dtype))
