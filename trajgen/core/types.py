"""The values that pass between rooms.

Shapes: B batch, T horizon (points in a window), S state, A action, G goal, D features per point, N latent
length, C code width, V vocabulary, K scales, L tokens, H steps in an action chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

Codes = Tensor
"""What a prior models: token ids (B, L) in int64, or continuous codes (B, L, C)."""

Losses = dict[str, Tensor]
"""Named scalars of one training step; ``losses["total"]`` is what the engine optimises."""


@dataclass(frozen=True)
class Space:
    """What a world's data look like, and how an observation is read from it.

    ``state_key`` and ``goal_key`` name entries of a dictionary observation; ``None`` says that the
    observation is the state itself, or that there is no goal.
    """

    state_dim: int
    action_dim: int
    goal_dim: int = 0
    state_key: str | None = None
    goal_key: str | None = None
    action_low: tuple[float, ...] = ()
    action_high: tuple[float, ...] = ()


@dataclass(frozen=True)
class Batch:
    """A batch of windows on the training device, normalised.

    A window holds T points, ``stride`` environment steps apart; the chunk holds the first H environment
    steps of the window at full rate. Masks are true on real steps and false on padding.
    """

    states: Tensor  # (B, T, S)
    actions: Tensor  # (B, T, A)
    rewards: Tensor  # (B, T) sum over the stride
    returns: Tensor  # (B, T) return-to-go
    mask: Tensor  # (B, T) bool
    chunk_states: Tensor  # (B, H, S)
    chunk_actions: Tensor  # (B, H, A)
    chunk_mask: Tensor  # (B, H) bool
    goals: Tensor | None = None  # (B, G)

    def __len__(self) -> int:
        return self.states.shape[0]

    def condition(self) -> Cond:
        """What is known when a plan is made at the window's first point."""
        return Cond(state=self.states[:, 0], returns=self.returns[:, 0], goal=self.goals)


@dataclass(frozen=True)
class Cond:
    """What a plan is conditioned on: the current state, the return-to-go asked for, the goal."""

    state: Tensor  # (B, S)
    returns: Tensor  # (B,)
    goal: Tensor | None = None  # (B, G)
    given: Tensor | None = None  # (B,) bool; where false the condition is withheld (dropout, guidance)

    def __len__(self) -> int:
        return self.state.shape[0]

    def map(self, change: Callable[[Tensor], Tensor]) -> Cond:
        """The condition with ``change`` applied to each of its tensors."""
        goal = None if self.goal is None else change(self.goal)
        given = None if self.given is None else change(self.given)
        return Cond(change(self.state), change(self.returns), goal, given)

    def withheld(self) -> Cond:
        """The same condition, not given: what classifier-free guidance compares with."""
        return replace(self, given=torch.zeros(len(self), dtype=torch.bool, device=self.state.device))


@dataclass(frozen=True)
class Plan:
    """A generated trajectory: its codes, the aggregated latent, and the decoded points."""

    codes: Codes
    latent: Tensor  # (B, N, C)
    trajectory: Tensor | None = None  # (B, T, D)


@dataclass
class Stage:
    """One part of a training: a module that maps a batch to losses, and what of it is trained.

    The engine optimises ``module(batch)["total"]`` with respect to ``parameters``; ``module.train()`` must leave frozen
    parts as they are. A stage without parameters is passed over. ``report`` is called at logging time and gives figures
    that are too dear for every step (the usage of a codebook, say).
    """

    name: str
    module: nn.Module
    parameters: list[nn.Parameter]
    report: Callable[[], dict[str, float]] = dict

    def begin(self) -> None:
        """Puts the module into training mode, with gradients for the stage's own parameters alone."""
        own = {id(p) for p in self.parameters}
        for parameter in self.module.parameters():
            parameter.requires_grad_(id(parameter) in own)
        self.module.train()
