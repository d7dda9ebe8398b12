"""The continuing planner: plans begin with what an episode has just passed through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from trajgen.core.checks import check_range
from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.protocols import FollowsPlans, InpaintsPast
from trajgen.core.registry import register
from trajgen.core.stages import Stage
from trajgen.core.types import Batch, Cond, Plan
from trajgen.planners.latent import LatentPlanner


@register("planner", "continuing")
class ContinuingPlanner(LatentPlanner):
    """A latent planner that continues a history: of states (Decision Diffuser), or of transitions (TT).

    Follows algorithm 1 of arXiv 2211.15657, and the code of Trajectory Transformer (arXiv 2106.02039), whose attention
    leaves out the returns of past points.

    The first P points of a window are past: the last of them is the current state, with the target return, and from
    which actions are read. Their states, actions and rewards are known codes, as far as the view has them.

    An episode may have had fewer points. Continuous codes of missing points are unknown, and are drawn. Token ids are
    predicted from all tokens before them, so that missing points are filled with the first state, and with actions and
    rewards of zero. Past returns are not known when acting, and are zero. In training a random number of points is
    missing.

    Args:
        view: features of a window, with the state.
        tokenizer: whose codes are the trajectory, with ``inpaint=[state]``.
        prior, decoder, sampler, return_target: the components.
        action: a head that reads the trajectory.
        vocabulary: V, or None for continuous codes.
        normalizer: of the data.
        horizon: T, at least the history, and longer where the action head leads to the next point.
        stride: M.
        chunk: H, no longer than what lies ahead in a window.
        past: P; with 1 a plan begins with the current state alone, as of planner=latent.
        inverse_weight: of the action head's loss beside that of the prior; 0 trains it in a stage of its own.

    Raises:
        ConfigError: for a history that is too short or too long, a chunk that is too long, or parts that cannot
            continue one.
    """

    def __init__(
        self,
        view: Any,
        tokenizer: Any,
        prior: Any,
        decoder: Any,
        action: Any,
        sampler: Any,
        return_target: Any,
        vocabulary: int | None,
        normalizer: Normalizer,
        horizon: int,
        stride: int,
        chunk: int,
        *,
        past: int = 4,
        inverse_weight: float = 1.0,
    ) -> None:
        super().__init__(
            view,
            tokenizer,
            prior,
            decoder,
            action,
            sampler,
            return_target,
            (stride,),
            inverse_weight=inverse_weight,
            condition_weight=0.0,
            end_to_end=False,
        )
        inpaints = isinstance(tokenizer, InpaintsPast) and tokenizer.inpaints_past
        if not inpaints or not action.reads_trajectory:
            raise ConfigError(
                "planner=continuing needs codes that are the trajectory, of which states alone are inpainted, and an "
                "action head that reads it.",
                got=f"{type(tokenizer).__name__}, {type(action).__name__}",
                fix="planner=latent, or recipe=dd, or tokenizer=identity 'tokenizer.inpaint=[state]' action=state",
            )
        longest = horizon - 1 if isinstance(action, FollowsPlans) else horizon
        check_range("planner.past", past, 1, longest, usual=min(4, longest))
        steps = (longest + 1 - past) * stride  # of a plan, from the current point on
        if chunk > steps:
            raise ConfigError(
                "The chunk is longer than a plan, which begins at the current point.",
                expected=f"data.chunk of at most {steps}",
                got=f"data.chunk={chunk}, data.horizon={horizon}, data.stride={stride}, planner.past={past}",
                fix=f"data.horizon={horizon - (-(chunk - steps) // stride)}",
            )
        if isinstance(action, FollowsPlans):
            action.plan_steps = min(action.plan_steps, steps)
        self.past, self.stride, self.normalizer = past, stride, normalizer
        self.fills_missing = vocabulary is not None
        self.history = (past - 1) * stride + 1

    def stages(self) -> list[Stage]:
        """The stages of a latent planner; the prior learns ways to goals that lie ahead of the current point."""
        stages = super().stages()
        return [replace(stage, past_steps=self.history - 1) if stage.name == "prior" else stage for stage in stages]

    def modelled(self, x: Tensor, batch: Batch) -> Tensor:
        """Windows with a random number of missing past points; an action head reads them as they are."""
        return self.view(self._with_late_start(batch)) if self.fills_missing and self.past > 1 else x

    def condition(self, batch: Batch) -> Cond:
        """What is known at the current point; of continuous codes, with a random number of missing past points."""
        current = self.past - 1
        states = batch.states[:, : self.past]
        real = torch.ones_like(batch.mask[:, : self.past]) if self.fills_missing else self._real(batch)
        past = self._points(states, batch.actions[:, : self.past], batch.rewards[:, : self.past], real)
        time = None if batch.time is None else batch.time + current * self.stride
        return Cond(states[:, current], batch.returns[:, current], goal=batch.goals, time=time, past=past)

    @torch.no_grad()
    def plan(self, cond: Cond, rng: Generator | None = None, *, decode: bool = True) -> Plan:
        """Plans for the conditions (B, ·), from the current state on; without ``cond.past`` an episode starts here."""
        return super().plan(replace(cond, past=self._past(cond)), rng, decode=decode)

    def decode(self, latent: Tensor, cond: Cond) -> Tensor:
        """Latents (B, N, C) as trajectories (B, T, D) from the current point on; beyond a window nothing is planned."""
        x = super().decode(latent, cond)
        return torch.cat([x[:, self.past - 1 :], x[:, -1:].expand(-1, self.past - 1, -1)], dim=1)

    def _real(self, batch: Batch) -> Tensor:
        """Which of the P past points (B, P) of windows are real, for a random number of missing ones."""
        points = torch.randint(1, self.past + 1, (len(batch), 1), device=batch.states.device)
        return torch.arange(self.past, device=points.device) + points >= self.past

    def _with_late_start(self, batch: Batch) -> Batch:
        """The windows with a random number of missing past points, as if their episodes had begun later."""
        past = self._points(
            batch.states[:, : self.past],
            batch.actions[:, : self.past],
            batch.rewards[:, : self.past],
            self._real(batch),
        )
        past, current = self._filled(past), self.past - 1
        return replace(
            batch,
            states=torch.cat([past.states, batch.states[:, self.past :]], dim=1),
            actions=torch.cat([past.actions[:, :-1], batch.actions[:, current:]], dim=1),
            rewards=torch.cat([past.rewards[:, :-1], batch.rewards[:, current:]], dim=1),
            returns=torch.cat([past.returns[:, :-1], batch.returns[:, current:]], dim=1),
        )

    def _past(self, cond: Cond) -> Batch:
        """The P points of the history, as far apart as those of a window."""
        if cond.past is not None:
            past, reward = cond.past, self.normalizer.reward
            actions = past.actions[:, :-1].unflatten(1, (-1, self.stride)).flatten(2, 3)
            rewards = reward(reward.inverse(past.rewards[:, :-1]).unflatten(1, (-1, self.stride)).sum(2))
            actions = torch.cat([actions, torch.zeros_like(actions[:, :1])], dim=1)
            rewards = torch.cat([rewards, torch.zeros_like(rewards[:, :1])], dim=1)
            points = self._points(past.states[:, :: self.stride], actions, rewards, past.mask[:, :: self.stride])
        else:
            states = cond.state.unsqueeze(1).expand(-1, self.past, -1)
            actions = states.new_zeros(*states.shape[:2], self.stride, self.normalizer.action.mean.numel())
            real = torch.arange(self.past, device=states.device) == self.past - 1
            points = self._points(states, actions, states.new_zeros(states.shape[:2]), real.expand(len(cond), -1))
        return self._filled(points) if self.fills_missing else points

    def _filled(self, past: Batch) -> Batch:
        """The past with its first real state at the missing points, and actions and rewards of zero."""
        first = past.mask.int().argmax(1)  # (B,)
        states = past.states[torch.arange(len(first), device=first.device), first].unsqueeze(1)
        real = past.mask.unsqueeze(-1)
        return replace(
            past,
            states=torch.where(real, past.states, states),
            actions=past.actions * real.unsqueeze(-1),
            rewards=past.rewards * past.mask,
            mask=torch.ones_like(past.mask),
        )

    def _points(self, states: Tensor, actions: Tensor, rewards: Tensor, real: Tensor) -> Batch:
        """P past points of states (B, P, S), actions (B, P, M, A) and rewards (B, P), which of them (B, P) are real."""
        past = Batch.from_history(states, actions[:, :, 0], rewards, torch.zeros_like(rewards), real.long() - 1)
        return replace(past, actions=actions)
