"""One planning step, and one revision of plans, as every policy takes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Generator, Tensor

from trajgen.core.protocols import Planner, RevisesPlans
from trajgen.core.types import Codes, Cond, Plan

PlanFn = Callable[[Cond, Generator | None], tuple[Tensor, Plan]]
"""From conditions whose ``returns`` are what remains, and a generator, to the target returns (B,) and plans."""
ReviseFn = Callable[[Cond, Codes, Generator | None], tuple[Tensor, Plan, Tensor]]
"""The same for the codes of plans that are revised; gives their surprise (B,) too."""


def plan_step(planner: Planner, cond: Cond, rng: Generator | None = None) -> tuple[Tensor, Plan]:
    """Asks the return target once, and plans for its return.

    Args:
        planner: in evaluation mode.
        cond: B conditions, where ``returns`` (B,) is what remains of the first target after the rewards received,
            normalized; NaN at an episode's first plan.
        rng: of the sampler.

    Returns:
        The normalized target returns (B,), and the plans.
    """
    returns = planner.return_target(cond.state, cond.goal, cond.returns)
    return returns, planner.plan(replace(cond, returns=returns), rng, decode=False)


def revision_step(
    planner: RevisesPlans, first: int, cond: Cond, codes: Codes, rng: Generator | None = None
) -> tuple[Tensor, Plan, Tensor]:
    """Asks the return target once, and draws the scales of plans from number ``first`` on anew for its return.

    Args:
        planner: in evaluation mode.
        first: number of a scale, from 1 on; those before it stay.
        cond: B present conditions, as of `plan_step`.
        codes: of the plans (B, L).
        rng: of the sampler.

    Returns:
        The normalized target returns (B,), the plans, and the surprise (B,) of the codes that stay.
    """
    returns = planner.return_target(cond.state, cond.goal, cond.returns)
    plan, surprise = planner.revise(codes, replace(cond, returns=returns), first, rng, decode=False)
    return returns, plan, surprise
