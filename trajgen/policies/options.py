"""How plans are followed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from trajgen.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PolicyOptions:
    """How plans are followed."""

    replan_interval: int | Literal["plan"] = 4
    """Environment steps between plans; "plan" follows each one to its end. At most data.chunk, or the plan's length for
    action heads that can follow it so far."""
    seed: int = 0
    """Of the sampler's random numbers."""
    weights: Literal["last", "best"] = "last"
    """Those at the end of the training, or those with the lowest loss on held-out episodes (data.val_fraction)."""
    backend: Literal["eager", "onnx", "cuda_graph"] = "eager"
    """How plans are computed: as written, by ONNX Runtime (CPU), or as a CUDA graph. The plans are the same."""

    def steps(self, planner: Any, chunk: int) -> int:
        """How many environment steps a plan is followed.

        Args:
            planner: satisfies `trajgen.core.protocols.Planner`.
            chunk: for how many steps its action head was trained.

        Raises:
            ConfigError: if that is longer than the action head can follow a plan.
        """
        if planner.history and self.replan_interval != 1:
            raise ConfigError(
                "A planner that continues a history plans at every step.",
                got=f"policy.replan_interval={self.replan_interval}",
                fix="policy.replan_interval=1",
            )
        from trajgen.core.protocols import FollowsPlans

        follows = isinstance(planner.action, FollowsPlans)
        longest = planner.action.plan_steps if follows else chunk
        interval = longest if self.replan_interval == "plan" else self.replan_interval
        if not 1 <= interval <= longest:
            limit = (
                f"{longest}, the length of a plan" if follows else f"data.chunk={chunk}, as the action head was trained"
            )
            raise ConfigError(
                f"policy.replan_interval is from 1 to {limit}.",
                got=f"policy.replan_interval={interval}",
                fix=f"policy.replan_interval={max(1, min(interval, longest))}"
                + ("" if follows else f" or data.chunk={interval}"),
            )
        return interval
