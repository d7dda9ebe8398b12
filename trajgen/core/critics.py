"""What critics promise: components that tell what a plan or a state is worth.

Shapes are those of `trajgen.core.types`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from trajgen.core.types import Batch, Cond, GoalSampling, Losses


class Critic(Protocol):
    """Says what plans are worth; trained in a stage of its own where it has something to learn."""

    reads: tuple[str, ...]
    """The fields of a plan's points that it reads: the first of them that the view has."""
    transitions: GoalSampling | None
    """The goals of the transitions that it learns from; None if it learns from windows, or nothing."""

    def __call__(self, points: Mapping[str, Tensor], cond: Cond) -> Tensor:
        """Scores (B,) of plans, the higher the better.

        Args:
            points: the fields (B, T, ·) of their points, normalized; of partial plans the first points alone.
            cond: B conditions.
        """
        ...

    def loss(self, batch: Batch) -> Losses:
        """Losses of a learnt critic; empty for one that learns nothing."""
        ...

    def after_step(self) -> None:
        """Called after each optimizer step of the critic's stage: target networks."""
        ...


@runtime_checkable
class ContrastsWindows(Critic, Protocol):
    """A critic whose loss compares the windows of a batch, so that it is not a mean over them."""

    contrasts_windows: bool
    """Always true."""


@runtime_checkable
class JudgesWholePlans(Critic, Protocol):
    """A critic that has learnt from whole windows alone, so that the first points of a plan tell it nothing."""

    whole_plans: bool
    """Always true."""


@runtime_checkable
class HasAdvantage(Critic, Protocol):
    """A critic that compares actions."""

    def advantage(self, batch: Batch) -> Tensor:
        """How much more the chunks (B,) of a batch with transitions are worth than usual, without gradients."""
        ...


@runtime_checkable
class HasStateValue(Critic, Protocol):
    """A critic of states."""

    def value(self, states: Tensor, goals: Tensor | None) -> Tensor:
        """V (…) of normalized states (…, S) and goals (…, G), in the data's units."""
        ...
