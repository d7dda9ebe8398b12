"""Conditioners: what a plan is conditioned on, and at which scale."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trajgen.core.checks import check_range
from trajgen.core.errors import ConfigError, nearest
from trajgen.core.normalizer import Normalizer
from trajgen.core.registry import register
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import AgentAxis, Cond
from trajgen.nn.goals import RelativeGoal
from trajgen.nn.layers import FourierFeatures, mlp


@register("conditioner", "fields")
class FieldConditioner(nn.Module):
    """Embeds state, return-to-go and goal into one vector per scale (MAGE, section 3).

    A field that is masked (by dropout in training, by guidance, or at a scale that does not see it) is replaced by a
    learnt vector. Of plans at several strides the logarithm of the stride is embedded too, and never masked.

    Args:
        schedule: K scales.
        state_dim: S.
        goal_dim: G; 0 drops the goal from ``fields``.
        strides: of windows and plans.
        agent_axis: of a team. Tokens of an agent see its own state, those of all agents the mean of their embeddings.
        goal_state: the state features that goals specify.
        normalizer: of the data.
        relative_goals: whether direction and distance to the goal from the position are embedded with it.
        fields: any of state, return, goal.
        optional: the fields that dropout and classifier-free guidance mask.
        width: E, the width of the embedding.
        depth: linear layers that mix the fields, which run once per plan.
        dropout: probability that the optional fields of a training window are masked.
        return_scales: the number of coarsest scales that see the return-to-go; null for all.
        fourier_frequencies: Fourier frequencies of each value; 0 for none.

    Raises:
        ConfigError: for an unknown field, or relative goals that specify no state features.
    """

    identity: Tensor
    state_rows: Tensor
    sees_return: Tensor | None

    def __init__(
        self,
        schedule: ScaleSchedule,
        state_dim: int,
        goal_dim: int,
        strides: tuple[int, ...] = (1,),
        agent_axis: AgentAxis | None = None,
        goal_state: tuple[int, ...] = (),
        normalizer: Normalizer | None = None,
        relative_goals: bool = False,
        *,
        fields: tuple[str, ...] = ("state", "return", "goal"),
        optional: tuple[str, ...] = ("return", "goal"),
        width: int = 128,
        depth: int = 2,
        dropout: float = 0.1,
        return_scales: int | None = None,
        fourier_frequencies: int = 4,
    ) -> None:
        super().__init__()
        sizes = {"state": state_dim, "return": 1, "goal": goal_dim}
        for name in (*fields, *optional):
            if name not in sizes:
                raise ConfigError(
                    "A condition is a list of fields.",
                    expected=", ".join(sizes),
                    got=f"'{name}' in conditioner.fields or conditioner.optional",
                    fix=nearest(name, sizes),
                )
        self.fields = tuple(name for name in fields if sizes[name])
        self.optional = frozenset(optional)
        self.learns_unconditional = dropout > 0 and bool(self.optional & {*self.fields})
        self.width, self.dropout = width, dropout
        self.agents = schedule.agents[-1]
        identity = torch.eye(self.agents) if agent_axis is not None and agent_axis.identify else torch.zeros(1, 0)
        self.register_buffer("identity", identity, persistent=False)
        self.register_buffer("state_rows", torch.tensor(schedule.agents_of_tokens) + 1, persistent=False)
        levels = torch.tensor(schedule.levels) if self.agents > 1 else torch.arange(schedule.scales)
        check_range("conditioner.return_scales", return_scales, 0, int(levels.max()) + 1, usual=1)
        sees_return = None if return_scales is None else levels < return_scales
        self.register_buffer("sees_return", sees_return, persistent=False)
        if self.agents > 1:
            sizes["state"] = state_dim // self.agents + identity.shape[1]
        self.embed, self.missing = nn.ModuleDict(), nn.ParameterDict()
        for name in self.fields:
            features = FourierFeatures(sizes[name], fourier_frequencies)
            self.embed[name] = nn.Sequential(features, mlp(features.out_features, width, width))
            self.missing[name] = nn.Parameter(torch.zeros(width))
        self.relative_goal: RelativeGoal | None = None
        if relative_goals and "goal" in self.fields:
            self.relative_goal = RelativeGoal(goal_dim, goal_state, normalizer, state_dim)
            self.relative_embed = mlp(self.relative_goal.out_features, width, width)
        self.stride_embed: nn.Module | None = None
        if len(strides) > 1:
            features = FourierFeatures(1, fourier_frequencies)
            self.stride_embed = nn.Sequential(features, mlp(features.out_features, width, width))
            self.mean_log_stride = sum(map(math.log2, strides)) / len(strides)
        self.mix = mlp(width, width, width, depth=depth)

    def forward(self, cond: Cond) -> Tensor:
        """Embeddings (B, K, E), or (B, 1, E) where all scales see the same; (B, L, E), one a token, of a team."""
        values = {"state": cond.state, "return": cond.returns.unsqueeze(-1), "goal": cond.goal}
        cond_mask, count = cond.cond_mask, len(cond.state)
        if self.training and self.dropout:
            keep = torch.rand(count, device=cond.state.device) >= self.dropout
            cond_mask = keep if cond_mask is None else keep & cond_mask
        total: Tensor | None = None
        for name in self.fields:
            value, missing = values[name], self.missing[name].expand(count, 1, -1)
            embedded = missing
            if value is not None:
                of_tokens = name == "state" and self.agents > 1
                embedded = self._of_agents(value) if of_tokens else self.embed[name](value).unsqueeze(1)
                if name == "goal" and self.relative_goal is not None:
                    embedded = embedded + self.relative_embed(self.relative_goal(value, cond.state)).unsqueeze(1)
            if cond_mask is not None and name in self.optional:
                embedded = torch.where(cond_mask[:, None, None], embedded, missing)
            if name == "return" and self.sees_return is not None:
                embedded = torch.where(self.sees_return[None, :, None], embedded, missing)
            total = embedded if total is None else total + embedded
        if self.stride_embed is not None:
            if cond.stride is None:
                raise ValueError("plans at several strides name theirs: Cond.stride")
            log_stride = cond.stride.unsqueeze(-1).float().log2() - self.mean_log_stride
            embedded = self.stride_embed(log_stride).unsqueeze(1)
            total = embedded if total is None else total + embedded
        return self.mix(cond.state.new_zeros(count, 1, self.width) if total is None else total)

    def _of_agents(self, states: Tensor) -> Tensor:
        """Embeddings (B, L, E) of the states (B, n S) that each token sees."""
        agent_states = states.unflatten(-1, (self.agents, -1))
        identity = self.identity.expand(len(states), self.agents, -1)
        embedded = self.embed["state"](torch.cat([agent_states, identity], dim=-1))
        return torch.cat([embedded.mean(1, keepdim=True), embedded], dim=1)[:, self.state_rows]
