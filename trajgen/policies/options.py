"""How plans are followed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trajgen.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PolicyOptions:
    """How plans are followed."""

    replan_interval: int = 4
    """Environment steps between plans; at most data.chunk."""
    seed: int = 0
    """Of the sampler's random numbers."""
    weights: Literal["last", "best"] = "last"
    """Those at the end of the training, or those with the lowest loss on held-out episodes (data.val_fraction)."""
    backend: Literal["eager", "onnx", "cuda_graph"] = "eager"
    """How plans are computed: as written, by ONNX Runtime (CPU), or as a CUDA graph. The plans are the same."""

    def check(self, chunk: int, history: int = 0) -> None:
        """Raises a `ConfigError` if a plan would be followed for too long.

        Args:
            chunk: for how many steps the action head was trained.
            history: how many points the planner continues, if it does.
        """
        if history and self.replan_interval != 1:
            raise ConfigError(
                "A planner that continues a history plans at every step.",
                got=f"policy.replan_interval={self.replan_interval}",
                fix="policy.replan_interval=1",
            )
        if not 1 <= self.replan_interval <= chunk:
            raise ConfigError(
                f"policy.replan_interval is from 1 to data.chunk={chunk}, as the action head was trained.",
                got=f"policy.replan_interval={self.replan_interval}",
                fix=f"policy.replan_interval={max(1, min(self.replan_interval, chunk))} "
                f"or data.chunk={self.replan_interval}",
            )
