"""One planning step, as every policy takes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Generator, Tensor

from trajgen.core.protocols import Planner
from trajgen.core.types import Cond, Plan

PlanFn = Callable[[Cond, Generator | None], tuple[Tensor, Plan]]
"""From conditions whose ``returns`` are what remains, and a generator, to the target returns (B,) and plans."""


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
