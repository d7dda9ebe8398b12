"""The choice among plans: their scores by a critic, and the best of several."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trajgen.core.critics import Critic, JudgesWholePlans
from trajgen.core.errors import ConfigError
from trajgen.core.types import Cond
from trajgen.nn.layers import columns


def gradient(value: Callable[[Tensor, Cond], Tensor], x: Tensor, cond: Cond) -> Tensor:
    """The gradient (B, L, C) of values (B,) by the codes x (B, L, C).

    Works wherever it is called from: what was made in inference mode, as plans are, has to be copied out of it.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone().requires_grad_()
        (uphill,) = torch.autograd.grad(value(x, cond.map(torch.clone)).sum(), x)
    return uphill


def final_points(tokenizer: Any, k: int, horizon: int) -> int:
    """How many of a plan's T points are final once scales 0 to k are drawn."""
    return math.floor(tokenizer.layout.decoded_fraction(k) * horizon + 1e-6)


def present_point(cond: Cond) -> int:
    """The number of the present point in windows that continue a history; 0 in others."""
    return 0 if cond.past is None else cond.past.mask.shape[1] - 1


def check_judges_partial_plans(critic: Critic, tokenizer: Any, k: int, horizon: int) -> None:
    """Raises a `ConfigError` if plans are compared after scale k, not yet decided, by a critic of whole plans alone."""
    if isinstance(critic, JudgesWholePlans) and final_points(tokenizer, k, horizon) < horizon:
        raise ConfigError(
            "This critic judges whole plans, and here the first points of plans are compared.",
            got=f"{type(critic).__name__} with a sampler that compares partial plans",
            fix="critic=value, or sampler=best_of_n sampler.compare_after=null",
        )


class PlanScore:
    """What a critic says of decoded plans, which begin in the present state, whatever their first point is.

    Args:
        critic: of plans.
        view: features of their points.

    Raises:
        ConfigError: if the view has no field that the critic reads.
    """

    def __init__(self, critic: Critic, view: Any) -> None:
        if not set(critic.reads) & set(view.slices):
            fields = ",".join(view.slices)
            fix = f"view.fields=[{critic.reads[0]},{fields}] or sampler=temperature"
            raise ConfigError(
                "A choice among plans needs a view with a field that the critic reads.",
                expected=f"{' or '.join(critic.reads)} in view.fields, for {type(critic).__name__}",
                got=f"view.fields=[{fields}]",
                fix="critic=value, or " + fix if "state" in view.slices else fix,
            )
        self.critic, self.view = critic, view

    def __call__(self, trajectory: Tensor, cond: Cond, points: int | None = None) -> Tensor:
        """The scores (B,) of trajectories (B, T, D); the higher, the better.

        Args:
            trajectory: decoded plans.
            cond: B conditions.
            points: how many of the first points are decided, at least 1; None for all.
        """
        planned = trajectory[:, present_point(cond) : points]
        fields = {name: self.view.read(planned, name) for name in self.view.slices}
        # A plan that is decoded as if it began nearer to the goal scores more, but cannot be followed.
        if "state" in fields:
            fields["state"] = torch.cat([cond.state.unsqueeze(1), fields["state"][:, 1:]], dim=1)
        if "position" in fields:
            position = columns(cond.state, self.view.position_indices).unsqueeze(1)
            fields["position"] = torch.cat([position, fields["position"][:, 1:]], dim=1)
        scores: Tensor = self.critic(fields, cond)
        return scores
