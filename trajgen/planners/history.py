"""The history planner: what to do next follows from the last points (Decision Transformer)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.protocols import Autoregressive, Values
from trajgen.core.registry import register
from trajgen.core.stages import Stage
from trajgen.core.types import Batch, Cond, Losses, Plan
from trajgen.planners.direct import PlansNoTrajectory
from trajgen.planners.latent import return_target_stage

TOKENS = "tokenizer=identity tokenizer.tokens=field schedule=unit prior=gpt"
"""What is advised where tokens are others: Decision Transformer's."""


@register("planner", "history")
class HistoryPlanner(PlansNoTrajectory):
    """Acts by continuing the history of target returns, states and actions (Decision Transformer, arXiv 2106.01345).

    Each action is predicted from the points before it and from what is known at its own (section 3, algorithm 1); no
    other prediction is trained. Without the return in the view this is behaviour cloning from histories.

    Args:
        view: features of a point: the state, perhaps the return, and the action last.
        tokenizer: whose latent is the trajectory, one continuous token for each field of a point.
        prior: autoregressive, one token at a time.
        return_target: the target return-to-go when acting.
        normalizer: of the data.
        horizon: T, the points that a history holds at most.
        stride: environment steps between points; a history grows by every step, so it must be 1.
        action_size: the largest size (A) of each entry of an action, which may be infinite.
        past_actions: whether what was done before is seen. Where the data's actions resemble the ones before them, a
            model that sees those learns to repeat itself (causal confusion, arXiv 1905.11979).
        action_tanh: whether actions are the hyperbolic tangents of what is predicted, as in the code of Decision
            Transformer; larger ones where actions can be larger than 1.

    Raises:
        ConfigError: for parts from which an action cannot be predicted this way.
    """

    action_limit: Tensor
    plans_one_action = True

    def __init__(
        self,
        view: Any,
        tokenizer: Any,
        prior: Any,
        return_target: Any,
        normalizer: Normalizer,
        horizon: int,
        stride: int,
        action_size: tuple[float, ...],
        *,
        past_actions: bool = True,
        action_tanh: bool = False,
    ) -> None:
        super().__init__()
        _check_window(view, stride)
        _check_tokens(view, tokenizer)
        _check_order(tokenizer, prior)
        if action_tanh and math.inf in action_size:
            raise ConfigError(
                "Actions that are hyperbolic tangents have bounds.",
                got=f"planner.action_tanh=true, and actions up to {list(action_size)}",
                fix="planner.action_tanh=false",
            )
        self.register_buffer("action_limit", torch.tensor(action_size).clamp(min=1), persistent=False)
        self.view, self.tokenizer, self.prior, self.return_target = view, tokenizer, prior, return_target
        self.normalizer = normalizer
        self.history, self.past_actions, self.action_tanh = horizon, past_actions, action_tanh

    def stages(self) -> list[Stage]:
        """The stages of training, in order; the tokenizer of a trajectory as it is has nothing to learn."""
        return [
            Stage("tokenizer", self.tokenizer_loss, list(self.tokenizer.parameters()), report=self.tokenizer.usage),
            return_target_stage(self.return_target),
            Stage("prior", self.prior_loss, list(self.prior.parameters()), frozen=[self.tokenizer]),
        ]

    def tokenizer_loss(self, batch: Batch) -> Losses:
        """The tokenizer's losses."""
        losses: Losses = self.tokenizer.loss(batch, self.view(batch), self.tokenizer.points)
        return losses

    def prior_loss(self, batch: Batch) -> Losses:
        """The squared error of each action, given all tokens before it."""
        predicted = self.actions(self.view(batch), batch.condition())
        error = (predicted.float() - batch.actions.flatten(2)).square().mean(-1)  # (B, T)
        total = batch.mean(error, _has_action)
        return {"total": total, "action": total}

    @torch.no_grad()
    def plan(self, cond: Cond, rng: Generator | None = None, *, decode: bool = True) -> Plan:
        """The next action (B, 1, A), as the plan's latent; there are no codes and no trajectory.

        Without ``cond.past`` an episode starts here. Otherwise its windows (B, P ≤ T, ·) end in the current points, of
        which ``cond.returns`` is the target return; masked points come before the real ones. The action of the current
        points is not read.
        """
        past = self._first_point(cond) if cond.past is None else cond.past
        past = replace(past, returns=torch.cat([past.returns[:, :-1], cond.returns.unsqueeze(1)], dim=1))
        rows = torch.arange(len(cond), device=cond.state.device)
        positions = torch.arange(self.history, device=rows.device)
        length = past.mask.sum(1).clamp(max=self.history)  # (B,)
        first = past.mask.shape[1] - length
        # Real points to the front: what is before a token is then the same as in training, and what lies behind the
        # current state cannot matter, for no token looks ahead.
        source = (positions + first.unsqueeze(1)).clamp(max=past.mask.shape[1] - 1)
        x = self.view(past)[rows.unsqueeze(1), source]  # (B, T, D)
        # Zeros on padding, since an attention weight of zero does not silence NaN.
        x = torch.where((positions < length.unsqueeze(1)).unsqueeze(-1), x, torch.zeros_like(x))
        current = length - 1
        x[..., self.view.slices["action"]].masked_fill_((positions == current.unsqueeze(1)).unsqueeze(-1), 0)
        start = replace(
            cond,
            state=past.states[rows, first],
            returns=past.returns[rows, first],
            time=None if past.time is None else past.time + first,
            past=None,
        )
        action = self.actions(x, start)[rows, current].unsqueeze(1)
        return Plan(rows.new_zeros(len(cond), 0), action)

    def actions(self, x: Tensor, cond: Cond) -> Tensor:
        """For each point of windows x (B, T, D), the action (B, T, A) that what is known there suggests."""
        if not self.past_actions:
            x = x.clone()
            x[..., self.view.slices["action"]] = 0
        predicted = self.prior.logits(self.tokenizer.encode(x).inputs, cond)
        actions: Tensor = self.view.read(self.tokenizer.points(predicted), "action")
        return self.normalizer.action(self.action_limit * torch.tanh(actions)) if self.action_tanh else actions

    def action(self, plan: Plan, states: Tensor, offsets: Tensor) -> Tensor:
        """The plan's action, (B, H, A): it holds one, for the step at which it was made."""
        return plan.latent.expand(-1, offsets.shape[1], -1)

    def _first_point(self, cond: Cond) -> Batch:
        """The history of episodes that start with the conditions' states: one point."""
        action = self.view.slices["action"]
        state, unknown = cond.state.unsqueeze(1), cond.state.new_zeros(len(cond), 1, action.stop - action.start)
        returns = cond.returns.unsqueeze(1)
        return Batch.from_history(state, unknown, torch.zeros_like(returns), returns, torch.zeros_like(returns).long())


def _has_action(batch: Batch) -> Tensor:
    """Where something was done: at real points (B, T) that another one follows, and at the last before a terminal."""
    # An episode's final observation is a real point, but nobody acted on it, nor in the absorbing states that follow a
    # terminal. Whether a window's last point is that of a timeout cannot be told; it is the only one with a full
    # history, as they are when acting.
    goes_on = batch.mask if batch.terminals is None else batch.mask & ~batch.terminals
    return goes_on & torch.cat([batch.mask[:, 1:], batch.mask[:, -1:]], dim=1)


def _check_window(view: Any, stride: int) -> None:
    names = list(view.slices)
    if "state" not in names or names[-1] != "action" or not {"state", "return", "action"}.issuperset(names):
        order = "[return,state,action]" if "return" in names else "[state,action]"
        raise ConfigError(
            "An action is predicted from what comes before it: what is known when it is chosen, and nothing else.",
            got=f"view.fields=[{','.join(names)}]",
            fix=f"'view.fields={order}' data.stride=1 {TOKENS}, or recipe=dt",
        )
    if stride != 1:
        raise ConfigError("A history holds every step of an episode.", got=f"data.stride={stride}", fix="data.stride=1")


def _check_tokens(view: Any, tokenizer: Any) -> None:
    names = tuple(view.slices)
    fields = tuple(tokenizer.fields_of_tokens) if isinstance(tokenizer, Values) else ()
    if tokenizer.vocabulary is not None or fields != names:
        got = "codes that are learnt"
        if fields:
            kind = "continuous" if tokenizer.vocabulary is None else "discrete"
            got = f"{len(fields)} {kind} tokens per point, for {', '.join(dict.fromkeys(fields))}"
        raise ConfigError(
            "A history has one continuous token for each field of a point, so that an action follows its own state.",
            expected=f"{len(names)} continuous tokens per point, for {', '.join(names)}",
            got=got,
            fix=f"{TOKENS}, or recipe=dt",
        )


def _check_order(tokenizer: Any, prior: Any) -> None:
    if not isinstance(prior, Autoregressive):
        rule = "A history is continued by a prior that predicts each token from those before it."
        raise ConfigError(rule, got=type(prior).__name__, fix="prior=gpt")
    if any(length != 1 for length in tokenizer.schedule):
        got = f"schedule {tokenizer.schedule}"
        raise ConfigError("A history is continued one token at a time.", got=got, fix="schedule=unit")
