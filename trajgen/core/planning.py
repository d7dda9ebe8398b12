"""Planners and policies, and one planning step and one revision of plans, as every policy takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from torch import Generator, Tensor

from trajgen.core.protocols import ActionHead
from trajgen.core.stages import Stage
from trajgen.core.types import Batch, Cond, FollowedPlan, Losses, Plan

Observation = Any
"""What an environment returns: an array, or a dictionary of arrays; batched along the first axis or not."""

Misfit = Literal["likelihood", "state", "critic"]
"""How it is measured how badly a plan that has been followed fits the present: see `RevisesPlans.revise`."""

PlanFn = Callable[[Cond, Generator | None], tuple[Tensor, Plan]]
"""From conditions whose ``returns`` are what remains, and a generator, to the target returns (B,) and plans."""
ReviseFn = Callable[[Cond, FollowedPlan, Generator | None], tuple[Tensor, Plan, Tensor]]
"""The same for plans that have been followed and are revised; gives their misfit (B,) too."""


class Encoder(Protocol):
    """Makes a vector of an image, where observations have images.

    The state that all other components see is the observation's vectors followed by the features.
    """

    features: int
    """F, the numbers of the vector."""

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, height, width, channels) in uint8 to features (B, F)."""
        ...

    def trained_parameters(self) -> list[Any]:
        """Parameters that are trained, in stage ``encoder``; all weights are fixed from there on."""
        ...

    def loss(self, batch: Batch) -> Losses:
        """Losses of one with such parameters, of pairs of images (`Batch.images`) and the actions between them."""
        ...


@runtime_checkable
class HasInitialWeights(Protocol):
    """An encoder whose training starts from the weights of a file or a server, which a run folder needs no more."""

    def load_initial_weights(self) -> None:
        """Loads them; called once, before a training."""
        ...


@runtime_checkable
class InitializesCodes(Protocol):
    """A tokenizer whose codes begin as centers of the first batch."""

    @property
    def initialized(self) -> bool:
        """Whether they have begun."""
        ...

    def initialize(self, x: Tensor) -> None:
        """Initializes them from windows x (B, T, D)."""
        ...


class ReturnTarget(Protocol):
    """The target return-to-go when acting."""

    def __call__(self, state: Tensor, goal: Tensor | None, remaining: Tensor) -> Tensor:
        """Normalized target return-to-go (B,).

        Args:
            state: normalized states (B, S).
            goal: normalized goals (B, G).
            remaining: what is left (B,) of the first target after the rewards received, normalized; not a
                number at an episode's first plan.
        """
        ...

    def loss(self, batch: Batch) -> Losses:
        """Losses of a learnt target; empty for a fixed one."""
        ...


@runtime_checkable
class Subgoal(Protocol):
    """Gives plans goals on the way to the episode's own, where a recipe has such a component."""

    def __call__(self, state: Tensor, goal: Tensor) -> Tensor:
        """The goals (B, G) that plans are made for, normalized, by normalized states (B, S) and goals (B, G)."""
        ...

    def fit(self, positions: np.ndarray, starts: np.ndarray) -> None:
        """Called once with the positions of the training episodes, before the first stage.

        Args:
            positions: where goals would be reached, (M, G), in their units, episode after episode.
            starts: the first row of each episode, (E,).
        """
        ...


class Planner(Protocol):
    """A composition that can be trained, stage by stage, and then makes plans."""

    action: ActionHead
    return_target: ReturnTarget
    history: int
    """How many of the last points a plan continues (`Cond.past`); 0 for the current state alone."""

    def stages(self) -> list[Stage]:
        """What is trained, in order."""
        ...

    def plan(self, cond: Cond, rng: Generator | None = None, *, decode: bool = True) -> Plan:
        """Plans for the conditions (B, ·); without ``decode`` the trajectory is left out."""
        ...

    def refinements(self, plan: Plan, cond: Cond) -> dict[str, Tensor]:
        """The plan as it grew, for pictures: trajectories (B, T, D) by name, coarse to fine; may be empty."""
        ...

    def condition_residuals(self, trajectory: Tensor, cond: Cond) -> dict[str, Tensor]:
        """How far trajectories (B, T, D) start from the condition, per field: state (B, S), return (B, 1)."""
        ...


@runtime_checkable
class Decodes(Protocol):
    """A planner whose plans are decoded from a latent."""

    def decode(self, latent: Tensor, cond: Cond) -> Tensor:
        """Latents (B, N, C) as trajectories (B, T, D) from the current point on."""
        ...


@runtime_checkable
class RevisesPlans(Protocol):
    """Revises plans: coarse scales stay, finer ones are drawn anew."""

    def check_revision(self, first: int, misfit: Misfit) -> None:
        """Raises a `ConfigError` if it cannot draw the scales from number ``first`` on anew, or tell this misfit."""
        ...

    def revise(
        self,
        followed: FollowedPlan,
        cond: Cond,
        first: int,
        rng: Generator | None = None,
        *,
        misfit: Misfit = "likelihood",
        decode: bool = True,
    ) -> tuple[Plan, Tensor]:
        """Plans for the present conditions (B, ·) whose scales before ``first`` are those that were followed.

        Returns:
            The plans, and their misfit (B,), the larger, the worse the scales that stay fit the present: by the
            ``likelihood`` of their codes, in nats; by how far the ``state`` is from the one that was planned, in
            standard deviations; or by what the ``critic`` says less of the plan than before, in its own units.
        """
        ...


class RevisingPlanner(Planner, RevisesPlans, Protocol):
    """A planner whose plans can be revised."""


@runtime_checkable
class Policy(Protocol):
    """Acts in one environment or in a batch of them.

    ``reset(batch=n)`` starts n episodes, ``reset(ids=[...])`` restarts some of them, ``reset()`` one
    unbatched episode. Observations, rewards and actions are batched exactly if ``batch`` was given.
    """

    def reset(self, *, batch: int | None = None, ids: Sequence[int] | None = None) -> None:
        """Starts one episode, ``batch`` of them, or those of the batch with these numbers anew."""
        ...

    def act(self, observation: Observation) -> np.ndarray:
        """The action (A,) or actions (B, A) for an observation, in the environment's units."""
        ...

    def observe(self, reward: Any, done: Any) -> None:
        """Is told the reward of the last action and whether the episode is over: a number each, or (B,)."""
        ...


@runtime_checkable
class SeedsNoise(Protocol):
    """A policy whose plans are drawn by random numbers that start anew at each `Policy.reset` of a batch."""

    def seed_noise(self, offset: int) -> None:
        """Starts them as if the seed of its options were larger by ``offset``."""
        ...


def subgoal_of(planner: Any) -> Subgoal | None:
    """The component that gives a planner subgoals; None where a recipe has none."""
    subgoal = getattr(planner, "subgoal", None)  # a submodule, which no protocol sees
    return subgoal if isinstance(subgoal, Subgoal) else None


def with_subgoals(planner: Planner | RevisesPlans, cond: Cond) -> Cond:
    """Conditions (B, ·) with the goals that plans are made for: subgoals, where the planner has them."""
    subgoal = subgoal_of(planner)
    return cond if subgoal is None or cond.goal is None else replace(cond, goal=subgoal(cond.state, cond.goal))


def plan_step(planner: Planner, cond: Cond, rng: Generator | None = None) -> tuple[Tensor, Plan]:
    """Asks the return target once, and plans for its return.

    Args:
        planner: in evaluation mode.
        cond: B conditions, where ``returns`` (B,) is what remains of the first target after the rewards received,
            normalized; NaN at an episode's first plan.
        rng: of the sampler.

    Returns:
        The normalized target returns (B,), and the plans.
    """
    cond = with_subgoals(planner, cond)
    returns = planner.return_target(cond.state, cond.goal, cond.returns)
    return returns, planner.plan(replace(cond, returns=returns), rng, decode=False)


def revision_step(
    planner: RevisingPlanner,
    first: int,
    misfit: Misfit,
    cond: Cond,
    followed: FollowedPlan,
    rng: Generator | None = None,
) -> tuple[Tensor, Plan, Tensor]:
    """Asks the return target once, and draws the scales of plans from number ``first`` on anew for its return.

    Args:
        planner: in evaluation mode.
        first: number of a scale, from 1 on; those before it stay.
        misfit: how it is measured.
        cond: B present conditions, as of `plan_step`.
        followed: the plans so far.
        rng: of the sampler.

    Returns:
        The normalized target returns (B,), the plans, and their misfit (B,).
    """
    cond = with_subgoals(planner, cond)
    returns = planner.return_target(cond.state, cond.goal, cond.returns)
    plan, measured = planner.revise(followed, replace(cond, returns=returns), first, rng, misfit=misfit, decode=False)
    return returns, plan, measured
