"""How plans are followed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trajgen.core.checks import check_range
from trajgen.core.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from trajgen.core.types import Space


@dataclass(frozen=True, kw_only=True)
class PolicyOptions:
    """How plans are followed."""

    replan_interval: int | Literal["plan"] = 4
    """Environment steps between plans, or "plan" for its length. At most data.chunk, or the plan's length for action
    heads that can follow it; unbounded with ``policy.revise``."""
    replan_on_new_goal: bool = True
    """Whether a goal that changes is planned for at once."""
    revise: int | None = None
    """The scale, 2 to K, from which on plans are drawn anew in between, in the current state; null for none."""
    revise_interval: int = 1
    """Environment steps between revisions; fewer than between plans, and at most those for which a plan can be
    followed."""
    revise_misfit: Literal["likelihood", "state", "critic"] = "likelihood"
    """Measure of how badly a plan fits the present: by the likelihood of its coarse codes, by the states since it was
    made, or by a critic."""
    revise_threshold: float | None = None
    """Misfit above which the next step makes a whole plan; null for none."""
    seed: int = 0
    """Of the sampler's random numbers."""
    weights: Literal["last", "best"] = "last"
    """Those at the end, or those with the lowest held-out loss (data.val_fraction)."""
    backend: Literal["eager", "onnx", "cuda_graph"] = "eager"
    """Eager, ONNX Runtime (CPU) or CUDA graphs; the plans are the same."""

    def __post_init__(self) -> None:
        check_range("policy.seed", self.seed, 0, 2**63 - 1, usual=0)

    def steps(self, planner: Any, chunk: int) -> int:
        """How many environment steps a plan is followed.

        Args:
            planner: satisfies `trajgen.core.planning.Planner`.
            chunk: for how many steps its action head was trained.

        Raises:
            ConfigError: if that is longer than the action head can follow a plan, or no plan would be revised.
        """
        if self.revise is not None:
            self._check_revision(planner, self.revise - 1)
        from trajgen.core.protocols import FollowsPlans, PlansOneAction

        if isinstance(planner, PlansOneAction) and self.replan_interval != 1:
            raise ConfigError(
                f"{type(planner).__name__} predicts one action at a time.",
                got=f"policy.replan_interval={self.replan_interval}",
                fix="policy.replan_interval=1",
            )

        follows = isinstance(planner.action, FollowsPlans) and planner.action.plan_steps > chunk
        longest = planner.action.plan_steps if follows else chunk
        interval = longest if self.replan_interval == "plan" else self.replan_interval
        if self.revise is not None and interval >= 1:
            if not 1 <= self.revise_interval <= longest:
                raise ConfigError(
                    f"policy.revise_interval is from 1 to {longest}, the steps for which a plan can be followed.",
                    got=f"policy.revise_interval={self.revise_interval}",
                    fix=f"policy.revise_interval={max(1, min(self.revise_interval, longest))}",
                )
            if self.revise_interval >= interval:
                raise ConfigError(
                    "Plans are revised before the next plan is made.",
                    got=f"policy.revise_interval={self.revise_interval} with policy.replan_interval={interval}",
                    fix=f"policy.replan_interval={2 * self.revise_interval}",
                )
            return interval
        if not 1 <= interval <= longest:
            limit = (
                f"{longest}, the length of a plan" if follows else f"data.chunk={chunk}, as the action head was trained"
            )
            raise ConfigError(
                f"policy.replan_interval is from 1 to {limit}.",
                got=f"policy.replan_interval={interval}",
                fix=f"policy.replan_interval={max(1, min(interval, longest))}"
                + ("" if follows else f" or train with data.chunk={interval}"),
            )
        return interval

    def check_backend(self, planner: Any, space: Space, device: torch.device | None) -> None:
        """Raises a `ConfigError` if the backend cannot run the plans of a planner; see `trajgen.export.backends`."""
        from trajgen.export.backends import check_backend

        check_backend(self.backend, planner, space, device)

    def _check_revision(self, planner: Any, first: int) -> None:
        from trajgen.core.planning import RevisesPlans

        if planner.history or not isinstance(planner, RevisesPlans):
            raise ConfigError(
                "policy.revise needs a planner that generates codes scale by scale, without a history.",
                got=f"policy.revise={self.revise} with {type(planner).__name__}",
                fix="policy.revise=null",
            )
        planner.check_revision(first, self.revise_misfit)
        if self.revise_threshold is not None and not math.isfinite(self.revise_threshold):
            raise ConfigError(
                "policy.revise_threshold is a finite number, or null.",
                got=f"policy.revise_threshold={self.revise_threshold}",
                fix="policy.revise_threshold=null",
            )
