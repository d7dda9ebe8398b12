"""A planner of two policies over one value: one proposes the next subgoal, the other acts towards it (HIQL)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from trajgen.core.checks import check_range
from trajgen.core.critics import HasStateValue
from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.registry import register
from trajgen.core.stages import Stage
from trajgen.core.types import Batch, Cond, GoalSampling, Losses, Plan
from trajgen.nn.layers import columns
from trajgen.planners.direct import PlansNoTrajectory
from trajgen.planners.latent import action_noise, critic_stage, inverse_loss, return_target_stage


@register("planner", "subgoals")
class SubgoalPlanner(PlansNoTrajectory):
    """Two policies extracted from one value V(s, g) by advantage-weighted regression (HIQL, arXiv 2307.11949).

    The high level predicts the state some points ahead, weighed by how much nearer to the goal it is (section 4.2,
    equation 6). The low level predicts the actions that lead there, weighed by how much nearer to that state they come
    (equation 7). To the low level a goal is a whole state; V judges it by the features that goals specify. Stage
    ``critic`` trains V, stages ``high`` and ``low`` the policies.

    Args:
        direct_level: builds the policy of one level.
        critic: with a value of states for goals.
        return_target: the target return-to-go when acting.
        state_dim: S.
        goal_state: indices of the state features that goals specify.
        horizon: T.
        normalizer: of the data.
        subgoal: points from a state to its subgoal.
        beta: β of both levels, per unit of the data's rewards; 0 clones them.
        max_weight: above which weights are cut.

    Raises:
        ConfigError: if there are no goals that specify state features, the critic has no value of states, or an option
            is out of range.
    """

    def __init__(
        self,
        direct_level: Callable[..., Any],
        critic: Any,
        return_target: Any,
        state_dim: int,
        goal_state: tuple[int, ...],
        horizon: int,
        normalizer: Normalizer,
        *,
        subgoal: int = 3,
        beta: float = 1.0,
        max_weight: float = 100.0,
    ) -> None:
        super().__init__()
        if not goal_state:
            raise ConfigError(
                "Planner 'subgoals' needs goals that specify features of the state, by which subgoals are judged.",
                got="data.goal_state=[]",
                fix="planner=advantage, which has one level",
            )
        if not isinstance(critic, HasStateValue):
            raise ConfigError(
                "Planner 'subgoals' needs a critic with a value of states for goals.",
                got=f"{type(critic).__name__}, which judges plans alone",
                fix="critic=value",
            )
        if horizon < 2:
            fix = f"data.horizon={max(subgoal, 1) + 1}"
            raise ConfigError("A subgoal is a later point of the window.", got="data.horizon=1", fix=fix)
        check_range("planner.subgoal", subgoal, 1, horizon - 1, usual=min(3, horizon - 1))
        check_range("planner.beta", beta, 0, usual=1)
        check_range("planner.max_weight", max_weight, 1, usual=100)
        self.critic: Any = critic
        self.return_target = return_target
        self.indices, self.subgoal_points, self.beta, self.max_weight = list(goal_state), subgoal, beta, max_weight
        self._normalizer = [normalizer]  # in a list: a submodule that the composition adds
        shared = {"return_target": nn.Identity()}
        self.high = direct_level(action_dim=state_dim, chunk=1, **shared)
        self.low = direct_level(
            goal_dim=state_dim,
            goal_state=tuple(range(state_dim)),
            relative_goals=False,  # they are whole states, not positions
            **shared,
        )

    @property
    def action(self) -> Any:
        """The head that reads actions: the low level's."""
        return self.low.action

    def stages(self) -> list[Stage]:
        """The value before the policies that are extracted from it."""
        stages = [return_target_stage(self.return_target), critic_stage(self.critic)]
        for name, level, loss in (("high", self.high, self.high_loss), ("low", self.low, self.low_loss)):
            weights = [*level.conditioner.parameters(), *level.action.parameters()]
            own_goal = GoalSampling(goals=0)
            stages.append(Stage(name, loss, weights, frozen=[self.critic], options_of="policy", transitions=own_goal))
        return stages

    def high_loss(self, batch: Batch) -> Losses:
        """The weighted squared errors of the predicted displacements to the subgoals."""
        cond, subgoals = batch.condition(), batch.states[:, self.subgoal_points]
        predicted = self._displacement(cond)
        errors = (predicted - (subgoals - cond.state)).square().mean(-1)
        with torch.no_grad():
            advantage = self._value(subgoals, cond.goal) - self._value(cond.state, cond.goal)
        weight = self._weight(advantage)
        total = batch.mean((errors * weight).unsqueeze(1), lambda batch: batch.mask[:, :1])
        return {"total": total, "weight": weight.mean()}

    def low_loss(self, batch: Batch) -> Losses:
        """The weighted errors of the actions that lead to the subgoals."""
        subgoals = batch.states[:, self.subgoal_points]
        transitions = batch.transitions
        if transitions is None:
            raise ValueError("the low level learns from batches with transitions")
        with torch.no_grad():
            goals = self._goal_of(subgoals)
            last = (batch.chunk_mask.sum(1) - 1).clamp(min=0)  # real steps go on after the arrival, a window does not
            reached = transitions.next_states[torch.arange(len(last), device=last.device), last]
            advantage = self._value(reached, goals) - self._value(batch.states[:, 0], goals)
        weight = self._weight(advantage)
        plan = self.low.embed(replace(batch.condition(), goal=subgoals))
        return {"total": inverse_loss(self.action, batch, plan, weight), "weight": weight.mean()}

    @torch.no_grad()
    def plan(self, cond: Cond, rng: Generator | None = None, *, decode: bool = True) -> Plan:
        """The embedded states and subgoals (B, 1, E), of which actions are read; there is no trajectory."""
        embedded: Plan = self.low.embed(replace(cond, goal=cond.state + self._displacement(cond)))
        return replace(embedded, noise=action_noise(self.action, cond, rng))

    def _displacement(self, cond: Cond) -> Tensor:
        """What the high level adds to the state (B, S) to reach its subgoal."""
        offsets = torch.zeros(len(cond), 1, dtype=torch.long, device=cond.state.device)
        displacement: Tensor = self.high.action(self.high.embed(cond), cond.state.unsqueeze(1), offsets)
        return displacement.squeeze(1)

    def _goal_of(self, states: Tensor) -> Tensor:
        """Goals (B, G) that whole states (B, S) meet."""
        normalizer = self._normalizer[0]
        return normalizer.goal(columns(normalizer.state.inverse(states), self.indices))

    def _value(self, states: Tensor, goals: Tensor | None) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            value: Tensor = self.critic.value(states, goals)
            return value

    def _weight(self, advantage: Tensor) -> Tensor:
        """exp(β A) of advantages (B,), bounded."""
        return (self.beta * advantage).exp().clamp(max=self.max_weight)
