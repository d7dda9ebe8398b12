"""Views: which features of a window the model sees, and in which order."""

from __future__ import annotations

import torch
from torch import Tensor

from trajgen.core.errors import ConfigError, nearest
from trajgen.core.registry import register
from trajgen.core.renamed import new_value
from trajgen.core.types import AgentAxis, Batch
from trajgen.nn.layers import columns


@register("view", "fields")
class FieldView:
    """Concatenates fields of a window into features: MAGE models (return, state), section 3 and its ablation.

    Args:
        state_dim: S.
        action_dim: A.
        strides: M, the environment steps whose actions a point holds; of several, points hold no actions.
        goal_state: indices of the state features that goals specify.
        fields: any of return, state, action, reward, terminal (1 where the task is over, else 0), and position: the
            state features that goals specify. Planning joint angles far ahead takes codes that the path needs.

    Raises:
        ConfigError: for a field that windows do not have or that is listed twice, or without fields.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        strides: tuple[int, ...],
        goal_state: tuple[int, ...] = (),
        *,
        fields: tuple[str, ...] = ("return", "state"),
    ) -> None:
        if len(strides) > 1 and "action" in fields:
            raise ConfigError(
                "A view with the action needs a single stride: each point holds the actions up to the next one.",
                got=f"view.fields={list(fields)} with data.stride={list(strides)}",
                fix=f"data.stride={strides[0]}, or a view without actions",
            )
        widths = {"return": 1, "state": state_dim, "action": strides[0] * action_dim, "reward": 1, "terminal": 1}
        if goal_state:
            widths["position"] = len(goal_state)
        self.position_indices = list(goal_state)
        for name in fields or ("",):
            if name not in widths or fields.count(name) > 1:
                new = new_value("view.fields", name)
                raise ConfigError(
                    "A view is a list of fields of a window, each of them once.",
                    expected=", ".join(widths),
                    got=f"view.fields={list(fields)}",
                    fix=nearest(new if new in widths else name, widths)
                    if name not in widths
                    else f"view.fields=[{','.join(dict.fromkeys(fields))}]",
                )
        self.slices: dict[str, slice] = {}
        self.features = 0
        for name in fields:
            self.slices[name] = slice(self.features, self.features + widths[name])
            self.features += widths[name]

    def __call__(self, batch: Batch) -> Tensor:
        """Features (B, T, D) of a batch."""
        parts = {
            "return": batch.returns.unsqueeze(-1),
            "state": batch.states,
            "action": batch.actions.flatten(2),
            "reward": batch.rewards.unsqueeze(-1),
        }
        if "position" in self.slices:
            parts["position"] = columns(batch.states, self.position_indices)
        if "terminal" in self.slices:
            is_over = torch.zeros_like(batch.mask) if batch.terminals is None else batch.terminals
            parts["terminal"] = is_over.unsqueeze(-1).to(batch.rewards.dtype)
        return torch.cat([parts[name] for name in self.slices], dim=-1)

    def read(self, x: Tensor, field: str) -> Tensor | None:
        """The features (..., n) of one field of x (..., D); None if the view does not have it."""
        return x[..., self.slices[field]] if field in self.slices else None


@register("view", "agents")
class AgentsView(FieldView):
    """The same fields of a team, whose agents are told apart: states and actions are each agent's own, others shared.

    Tokenizer, decoder and action head then serve one agent at a time, all with the same weights (parameter sharing with
    agent indication, arXiv 2005.13625).

    Args:
        state_dim: S, of the team.
        action_dim: A, of the team.
        strides: M, one or several.
        agents: n, of the data.
        goal_state: indices of the state features that goals specify.
        fields: any of return, state, action, reward, terminal and position.
        identify: whether networks are told which agent they serve; without it agents are interchangeable, and permuted
            agents have permuted plans.

    Raises:
        ConfigError: for a field that windows do not have, or data of a single agent.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        strides: tuple[int, ...],
        agents: int,
        goal_state: tuple[int, ...] = (),
        *,
        fields: tuple[str, ...] = ("return", "state"),
        identify: bool = True,
    ) -> None:
        super().__init__(state_dim, action_dim, strides, goal_state, fields=fields)
        if agents < 2:
            raise ConfigError(
                "view=agents tells agents apart, and the data have one.",
                fix="view=fields",
            )
        rows = {"state": 1, "action": strides[0]}
        columns: list[list[int]] = [[] for _ in range(agents)]
        for name, span in self.slices.items():
            numbers = torch.arange(span.start, span.stop)
            parts = numbers.expand(agents, -1)
            if name in rows:  # in each row of the field the agents' parts lie side by side
                parts = numbers.view(rows[name], agents, -1).movedim(1, 0).flatten(1)
            for of_agent, part in zip(columns, parts.tolist(), strict=True):
                of_agent += part
        self.agent_axis = AgentAxis(tuple(map(tuple, columns)), identify)
        self.of_agent = FieldView(state_dim // agents, action_dim // agents, strides, goal_state, fields=fields)
