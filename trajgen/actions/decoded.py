"""Actions from the decoded trajectory: its own, or those that lead from the state to its next point."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.registry import register
from trajgen.core.types import Plan
from trajgen.nn.layers import PlanStrides, mlp


@register("action", "plan")
class PlannedActions(nn.Module):
    """The actions of the plan itself, for plans with actions (Trajectory Transformer, TAP, CARP).

    Args:
        view: of the window, with the action.
        action_dim: A.
        horizon: T.
        stride: M.
        chunk: H, the steps for which a plan can be followed.

    Raises:
        ConfigError: if the view has no action, or the plan is shorter than the chunk.
    """

    reads_trajectory = True

    def __init__(self, view: Any, action_dim: int, horizon: int, stride: int, chunk: int) -> None:
        super().__init__()
        if "action" not in view.slices:
            raise ConfigError(
                "action=plan needs a view with the action.",
                got=f"view.fields={list(view.slices)}",
                fix=f"'view.fields=[{','.join([*view.slices, 'action'])}]', or action=latent_state",
            )
        if horizon * stride < chunk:
            fix = f"data.chunk={horizon * stride}, horizon times stride"
            raise ConfigError("The chunk is longer than a plan.", got=f"data.chunk={chunk}", fix=fix)
        self.view, self.action_dim = view, action_dim

    def forward(self, plan: Plan, states: Tensor, offsets: Tensor) -> Tensor:
        """Actions (B, H, A) at ``offsets`` (B, H) steps into the plan, open loop; the states are ignored."""
        points = self.view.read(plan.trajectory, "action")  # (B, T, M A)
        actions = points.flatten(1).unflatten(1, (-1, self.action_dim))
        index = offsets.clamp(max=actions.shape[1] - 1).unsqueeze(-1).expand(-1, -1, self.action_dim)
        return actions.gather(1, index)


@register("action", "state")
class StateInverseDynamics(nn.Module):
    """Actions that lead from the state to the plan's next point (Decision Diffuser, arXiv 2211.15657, section 3.1).

    With a chunk as long as the stride it knows the way between any two points, and so follows a plan to its end, whose
    last point is the next one from there on.

    Args:
        view: of the window, with the state.
        state_dim: S.
        action_dim: A.
        horizon: T.
        strides: M, one or several.
        chunk: H, the steps at which it is trained.
        width: units of each hidden layer.
        depth: linear layers after the first.

    Raises:
        ConfigError: if the view has no state, or the plan is shorter than the chunk.
    """

    reads_trajectory = True
    _rows_before: Tensor

    def __init__(
        self,
        view: Any,
        state_dim: int,
        action_dim: int,
        horizon: int,
        strides: tuple[int, ...],
        chunk: int,
        *,
        width: int = 256,
        depth: int = 2,
    ) -> None:
        super().__init__()
        if "state" not in view.slices:
            raise ConfigError(
                "action=state needs a view with the state.",
                got=f"view.fields={list(view.slices)}",
                fix=f"'view.fields=[{','.join([*view.slices, 'state'])}]', or action=plan",
            )
        stride = strides[0]
        if (horizon - 1) * stride < chunk:
            raise ConfigError(
                "The chunk is longer than a plan, which ends at its last point.",
                expected=f"data.chunk of at most {max((horizon - 1) * stride, 1)}",
                got=f"data.chunk={chunk}, data.horizon={horizon}, data.stride={stride}",
                fix=f"data.horizon={-(-chunk // stride) + 1}",
            )
        self.view, self.strides = view, PlanStrides(strides)
        self.plan_steps = (horizon - 1) * stride if chunk >= max(strides) else chunk
        self.state_proj = nn.Linear(state_dim, width)
        self.next_proj = nn.Linear(state_dim, width)
        self.offset_embed = nn.Embedding(sum(strides), width)
        self.register_buffer("_rows_before", torch.tensor(strides).cumsum(0) - torch.tensor(strides), persistent=False)
        self.network = nn.Sequential(nn.SiLU(), mlp(width, width, action_dim, depth=depth))

    def forward(self, plan: Plan, states: Tensor, offsets: Tensor) -> Tensor:
        """Actions (B, H, A) in the ``states`` (B, H, S) observed ``offsets`` (B, H) steps into the plan."""
        points = self.view.read(plan.trajectory, "state")  # (B, T, S)
        stride, number = self.strides.of(plan.stride), self.strides.number(plan.stride)
        index = torch.div(offsets, stride, rounding_mode="floor") + 1
        index = index.clamp(max=points.shape[1] - 1).unsqueeze(-1)
        next_point = points.gather(1, index.expand(-1, -1, points.shape[-1]))
        # The displacement to the next point is more informative than its position.
        hidden = self.state_proj(states) + self.next_proj(next_point - states)
        return self.network(hidden + self.offset_embed(self._rows_before[number] + offsets % stride))
