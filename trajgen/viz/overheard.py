"""What a planner plans while it is at work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Generator

    from trajgen.core.types import Cond, Plan


@contextmanager
def overheard(planner: Any, *, decoded: bool = False) -> Iterator[list[tuple[Cond, Plan]]]:
    """Keeps every plan that ``planner`` makes within the block, with what it was made for.

    Args:
        planner: satisfies `trajgen.core.protocols.Planner`.
        decoded: whether trajectories are decoded even where acting could do without them.
    """
    heard: list[tuple[Cond, Plan]] = []
    original = planner.plan

    def plan(cond: Cond, rng: Generator | None = None, *, decode: bool = True) -> Plan:
        made: Plan = original(cond, rng, decode=decode or decoded)
        heard.append((cond, made))
        return made

    planner.plan = plan
    try:
        yield heard
    finally:
        del planner.plan  # the class's own is behind it
