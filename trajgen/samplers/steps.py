"""A prior's steps, between which plans are selected or multiplied."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from trajgen.core.protocols import Autoregressive
from trajgen.core.types import Cond


@runtime_checkable
class Selectable(Protocol):
    """The state of a stepwise prediction (what ``prior.start`` returns) whose rows can be selected.

    A prior whose state lacks it can be searched as well: its steps are then repeated after every selection.
    """

    def rows(self, index: Tensor) -> Selectable:
        """The state of the rows ``index`` (R,), in that order; a row may be selected more than once, or not at all."""
        ...


class PriorSteps:
    """The steps of a prior whose rows are selected between them.

    Args:
        prior: that predicts one scale after the other.
        cond: B conditions, the first rows.
    """

    def __init__(self, prior: Autoregressive, cond: Cond) -> None:
        self.prior, self.cond, self.state = prior, cond, prior.start(cond)
        self.inputs: list[Tensor | None] = []

    def __call__(self, x: Tensor | None, k: int, selection: Tensor | None) -> Tensor:
        """The prediction (R, l_k, V or C) of scale k, of the rows ``selection`` (R,); None for the same as before."""
        if selection is not None:
            self._select(selection)
        if not isinstance(self.state, Selectable):
            self.inputs.append(x)
        return self.prior.step(x, k, self.state)

    def _select(self, index: Tensor) -> None:
        if isinstance(self.state, Selectable):
            self.state = self.state.rows(index)
            return
        self.cond = self.cond.map(lambda values: values[index])
        self.state = self.prior.start(self.cond)
        self.inputs = [x if x is None else x[index] for x in self.inputs]
        for k, x in enumerate(self.inputs):
            self.prior.step(x, k, self.state)
