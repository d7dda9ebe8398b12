"""Plans whose points lie several environment steps apart: how many, and how components tell them apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class PlanStrides(nn.Module):
    """The strides of plans; with a single one, which plans then do not name, nothing is looked up.

    Args:
        strides: environment steps between points, in increasing order.
    """

    _table: Tensor

    def __init__(self, strides: Sequence[int]) -> None:
        super().__init__()
        self.steps = tuple(strides)
        self.register_buffer("_table", torch.tensor(self.steps), persistent=False)

    def of(self, stride: Tensor | None) -> Tensor | int:
        """The environment steps between points, (B, 1), or a number where there is a single stride."""
        return self.steps[0] if len(self.steps) == 1 else self._named(stride).unsqueeze(1)

    def number(self, stride: Tensor | None) -> Tensor | int:
        """Which of the strides plans have, (B, 1), or 0 where there is a single one."""
        if len(self.steps) == 1:
            return 0
        return (self._named(stride).unsqueeze(1) == self._table).int().argmax(1, keepdim=True)

    def mean(self, values: Tensor, stride: Tensor | None) -> Tensor:
        """The means (B,) of values (B, T) at points over the time that plans of all strides cover.

        A plan of a larger stride looks further ahead: its mean over all points would be no measure of the way there.
        """
        if len(self.steps) == 1:
            return values.mean(1)
        points = torch.arange(values.shape[1], device=values.device)
        is_common = points * self._named(stride).unsqueeze(1) <= (len(points) - 1) * self.steps[0]  # (B, T)
        return (values * is_common).sum(1) / is_common.sum(1)

    def _named(self, stride: Tensor | None) -> Tensor:
        if stride is None:
            raise ValueError(f"plans at the strides {list(self.steps)} name theirs: Cond.stride and Plan.stride")
        return stride
