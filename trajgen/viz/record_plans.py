"""The plans that a planner makes while it acts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from trajgen.core.planning import RevisesPlans

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from trajgen.core.types import Cond, FollowedPlan, Plan


class RecordedPlan(NamedTuple):
    """Plans that were made at once, with their conditions."""

    cond: Cond
    plan: Plan
    first: int = 0
    """Number of the first scale that was drawn; above 0 where plans were revised."""


@contextmanager
def record_plans(planner: Any, *, decode: bool = False) -> Iterator[list[RecordedPlan]]:
    """Records every plan that ``planner`` makes or revises within the block.

    Args:
        planner: satisfies `trajgen.core.planning.Planner`.
        decode: whether trajectories are decoded even where acting does not need them.
    """
    plans: list[RecordedPlan] = []
    original, decode_always = planner.plan, decode
    revise_original: Any = planner.revise if isinstance(planner, RevisesPlans) else None

    def plan(cond: Cond, rng: Generator | None = None, *, decode: bool = True) -> Plan:
        result: Plan = original(cond, rng, decode=decode or decode_always)
        plans.append(RecordedPlan(cond, result))
        return result

    def revise(
        followed: FollowedPlan, cond: Cond, first: int, rng: Generator | None = None, *, decode: bool = True, **how: Any
    ) -> tuple[Plan, Tensor]:
        result, misfit = revise_original(followed, cond, first, rng, decode=decode or decode_always, **how)
        plans.append(RecordedPlan(cond, result, first))
        return result, misfit

    planner.plan = plan
    if revise_original is not None:
        planner.revise = revise
    try:
        yield plans
    finally:
        del planner.plan  # the class's method is behind it
        if revise_original is not None:
            del planner.revise
