"""Misfit: how badly a plan that has been followed fits the present; where it is high, all scales are drawn anew."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trajgen.core.errors import ConfigError
from trajgen.core.planning import Misfit
from trajgen.core.types import Cond, FollowedPlan, Plan
from trajgen.nn.layers import columns


def check_misfit(misfit: Misfit, view: Any, critic: Any) -> None:
    """Raises a `ConfigError` if plans with these parts have nothing that the misfit is measured by."""
    if misfit == "state" and not {"state", "position"} & {*view.slices}:
        raise ConfigError(
            "policy.revise_misfit=state needs a view with the state or the position.",
            got=f"policy.revise_misfit=state with view.fields={list(view.slices)}",
            fix="policy.revise_misfit=likelihood",
        )
    if misfit == "critic" and critic is None:
        raise ConfigError(
            "policy.revise_misfit=critic needs a sampler that chooses among plans by a critic.",
            got="policy.revise_misfit=critic without a critic",
            fix="sampler=best_of_n critic=length, recipe=mage_critic, or policy.revise_misfit=likelihood",
        )


def state_misfit(view: Any, trajectory: Tensor, followed: FollowedPlan, cond: Cond, stride: int) -> Tensor:
    """How far the way since a plan was drawn leads from the way that it planned (B,), in standard deviations.

    Ways are compared, not states: what a plan's first point misses of the state in which it was drawn (L_cond) says
    nothing about the time since. The root mean square over the features of the state, or of the position.

    Args:
        view: features of the points, with the state or the position.
        trajectory: of the plans (B, T, D), decoded with the present return.
        followed: the plans.
        cond: the present condition.
        stride: environment steps between points, between which a plan is interpolated.
    """
    field = "state" if "state" in view.slices else "position"
    points = view.read(trajectory, field)
    last = points.shape[1] - 1
    point = (followed.offset / stride).clamp(max=last).view(-1, 1, 1)
    before = point.floor().long()
    after = (before + 1).clamp(max=last)
    start, low, high = (points.take_along_dim(index, dim=1).squeeze(1) for index in (0 * before, before, after))
    planned = low.lerp(high, (point - before).squeeze(1)) - start
    moved = cond.state - followed.state
    if field == "position":
        moved = columns(moved, view.position_indices)
    return (moved - planned).square().mean(-1).sqrt()


def critic_misfit(followed: FollowedPlan, plan: Plan) -> Tensor:
    """How much less the critic says of a revised plan than it said of the plan when it was drawn (B,)."""
    if followed.worth is None or plan.worth is None:
        raise ValueError("plans that no critic has judged have no worth")
    return followed.worth - plan.worth
