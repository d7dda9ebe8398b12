"""The axis of agents: each agent of a team as a row of the batch, so that one network serves all of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from trajgen.core.protocols import FollowsPlans, HasActionLoss, SamplesActions
from trajgen.core.types import AgentAxis, Cond, Plan
from trajgen.nn.layers import resampling


def fold(values: Tensor, agents: int) -> Tensor:
    """The numbers (B, n m, …) of n agents, one agent's after the other's, as rows (B n, m, …)."""
    return values.unflatten(1, (agents, -1)).flatten(0, 1)


def unfold(rows: Tensor, agents: int) -> Tensor:
    """The inverse of `fold`."""
    return rows.unflatten(0, (-1, agents)).flatten(1, 2)


def repeat(values: Tensor, agents: int) -> Tensor:
    """What agents share (B, …), in the row of each (B n, …)."""
    return values.unsqueeze(1).expand(-1, agents, *values.shape[1:]).flatten(0, 1)


def resampling_grid(source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """The matrix (target, source) that pools or interpolates a grid of agents and time along both axes."""
    agents, time = (resampling(*lengths) for lengths in zip(source, target, strict=True))
    return torch.einsum("ij,kl->ikjl", agents, time).flatten(2).flatten(0, 1)


class AgentSplit(nn.Module):
    """Shares out the features of a team's windows among its agents, and puts them together again.

    Args:
        axis: which features each of n agents has.
        features: D, of the team.
    """

    columns: Tensor
    merge: Tensor

    def __init__(self, axis: AgentAxis, features: int) -> None:
        super().__init__()
        columns = torch.tensor(axis.columns)
        has = F.one_hot(columns, features).float().flatten(0, 1)  # (n D′, D)
        self.agents, self.features = columns.shape
        self.register_buffer("columns", columns.flatten(), persistent=False)
        self.register_buffer("merge", has / has.sum(0), persistent=False)

    def split(self, x: Tensor) -> Tensor:
        """The windows (B n, T, D′) of agents, from a team's (B, T, D)."""
        return x.index_select(-1, self.columns).unflatten(-1, (self.agents, -1)).movedim(-2, 1).flatten(0, 1)

    def join(self, rows: Tensor) -> Tensor:
        """The windows (B, T, D) of a team, from its agents' (B n, T, D′); of what they share, the mean."""
        return rows.unflatten(0, (-1, self.agents)).movedim(1, 2).flatten(2) @ self.merge.to(rows.dtype)


class _PerAgent(nn.Module):
    """One component for all agents: it reads each agent's part of the latent, which also says who it is.

    Args:
        part: the component, of an agent's dimensions.
        axis: of the agents.
        features: D, of the team.
    """

    def __init__(self, part: Any, axis: AgentAxis, features: int) -> None:
        super().__init__()
        self.part, self.agents = part, axis.agents
        self.features_of_agents = AgentSplit(axis, features)
        identity = torch.eye(axis.agents) if axis.identify else torch.zeros(axis.agents, 0)
        self.register_buffer("identity", identity, persistent=False)

    def _latents(self, latent: Tensor) -> Tensor:
        """Latents (B n, N / n, C + n) of agents, from a team's (B, N, C)."""
        identity: Tensor = self.get_buffer("identity")
        latents = latent.unflatten(1, (self.agents, -1))
        who = identity[:, None].to(latent.dtype).expand(*latents.shape[:3], -1)
        return torch.cat([latents, who], dim=-1).flatten(0, 1)


class AgentsDecoder(_PerAgent):
    """A decoder (`trajgen.core.protocols.Decoder`) of an agent's latent, for the latents of teams."""

    def base_parameters(self) -> list[nn.Parameter]:
        """Parameters that are trained with the tokenizer."""
        return list(self.part.base_parameters())

    def adapter_parameters(self) -> list[nn.Parameter]:
        """Parameters that are trained with the prior."""
        return list(self.part.adapter_parameters())

    def base(self, latent: Tensor, cond: Cond) -> Tensor:
        """Latent (B, N, C) to trajectory (B, T, D), without the adapters."""
        return self.features_of_agents.join(self.part.base(self._latents(latent), self._conds(cond)))

    def forward(self, latent: Tensor, cond: Cond) -> Tensor:
        """Latent (B, N, C) to trajectory (B, T, D)."""
        return self.features_of_agents.join(self.part(self._latents(latent), self._conds(cond)))

    def _conds(self, cond: Cond) -> Cond:
        """The conditions of agents, each with its own state."""
        shared = replace(cond, past=None).map(lambda values: repeat(values, self.agents))
        return replace(shared, state=fold(cond.state, self.agents))


class AgentsAction(_PerAgent):
    """An action head (`trajgen.core.protocols.ActionHead`) that reads an agent's plan and own state, for teams."""

    def __init__(self, part: Any, axis: AgentAxis, features: int) -> None:
        super().__init__(part, axis, features)
        if isinstance(part, FollowsPlans):  # no property: protocols see one also where the head has no such steps
            self.plan_steps = part.plan_steps

    @property
    def reads_trajectory(self) -> bool:
        """Whether it needs the decoded trajectory."""
        return bool(self.part.reads_trajectory)

    def noise(self, plans: int, rng: Generator | None, device: torch.device) -> Tensor | None:
        """The noise (B, H, A) of the actions of B plans, of a head that samples them."""
        noise = self.part.noise(plans * self.agents, rng, device) if isinstance(self.part, SamplesActions) else None
        return None if noise is None else self._team(noise)

    def forward(self, plan: Plan, states: Tensor, offsets: Tensor) -> Tensor:
        """Actions (B, H, A) in the states (B, H, S) met ``offsets`` (B, H) steps into the plan."""
        return self._team(self.part(self._plans(plan), self._rows(states), repeat(offsets, self.agents)))

    def loss(self, plan: Plan, states: Tensor, offsets: Tensor, actions: Tensor) -> Tensor:
        """The head's own loss (B, H), or the squared error, of actions (B, H, A): the mean over agents."""
        plans, agent_states, steps = self._plans(plan), self._rows(states), repeat(offsets, self.agents)
        if isinstance(self.part, HasActionLoss):
            errors = self.part.loss(plans, agent_states, steps, self._rows(actions))
        else:
            errors = (self.part(plans, agent_states, steps) - self._rows(actions)).square().mean(-1)
        return errors.unflatten(0, (-1, self.agents)).mean(1)

    def _plans(self, plan: Plan) -> Plan:
        trajectory = None if plan.trajectory is None else self.features_of_agents.split(plan.trajectory)
        noise = None if plan.noise is None else self._rows(plan.noise)
        stride = None if plan.stride is None else repeat(plan.stride, self.agents)
        goal = None if plan.goal is None else repeat(plan.goal, self.agents)
        return Plan(repeat(plan.codes, self.agents), self._latents(plan.latent), trajectory, noise, stride, goal)

    def _rows(self, values: Tensor) -> Tensor:
        """States or actions (B n, H, ·) of agents, from a team's (B, H, n ·)."""
        return values.unflatten(-1, (self.agents, -1)).movedim(-2, 1).flatten(0, 1)

    def _team(self, rows: Tensor) -> Tensor:
        """The inverse of `_rows`."""
        return rows.unflatten(0, (-1, self.agents)).movedim(1, 2).flatten(2)
