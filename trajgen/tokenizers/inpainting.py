"""The values of a trajectory that a condition fixes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.types import Batch, Cond


class Inpainting:
    """The values of a trajectory that follow from a condition: fields of its first point, and the goal at its last.

    Args:
        slices: of the view, field to slice of D.
        fields: of the first point, taken from the condition.
        normalizer: of the data.
        goal_state: indices of the state features that goals specify.
        goal_dim: G.
        goal: whether the last point is at the goal, where there are goals; "at_rest" if the other features of the
            state, velocities, are 0 there, in the data's units.

    Raises:
        ConfigError: if a field is not in both the view and the condition, no goal can be inpainted, or a state at rest
            has more other features than velocities.
    """

    def __init__(
        self,
        slices: Mapping[str, slice],
        fields: tuple[str, ...],
        normalizer: Normalizer,
        goal_state: tuple[int, ...],
        goal_dim: int,
        goal: bool | Literal["at_rest"],
    ) -> None:
        possible = [name for name in ("state", "return") if name in slices]
        for name in fields:
            if name not in possible:
                raise ConfigError(
                    "tokenizer.inpaint lists fields that are in the view and in the condition.",
                    expected=f"any of {', '.join(possible)}" if possible else "none: the view has no state or return",
                    got=f"'{name}' in tokenizer.inpaint, with view.fields={list(slices)}",
                    fix=f"tokenizer.inpaint=[{','.join(possible[:1])}], or a view with it",
                )
        goal = goal if goal_dim else False
        if goal and not (goal_dim == len(goal_state) and "state" in slices):
            raise ConfigError(
                "tokenizer.inpaint_goal needs goals that specify features of the state.",
                expected="a state in the view, and data.goal_state",
                got=f"view.fields={list(slices)}, {goal_dim} goal features for the state features {list(goal_state)}",
                fix="tokenizer.inpaint_goal=false",
            )
        self.fields = {name: slices[name] for name in fields}
        self.normalizer, self.goal, self.goal_state = normalizer, bool(goal), list(goal_state)
        self.state = slices.get("state", slice(0, 0))
        self.past_fields = {name: slices[name] for name in ("state", "action", "reward") if name in slices}
        others = [i for i in range(self.state.stop - self.state.start) if i not in goal_state]
        if goal == "at_rest" and len(others) > goal_dim:
            raise ConfigError(
                "At rest, a velocity for each feature of the goal is 0; what else a state has is not known.",
                got=f"tokenizer.inpaint_goal=at_rest, a state of {goal_dim} goal features and {len(others)} others",
                fix="tokenizer.inpaint_goal=true",
            )
        self.rest_state = others if goal == "at_rest" else []

    def __bool__(self) -> bool:
        return bool(self.fields or self.goal)

    def mask(self, horizon: int, features: int) -> Tensor:
        """The mask (1, T, D) of known values."""
        mask = torch.zeros(1, horizon, features, dtype=torch.bool)
        for field in self.fields.values():
            mask[:, 0, field] = True
        if self.goal:
            mask[:, -1, [self.state.start + i for i in (*self.goal_state, *self.rest_state)]] = True
        return mask

    def __call__(self, cond: Cond, horizon: int, features: int) -> Tensor:
        """A trajectory (B, T, D) of the known values, and zeros elsewhere."""
        x = cond.state.new_zeros(len(cond), horizon, features)
        first = {"state": cond.state, "return": cond.returns.unsqueeze(-1)}
        for name, field in self.fields.items():
            x[:, 0, field] = first[name]
        if cond.past is not None and "state" in self.fields:
            for field, points in self.of_past(cond.past):
                x[:, : points.shape[1], field] = points
        if self.goal and cond.goal is not None:
            values = dict(zip(self.goal_state, self.normalizer.goal.inverse(cond.goal).unbind(-1), strict=True))
            values |= dict.fromkeys(self.rest_state, x.new_zeros(()))
            state = self.normalizer.state
            for index, value in values.items():
                x[:, -1, self.state.start + index] = (value - state.mean[index]) / state.scale[index]
        return x

    def of_past(self, past: Batch) -> list[tuple[slice, Tensor]]:
        """What is known of past points, the last of which is the present one: slices of D, and values (B, n, ·)."""
        values = {
            "state": past.states,
            "action": past.actions[:, :-1].flatten(2),
            "reward": past.rewards[:, :-1].unsqueeze(-1),
        }
        return [(field, values[name]) for name, field in self.past_fields.items()]
