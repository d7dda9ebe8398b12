"""A planner of two planners: the high level plans subgoals, the low level the way to the next one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.protocols import FollowsPlans, Inpaints
from trajgen.core.registry import register
from trajgen.core.stages import Stage
from trajgen.core.types import Batch, Cond, Losses, Plan


@register("planner", "hierarchy")
class HierarchicalPlanner(nn.Module):
    """Two models of the same parts: a subgoal planner conditions a detail planner (HD, arXiv 2401.02644, section 3).

    The high level sees every n-th point of a window; the low level sees n points and, in place of the goal, the state
    that the high level wants to be in after them. Both are latent planners with weights of their own. A plan is the
    chain of the ways from each subgoal to the next, its legs, which are planned side by side.

    Args:
        level: builds the planner of one level.
        horizon: T, a multiple of n.
        stride: M.
        chunk: H, the steps for which the low level's head follows a leg, unless it follows plans to their ends.
        state_dim: S.
        normalizer: of the data.
        segment: n, the points from one subgoal to the next.
        overlap: whether the low level's plan has the subgoal as its last point, as inpainting needs it.
        inverse_weight: λ_inv of the low level.
        condition_weight: λ_cond of both levels.
        end_to_end: whether L_inv reads the latent that the low level's prior generates.
        action_stage: whether the low level's action head has a stage of its own where λ_inv is above 0.

    Raises:
        ConfigError: if the horizon is not a multiple of the segment, no subgoal lies within it, or the critic learns
            from transitions.
    """

    history = 0

    def __init__(
        self,
        level: Callable[..., Any],
        horizon: int,
        stride: int,
        chunk: int,
        state_dim: int,
        normalizer: Normalizer,
        *,
        segment: int = 4,
        overlap: bool = False,
        inverse_weight: float = 1.0,
        condition_weight: float = 0.1,
        end_to_end: bool = True,
        action_stage: bool = False,
    ) -> None:
        super().__init__()
        segments = [n for n in range(2, horizon // 2 + 1) if horizon % n == 0]
        if segment not in segments:
            raise ConfigError(
                "The horizon is at least two segments of at least two points.",
                expected=f"planner.segment one of {segments}" if segments else "data.horizon=4 or more",
                got=f"data.horizon={horizon}, planner.segment={segment}",
                fix=f"planner.segment={min(segments, key=lambda n: abs(n - horizon / 8))}"
                if segments
                else f"data.horizon={8 * max(segment, 2)}",
            )
        self.horizon, self.segment, self.overlap = horizon, segment, overlap
        self.legs = horizon // segment - 1
        self._leg_steps, self._chunk = segment * stride, chunk
        self._reward = [normalizer.reward]  # in a list: a submodule of the normalizer, which the composition adds
        weights = {"inverse_weight": inverse_weight, "condition_weight": condition_weight}
        planner = {"name": "latent", **weights, "end_to_end": end_to_end, "action_stage": action_stage}
        # The high level's plan is not acted on, and it alone takes a target return.
        coarse = horizon // segment
        leg = stride * segment
        self.high = level(planner, horizon=coarse, stride=leg, strides=(leg,), action=nn.Identity())
        self.low = level(
            planner,
            horizon=segment + overlap,
            goal_dim=state_dim,
            goal_state=tuple(range(state_dim)),
            relative_goals=False,  # they are whole states, not positions
            normalizer=normalizer.for_subgoals(),
            return_target=nn.Identity(),
        )
        if self.low.critic is not None and self.low.critic.transitions is not None:
            raise ConfigError(
                "The low level's goals are whole states, for which transitions have no rewards.",
                got=f"{type(self.low.critic).__name__}, which learns from transitions",
                fix="critic=horizon",
            )
        tokenizer = self.low.tokenizer
        if not overlap and isinstance(tokenizer, Inpaints) and tokenizer.inpaints_goal:
            raise ConfigError(
                "A leg that is held at its subgoal has it as its last point.",
                got="planner.overlap=false with tokenizer.inpaint_goal=true",
                fix="planner.overlap=true",
            )
        if "state" not in self.low.view.slices:
            raise ConfigError(
                "Subgoals are states, which the view has to have.",
                got=f"view.fields={list(self.low.view.slices)}",
                fix=f"'view.fields=[{','.join([*self.low.view.slices, 'state'])}]'",
            )

    @property
    def view(self) -> Any:
        """Of the points of a whole plan: the low level's."""
        return self.low.view

    @property
    def action(self) -> ChainedActions:
        """The low level's head, which reads the actions of the leg under way."""
        head = self.low.action
        reach = head.plan_steps if isinstance(head, FollowsPlans) else self._chunk
        reaches_end = reach >= self._leg_steps  # else it would never follow the next leg
        return ChainedActions(
            head,
            self.low.tokenizer.latent_length,
            self.segment + self.overlap,
            self.segment,
            self._leg_steps,
            self.legs * self._leg_steps if reaches_end else reach,
        )

    @property
    def return_target(self) -> Any:
        """The high level's return target."""
        return self.high.return_target

    def stages(self) -> list[Stage]:
        """The stages of the high level, then those of the low level."""
        levels = {"high": (self.high, self._high_batch), "low": (self.low, self._low_batch)}
        return [
            replace(
                stage,
                name=f"{name}_{stage.name}",
                loss=partial(_loss_of_level, stage.loss, level_batch),
                options_of=stage.name,
                prepare=None,  # levels see different windows of a batch
            )
            for name, (planner, level_batch) in levels.items()
            for stage in planner.stages()
        ]

    @torch.no_grad()
    def plan(self, cond: Cond, rng: Generator | None = None, *, decode: bool = True) -> Plan:
        """Plans for the conditions (B, ·); without ``decode``, of the legs that can be followed alone.

        Codes (B, legs · L, ·) and latents (B, legs · N, C) are those of the legs, one after the other.
        """
        points = self.high.plan(cond, rng).trajectory  # (B, T / n, D)
        legs = self.legs if decode else -(-self.action.plan_steps // self._leg_steps)
        subgoals = self._states(points)[:, : legs + 1]
        leg_returns = self.high.view.read(points, "return")
        if leg_returns is None:
            returns = cond.returns.unsqueeze(1).expand(-1, legs)
        else:
            returns = torch.cat([cond.returns.unsqueeze(1), leg_returns[:, 1:legs, 0]], dim=1)
        starts = torch.cat([cond.state.unsqueeze(1), subgoals[:, 1:-1]], dim=1)
        steps = torch.arange(legs, device=starts.device) * self._leg_steps
        of_legs = replace(
            cond.map(lambda values: values.repeat_interleave(legs, 0)),
            state=starts.flatten(0, 1),
            returns=returns.flatten(),
            goal=subgoals[:, 1:].flatten(0, 1),
            time=None if cond.time is None else (cond.time.unsqueeze(1) + steps).flatten(),
        )
        plan = self.low.plan(of_legs, rng, decode=decode)

        def chain(values: Tensor) -> Tensor:
            return values.unflatten(0, (len(cond), legs)).flatten(1, 2)

        return Plan(
            chain(plan.codes),
            chain(plan.latent),
            None if plan.trajectory is None else self._chained(plan.trajectory.unflatten(0, (len(cond), legs))),
            None if plan.noise is None else chain(plan.noise),
            goal=None if plan.goal is None else chain(plan.goal.unsqueeze(1)),
        )

    def _chained(self, points: Tensor) -> Tensor:
        """The points (B, legs, n, D) of legs as one trajectory (B, T, D); beyond the last one nothing is planned."""
        chained = points[:, :, : self.segment].flatten(1, 2)
        rest = points[:, -1, -1:].expand(-1, self.horizon - chained.shape[1], -1)
        return torch.cat([chained, rest], dim=1)

    @torch.no_grad()
    def refinements(self, plan: Plan, cond: Cond) -> dict[str, Tensor]:
        """The subgoals' points with straight lines between them, and the plan in detail."""
        if plan.trajectory is None:
            return {}
        points = plan.trajectory[:, :: self.segment]
        lines = F.interpolate(points.transpose(1, 2), size=self.horizon, mode="linear", align_corners=True)
        return {f"{points.shape[1]} subgoals": lines.transpose(1, 2), "in detail": plan.trajectory}

    def condition_residuals(self, trajectory: Tensor, cond: Cond) -> dict[str, Tensor]:
        """How far trajectories (B, T, D) start from the condition, per field: state (B, S), return (B, 1)."""
        residuals: dict[str, Tensor] = self.low.condition_residuals(trajectory, cond)
        return residuals

    def _states(self, points: Tensor) -> Tensor:
        states: Tensor = self.high.view.read(points, "state")
        return states

    def _high_batch(self, batch: Batch) -> Batch:
        """The batch as the high level sees it: every n-th point, with all actions up to the next."""
        n, legs, reward = self.segment, self.horizon // self.segment, self._reward[0]
        return replace(
            batch,
            states=batch.states[:, ::n],
            actions=batch.actions.unflatten(1, (legs, n)).flatten(2, 3),
            rewards=reward(reward.inverse(batch.rewards).unflatten(1, (legs, n)).sum(2)),
            returns=batch.returns[:, ::n],
            mask=batch.mask[:, ::n],
            terminals=None if batch.terminals is None else batch.terminals[:, ::n],
        )

    def _low_batch(self, batch: Batch) -> Batch:
        """The batch as the low level sees it: the first points, and in place of the goal the state after them."""
        points = slice(self.segment + self.overlap)
        return replace(
            batch,
            states=batch.states[:, points],
            actions=batch.actions[:, points],
            rewards=batch.rewards[:, points],
            returns=batch.returns[:, points],
            mask=batch.mask[:, points],
            terminals=None if batch.terminals is None else batch.terminals[:, points],
            goals=batch.states[:, self.segment],
        )


def _loss_of_level(loss: Callable[[Batch], Losses], level_batch: Callable[[Batch], Batch], batch: Batch) -> Losses:
    return loss(batch.transform(level_batch))


class ChainedActions(nn.Module):
    """Actions of the leg that is under way, in a chain of them.

    Args:
        head: of one leg.
        latent_length: N of a leg.
        points: of a leg, with the subgoal where legs overlap.
        segment: n, points from one leg's start to the next one's.
        leg_steps: environment steps of a leg.
        plan_steps: environment steps for which the chain can be followed.
    """

    def __init__(
        self, head: Any, latent_length: int, points: int, segment: int, leg_steps: int, plan_steps: int
    ) -> None:
        super().__init__()
        self.head, self.reads_trajectory = head, head.reads_trajectory
        self.latent_length, self.points, self.segment = latent_length, points, segment
        self.leg_steps, self.plan_steps = leg_steps, plan_steps

    def forward(self, plan: Plan, states: Tensor, offsets: Tensor) -> Tensor:
        """Actions (B, H, A) in the ``states`` (B, H, S) observed ``offsets`` (B, H) steps into the plan."""
        legs = plan.latent.shape[1] // self.latent_length
        leg = torch.div(offsets, self.leg_steps, rounding_mode="floor").clamp(max=legs - 1)
        rows = torch.arange(len(states), device=states.device).unsqueeze(1)

        def of_leg(values: Tensor) -> Tensor:
            """Values (B, legs · n, ·) of all legs to those (B · H, n, ·) of the leg at each step."""
            return values.unflatten(1, (legs, -1))[rows, leg].flatten(0, 1)

        trajectory = plan.trajectory
        if trajectory is not None:
            points = leg.unsqueeze(-1) * self.segment + torch.arange(self.points, device=leg.device)
            trajectory = trajectory[rows.unsqueeze(-1), points].flatten(0, 1)
        noise = None if plan.noise is None else of_leg(plan.noise)
        goal = None if plan.goal is None else of_leg(plan.goal).squeeze(1)
        of_legs = Plan(of_leg(plan.codes), of_leg(plan.latent), trajectory, noise, goal=goal)
        within = (offsets - leg * self.leg_steps).flatten().unsqueeze(1)
        actions: Tensor = self.head(of_legs, states.flatten(0, 1).unsqueeze(1), within)
        return actions.squeeze(1).unflatten(0, offsets.shape)
