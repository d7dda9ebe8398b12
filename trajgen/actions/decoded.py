"""Actions from the decoded trajectory: the ones it holds, or those that lead from the state to its next point."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.registry import register
from trajgen.core.types import Plan
from trajgen.nn.layers import mlp


@register("action", "plan")
class PlannedActions(nn.Module):
    """The actions that the plan itself holds, for plans of actions (Trajectory Transformer, TAP, CARP).

    Args:
        view: of the window; it has the action.
        action_dim: A.
        horizon: T.
        stride: M.
        chunk: H, for how many steps a plan can be followed.

    Raises:
        ConfigError: if the view has no action, or the plan is shorter than the chunk.
    """

    reads_trajectory = True

    def __init__(self, view: Any, action_dim: int, horizon: int, stride: int, chunk: int) -> None:
        super().__init__()
        if "action" not in view.slices:
            raise ConfigError(
                "Only a plan of actions holds actions.",
                expected="'action' among view.fields",
                got=f"view.fields={list(view.slices)}",
                fix=f"'view.fields={_listed([*view.slices, 'action'])}', or action=latent_state",
            )
        if horizon * stride < chunk:
            raise ConfigError(
                "A plan holds the actions of as many steps as it is followed for.",
                expected=f"data.chunk of at most {horizon * stride} (horizon times stride)",
                got=f"data.chunk={chunk}",
                fix=f"data.chunk={horizon * stride}",
            )
        self.view, self.action_dim = view, action_dim

    def forward(self, plan: Plan, states: Tensor, offsets: Tensor) -> Tensor:
        """Actions (B, H, A) at ``offsets`` (B, H) steps into the plan, open loop; the states are not looked at."""
        every = self.view.read(plan.trajectory, "action").flatten(1).unflatten(1, (-1, self.action_dim))  # (B, T M, A)
        index = offsets.clamp(max=every.shape[1] - 1).unsqueeze(-1).expand(-1, -1, self.action_dim)
        return every.gather(1, index)


@register("action", "state")
class StateInverseDynamics(nn.Module):
    """Actions that lead from the state to the plan's next point (Decision Diffuser, arXiv 2211.15657, section 3.3).

    Args:
        view: of the window; it has the state.
        state_dim: S.
        action_dim: A.
        horizon: T.
        stride: M.
        chunk: H, for how many steps a plan can be followed.
        width: hidden width.
        depth: linear layers after the first.

    Raises:
        ConfigError: if the view has no state, or the plan is shorter than the chunk.
    """

    reads_trajectory = True

    def __init__(
        self,
        view: Any,
        state_dim: int,
        action_dim: int,
        horizon: int,
        stride: int,
        chunk: int,
        *,
        width: int = 256,
        depth: int = 2,
    ) -> None:
        super().__init__()
        if "state" not in view.slices:
            raise ConfigError(
                "Inverse dynamics between states needs a plan of states.",
                expected="'state' among view.fields",
                got=f"view.fields={list(view.slices)}",
                fix=f"'view.fields={_listed([*view.slices, 'state'])}', or action=plan",
            )
        if (horizon - 1) * stride < chunk:
            raise ConfigError(
                "A plan of states is followed no further than to its last point.",
                expected=f"data.chunk of at most {max((horizon - 1) * stride, 1)}",
                got=f"data.chunk={chunk}, data.horizon={horizon}, data.stride={stride}",
                fix=f"data.horizon={-(-chunk // stride) + 1}",
            )
        self.view, self.stride, self.chunk = view, stride, chunk
        self.from_state = nn.Linear(state_dim, width)
        self.from_next = nn.Linear(state_dim, width)
        self.from_offset = nn.Embedding(stride, width)
        self.network = nn.Sequential(nn.SiLU(), mlp(width, width, action_dim, depth=depth))

    def forward(self, plan: Plan, states: Tensor, offsets: Tensor) -> Tensor:
        """Actions (B, H, A) in the ``states`` (B, H, S) met ``offsets`` (B, H) steps into the plan."""
        points = self.view.read(plan.trajectory, "state")  # (B, T, S)
        at = offsets.clamp(max=self.chunk - 1)
        following = (torch.div(at, self.stride, rounding_mode="floor") + 1).unsqueeze(-1)
        ahead = points.gather(1, following.expand(-1, -1, points.shape[-1]))
        # Where the next point lies as seen from here says more than where it lies.
        known = self.from_state(states) + self.from_next(ahead - states) + self.from_offset(at % self.stride)
        return self.network(known)


def _listed(names: list[str]) -> str:
    return "[" + ",".join(names) + "]"
