"""The continuing planner: plans begin with the states that an episode has just passed through (Decision Diffuser)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from trajgen.core.checks import check_range
from trajgen.core.errors import ConfigError
from trajgen.core.protocols import InpaintsPast
from trajgen.core.registry import register
from trajgen.core.types import Batch, Cond, Plan
from trajgen.planners.latent import LatentPlanner


@register("planner", "continuing")
class ContinuingPlanner(LatentPlanner):
    """A latent planner that continues a history of states (Decision Diffuser, arXiv 2211.15657, algorithm 1).

    The first P points of a window are past: the last of them is the current state, with the target return, and from
    which actions are read. They are known codes, as many of them as the episode has had; in training a random number
    of them.

    Args:
        view: features of a window, with the state.
        tokenizer: whose codes are the trajectory, with ``inpaint=[state]``.
        prior, decoder, sampler, return_target: the components.
        action: a head that reads the trajectory.
        vocabulary: None: codes are continuous.
        horizon: T, longer than the history.
        stride: M.
        past: P, at least 2.
        inverse_weight: of the action head's loss beside that of the prior; 0 trains it in a stage of its own.

    Raises:
        ConfigError: for a history that is too short or too long, or parts that cannot continue one.
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
        horizon: int,
        stride: int,
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
        if not inpaints or vocabulary is not None or not action.reads_trajectory:
            raise ConfigError(
                "planner=continuing needs codes that are the trajectory, of which states alone are inpainted, and an "
                "action head that reads it.",
                got=f"{type(tokenizer).__name__}, {type(action).__name__}",
                fix="planner=latent, or recipe=dd, or tokenizer=identity 'tokenizer.inpaint=[state]' action=state",
            )
        check_range("planner.past", past, 2, horizon - 1, usual=min(4, horizon - 1))
        self.past, self.stride = past, stride
        self.history = (past - 1) * stride + 1

    def condition(self, batch: Batch) -> Cond:
        """What is known at the last past point of windows, at random as if the episode had begun a while before it."""
        states = batch.states[:, : self.past]
        past_points = torch.randint(1, self.past + 1, (len(batch), 1), device=states.device)
        time = None if batch.time is None else batch.time + (self.past - 1) * self.stride
        current = self.past - 1
        cond = Cond(state=states[:, current], returns=batch.returns[:, current], goal=batch.goals, time=time)
        return replace(
            cond, past=self._points(states, torch.arange(self.past, device=states.device) + past_points >= self.past)
        )

    @torch.no_grad()
    def plan(self, cond: Cond, rng: Generator | None = None, *, decode: bool = True) -> Plan:
        """Plans for the conditions (B, ·), from the current state on; without ``cond.past`` an episode starts here."""
        cond = replace(cond, past=self._past(cond))
        plan = super().plan(cond, rng, decode=decode)
        return plan if plan.trajectory is None else replace(plan, trajectory=self._from_now(plan.trajectory))

    @torch.no_grad()
    def refinements(self, plan: Plan, cond: Cond) -> dict[str, Tensor]:
        """The plan decoded after each scale, from the current state on."""
        return {name: self._from_now(x) for name, x in super().refinements(plan, cond).items()}

    def _from_now(self, x: Tensor) -> Tensor:
        """Windows (B, T, D) from the current point on; beyond their last point nothing is planned."""
        return torch.cat([x[:, self.past - 1 :], x[:, -1:].expand(-1, self.past - 1, -1)], dim=1)

    def _past(self, cond: Cond) -> Batch:
        """The P points of the history, as far apart as those of a window."""
        if cond.past is not None:
            return self._points(cond.past.states[:, :: self.stride], cond.past.mask[:, :: self.stride])
        states = cond.state.unsqueeze(1).expand(-1, self.past, -1)
        real = torch.arange(self.past, device=states.device) == self.past - 1
        return self._points(states, real.expand(len(cond), -1))

    def _points(self, states: Tensor, real: Tensor) -> Batch:
        """Past states (B, P, S) as a batch, with a mask (B, P) of those that the episode has had."""
        nothing = states.new_zeros(real.shape)
        return Batch.from_history(states, states[..., :0], nothing, nothing, real.long() - 1)
