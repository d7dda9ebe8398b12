"""A view of one's own: which features of a window the model sees."""

import torch
from torch import Tensor

from trajgen import register
from trajgen.core.types import Batch


@register("view", "mine")
class MineView:
    """Return-to-go and state of each point, perhaps with its actions.

    Args:
        state_dim: S.
        action_dim: A.
        stride: M, environment steps between points.
        actions: whether the actions are among the features.
    """

    # Before the *: what the composition gives, by name. After it: options, with types and literal defaults.
    def __init__(self, state_dim: int, action_dim: int, stride: int, *, actions: bool = False) -> None:
        widths = {"return": 1, "state": state_dim, "action": stride * action_dim if actions else 0}
        self.slices: dict[str, slice] = {}  # where each field lies among the features
        self.features = 0
        for name in (name for name, width in widths.items() if width):
            self.slices[name] = slice(self.features, self.features + widths[name])
            self.features += widths[name]

    def __call__(self, batch: Batch) -> Tensor:
        """Features (B, T, D) of a batch."""
        fields = {"return": batch.returns.unsqueeze(-1), "state": batch.states, "action": batch.actions.flatten(2)}
        return torch.cat([fields[name] for name in self.slices], dim=-1)

    def read(self, x: Tensor, field: str) -> Tensor | None:
        """One field of features (..., D), or None if the view does not have it."""
        return x[..., self.slices[field]] if field in self.slices else None
