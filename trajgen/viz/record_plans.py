"""The plans that a planner makes while it acts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Generator

    from trajgen.core.types import Cond, Plan


@contextmanager
def record_plans(planner: Any, *, decode: bool = False) -> Iterator[list[tuple[Cond, Plan]]]:
    """Records every plan that ``planner`` makes within the block, with its condition.

    Args:
        planner: satisfies `trajgen.core.protocols.Planner`.
        decode: whether trajectories are decoded even where acting does not need them.
    """
    plans: list[tuple[Cond, Plan]] = []
    original, decode_always = planner.plan, decode

    def plan(cond: Cond, rng: Generator | None = None, *, decode: bool = True) -> Plan:
        result: Plan = original(cond, rng, decode=decode or decode_always)
        plans.append((cond, result))
        return result

    planner.plan = plan
    try:
        yield plans
    finally:
        del planner.plan  # the class's method is behind it
