"""What each kind of component promises. Structural: nothing needs to inherit from these.

Shapes are those of `trajgen.core.types`. A continuous component has ``vocabulary`` None and codes (B, L, C).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Generator, Tensor

from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Batch, Codes, Cond, Losses, Plan, Stage

Observation = Any
"""What an environment returns: an array, or a dictionary of arrays; batched along the first axis or not."""


@runtime_checkable
class Policy(Protocol):
    """Acts in one environment or in a batch of them.

    ``reset(batch=n)`` starts n episodes, ``reset(ids=[...])`` restarts some of them, ``reset()`` one
    unbatched episode. Observations, rewards and actions are batched exactly if ``batch`` was given.
    """

    def reset(self, *, batch: int | None = None, ids: Sequence[int] | None = None) -> None: ...

    def act(self, observation: Observation) -> np.ndarray: ...

    def observe(self, reward: Any, done: Any) -> None: ...


class Source(Protocol):
    """Gives the batch of a step: a pure function of seed, step and rank."""

    def batch(self, step: int, size: int, rank: int = 0) -> Batch: ...


class Tokenizer(Protocol):
    """Turns a window into codes and codes into a latent, scale by scale.

    The *canvas* is what the scales drawn so far amount to: for a residual pyramid the running sum of all
    scales, for a token sequence the row of tokens so far.
    """

    schedule: ScaleSchedule
    code_dim: int
    latent_length: int
    vocabulary: int | None

    def encode(self, x: Tensor) -> Codes:
        """Windows (B, T, D) to codes."""
        ...

    def vectors(self, codes: Codes) -> Tensor:
        """Codes, or relaxed one-hot codes (B, L, V), to code vectors (B, L, C)."""
        ...

    def inputs(self, vectors: Tensor) -> Tensor:
        """Code vectors (B, L, C) to the teacher-forcing inputs (B, L - l_1, C) of scales 2 to K."""
        ...

    def latent(self, vectors: Tensor) -> Tensor:
        """Code vectors (B, L, C) to the aggregated latent (B, N, C)."""
        ...

    def start(self, batch: int) -> Tensor:
        """The empty canvas of a batch."""
        ...

    def extend(self, canvas: Tensor, vectors: Tensor, k: int) -> Tensor:
        """The canvas with the code vectors (B, l_k, C) of scale k added."""
        ...

    def view(self, canvas: Tensor, k: int) -> Tensor:
        """What scale k sees of the canvas: its input (B, l_k, C)."""
        ...

    def loss(self, batch: Batch, x: Tensor, decoder: Decoder) -> Losses:
        """The losses of one step of the tokenizer's own training on windows x (B, T, D)."""
        ...

    def usage(self) -> dict[str, float]:
        """How the codes were used since the last call: per scale, the share in use and the perplexity."""
        ...


class Prior(Protocol):
    """A distribution over codes given a condition, trained by teacher forcing and drawn scale by scale."""

    def logits(self, inputs: Tensor, cond: Cond) -> Tensor:
        """Teacher-forced predictions (B, L, V or C) from the inputs (B, L - l_1, C) of scales 2 to K."""
        ...

    def loss(self, logits: Tensor, codes: Codes) -> Tensor:
        """The mean loss of predictions (B, L, ·) of ``codes``."""
        ...

    def start(self, cond: Cond) -> Any:
        """The state of a stepwise prediction: whatever is computed once per plan, and an empty cache."""
        ...

    def step(self, x: Tensor | None, k: int, state: Any) -> Tensor:
        """Predictions (B, l_k, V or C) of scale k from its input (B, l_k, C); None at the first scale."""
        ...


class Decoder(Protocol):
    """Turns a latent (B, N, C) into a trajectory (B, T, D)."""

    def __call__(self, latent: Tensor, cond: Cond | None = None) -> Tensor: ...

    def base_parameters(self) -> list[Any]:
        """Parameters that are trained with the tokenizer."""
        ...

    def adapter_parameters(self) -> list[Any]:
        """Parameters that are trained with the prior: those that read the condition."""
        ...


class ActionHead(Protocol):
    """Reads actions off a plan."""

    def __call__(self, plan: Plan, states: Tensor, offsets: Tensor) -> Tensor:
        """Actions (B, H, A) at H steps after the plan was made.

        Args:
            plan: B plans.
            states: the states (B, H, S) met there.
            offsets: how many environment steps after the plan was made, (B, H) int64.
        """
        ...


class Sampler(Protocol):
    """Draws codes from a prior."""

    def __call__(self, prior: Prior, tokenizer: Tokenizer, cond: Cond, rng: Generator | None) -> Codes: ...


class Target(Protocol):
    """The return-to-go that is asked for when acting."""

    def __call__(self, state: Tensor, goal: Tensor | None, remaining: Tensor) -> Tensor:
        """Normalised return-to-go (B,) to ask for.

        Args:
            state: normalised states (B, S).
            goal: normalised goals (B, G).
            remaining: what is left (B,) of the first target after the rewards received, normalised; not a
                number at an episode's first plan.
        """
        ...

    def loss(self, batch: Batch) -> Losses:
        """Losses of a learnt target; empty for a fixed one."""
        ...


class Planner(Protocol):
    """A composition that can be trained, stage by stage, and then makes plans."""

    def stages(self) -> list[Stage]: ...

    def plan(self, cond: Cond, rng: Generator | None = None, *, decode: bool = True) -> Plan:
        """Plans for the conditions (B, ·); without ``decode`` the trajectory is left out."""
        ...

    def refinements(self, plan: Plan, cond: Cond) -> Tensor:
        """The plan decoded after each scale, coarse to fine: trajectories (K, B, T, D)."""
        ...
