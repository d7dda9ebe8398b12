"""The values that pass between rooms.

Shapes: B batch, T horizon (points in a window), M stride (environment steps between points), S state, A action,
G goal, D features per point, N latent length, C code width, V vocabulary, K scales, L tokens, H steps in an action
chunk, P points of a history, Q goals of a transition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

Codes = Tensor
"""What a prior models: token ids (B, L) in int64, or continuous codes (B, L, C)."""

Losses = dict[str, Tensor]
"""Named scalars of one training step; ``losses["total"]`` is what the engine optimizes."""
USUAL_RETURNS = (-4.0, 4.0)
"""The range of most normalized returns."""


@dataclass(frozen=True)
class Space:
    """What an environment's data look like, and how an observation is read from it.

    ``state_key`` and ``goal_key`` name entries of a dictionary observation (`trajgen.core.observations.Key`); ``None``
    says that the observation is the state itself, or that there is no goal. ``state_offset`` (S) and ``goal_offset``
    (G) are what is subtracted from states and goals in 64-bit floats before they are rounded to 32 bits; empty where
    nothing is. ``scale_lengths`` are those that a schedule chose for the data (`schedule=auto`); empty if none did.
    ``return_range`` are the least and the largest normalized return that a return target tells from others.
    ``choices`` are those of discrete actions (`trajgen.core.choices`), with the sum ``action_dim``; empty for
    continuous ones. States and actions are those of ``agents`` agents side by side, of equal widths.

    Where observations have images, ``image_shape`` is the height, width and channels of one, joined of the entries that
    ``image_key`` names, and ``encoder`` the node of the component that makes the last ``feature_dim`` numbers of the
    state of it, 0 while its width is not known. They are ``encoded`` where the data hold them, and no images any more.
    """

    state_dim: int
    action_dim: int
    goal_dim: int = 0
    state_key: str | tuple[str, ...] | None = None
    goal_key: str | None = None
    action_low: tuple[float, ...] = ()
    action_high: tuple[float, ...] = ()
    state_offset: tuple[float, ...] = ()
    goal_offset: tuple[float, ...] = ()
    scale_lengths: tuple[int, ...] = ()
    return_range: tuple[float, float] = USUAL_RETURNS
    choices: tuple[int, ...] = ()
    agents: int = 1
    image_key: str | tuple[str, ...] | None = None
    image_shape: tuple[int, ...] = ()
    feature_dim: int = 0
    encoder: dict[str, Any] = field(default_factory=dict)
    encoded: bool = False

    @property
    def vector_dim(self) -> int:
        """How many numbers of the state are read from the observation's vectors: all but the features of images."""
        return self.state_dim - self.feature_dim

    @property
    def action_size(self) -> tuple[float, ...]:
        """The largest size (A) of each entry of an action; 1 where bounds are not known."""
        sides = zip(self.action_low, self.action_high, strict=True)
        return tuple(max(abs(low), abs(high)) for low, high in sides) or (1.0,) * self.action_dim

    def __post_init__(self) -> None:
        if self.choices and (min(self.choices) < 1 or sum(self.choices) != self.action_dim):
            raise ValueError(f"choices {self.choices} of an action of width {self.action_dim}")
        if self.agents < 1 or self.state_dim % self.agents or self.action_dim % self.agents:
            widths = f"a state of {self.state_dim} and an action of {self.action_dim}"
            raise ValueError(f"{self.agents} agents with {widths}")
        if self.image_shape and (len(self.image_shape) != 3 or min(self.image_shape) < 1):
            raise ValueError(f"an image has height, width and channels, and is {self.image_shape}")
        if not all(map(math.isfinite, self.return_range)) or self.return_range[0] >= self.return_range[1]:
            raise ValueError(f"a range of returns {self.return_range}")
        if not 0 <= self.feature_dim <= self.state_dim:
            raise ValueError(f"{self.feature_dim} features in a state of {self.state_dim} numbers")
        for offset, width in ((self.state_offset, self.state_dim), (self.goal_offset, self.goal_dim)):
            if len(offset) not in (0, width) or not all(map(math.isfinite, offset)):
                raise ValueError(f"an offset has {width} finite numbers, and is {offset}")


@dataclass(frozen=True)
class AgentAxis:
    """How the features of a team's windows are those of its agents."""

    columns: tuple[tuple[int, ...], ...]
    """For each of n agents, the numbers of its D′ features among the D of the team; shared ones are in all."""
    identify: bool = True
    """Whether networks are told which agent they serve; without it, permuted agents have permuted plans."""

    @property
    def agents(self) -> int:
        """n."""
        return len(self.columns)


@dataclass(frozen=True)
class GoalSampling:
    """Which goals values are learnt for, besides a window's own (OGBench, arXiv 2410.20092, appendix C.2).

    Each further goal is with some probability what the first step reaches, or what any step of the data reaches;
    otherwise it is reached later in the same episode, after a geometric number of steps with the data's discount.
    """

    goals: int = 1
    """Further goals of each window; 0 for the window's own alone."""
    current: float = 0.2
    """Probability of what the first step reaches."""
    random: float = 0.3
    """Probability of what any step of the data reaches."""


@dataclass(frozen=True)
class Record:
    """A dataclass of tensors, and of records of them, whose first axis is that of windows, conditions or plans."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The record with ``change`` applied to each of its tensors."""
        values = {name: value for name, value in vars(self).items() if isinstance(value, (Tensor, Record))}
        return replace(self, **{k: change(v) if isinstance(v, Tensor) else v.map(change) for k, v in values.items()})

    def tensors(self) -> list[Tensor]:
        """All of its tensors, in the order in which `map` changes them."""
        result: list[Tensor] = []
        for value in vars(self).values():
            result += [value] if isinstance(value, Tensor) else value.tensors() if isinstance(value, Record) else []
        return result

    @classmethod
    def cat(cls, records: Sequence[Self]) -> Self:
        """The rows of all records, which hold the same tensors, as one record."""
        tensors = map(torch.cat, zip(*(record.tensors() for record in records), strict=True))
        return records[0].map(lambda _: next(tensors))


@dataclass(frozen=True)
class Transitions(Record):
    """The environment steps of the chunks of a batch, for learning values: from ``Batch.chunk_states`` on.

    Of Q goals the first is the window's own; Q is 1 where the data have no goals, or rewards that do not follow from
    them.
    """

    actions: Tensor  # (B, H, A) normalized
    next_states: Tensor  # (B, H, S) normalized
    rewards: Tensor  # (B, Q, H) in the data's own units
    terminals: Tensor  # (B, Q, H) bool: the task is over after the step
    mask: Tensor  # (B, H) bool: real steps, also those after the arrival at the window's goal
    goals: Tensor | None  # (B, Q, G) normalized


@dataclass(frozen=True)
class Batch(Record):
    """A batch of windows on the training device, normalized.

    A window holds T points, M environment steps apart; the chunk holds the first H environment steps of the window
    at full rate. Masks are true on real steps and false on padding. Where windows have several strides, M differs
    between them, and the actions between points are left out: their M is 0.
    """

    states: Tensor  # (B, T, S)
    actions: Tensor  # (B, T, M, A) of the steps from each point to the next
    rewards: Tensor  # (B, T) sum over the stride
    returns: Tensor  # (B, T) return-to-go
    mask: Tensor  # (B, T) bool
    chunk_states: Tensor  # (B, H, S)
    chunk_actions: Tensor  # (B, H, A)
    chunk_mask: Tensor  # (B, H) bool
    goals: Tensor | None = None  # (B, G)
    terminals: Tensor | None = None  # (B, T) bool, the task is over at the point; None where it never is
    time: Tensor | None = None  # (B,) int64, the step of the episode at which the window starts
    stride: Tensor | None = None  # (B,) int64, the window's M; None where all have the same
    transitions: Transitions | None = None  # single steps, for a stage that needs them (`Stage.transitions`)
    images: Tensor | None = None  # (B, 2, h, w, c) uint8, M steps apart, for a stage that needs them (`Stage.images`)
    codes: Codes | None = None  # (B, L, ·) of plans that were drawn for the windows before the stage (`Stage.prepare`)
    full_batch: Batch | None = None  # of which this is a share, with several devices or micro-batches

    @classmethod
    def from_history(cls, states: Tensor, actions: Tensor, rewards: Tensor, returns: Tensor, steps: Tensor) -> Batch:
        """The windows of stride 1 that end in the current points, where nothing has been done yet.

        Args:
            states: (B, P, S), oldest first.
            actions: (B, P, A).
            rewards: (B, P).
            returns: the target returns-to-go (B, P).
            steps: of the episode (B, P); points before its first one, step 0, are masked.
        """
        real = steps >= 0
        return cls(
            states=states,
            actions=actions.unsqueeze(2),
            rewards=rewards,
            returns=returns,
            mask=real,
            chunk_states=states[:, -1:],
            chunk_actions=actions[:, -1:],
            chunk_mask=torch.zeros_like(real[:, -1:]),
            time=steps[:, 0],
        )

    def __len__(self) -> int:
        return self.states.shape[0]

    @property
    def image_pairs(self) -> Tensor:
        """The images (B, 2, h, w, c); raises a ValueError for a batch without any."""
        if self.images is None:
            raise ValueError("batches of this stage carry no images: Stage(…, images=True)")
        return self.images

    def mean(self, errors: Tensor, real: Callable[[Batch], Tensor]) -> Tensor:
        """The mean over what is real, so that it does not matter how a batch is shared out.

        Dividing by the share's own count would give the real steps of a share with more padding more weight.

        Args:
            errors: (B, ·), or of the first of the windows.
            real: from a batch to what counts in it (B, ·): ``lambda batch: batch.mask``.
        """
        full_batch = self.full_batch or self
        per_window = real(full_batch).sum() / len(full_batch.states)
        return (errors * real(self)[: len(errors)]).sum() / (per_window * len(errors)).clamp(min=1)

    def transform(self, change: Callable[[Batch], Batch]) -> Batch:
        """The batch with ``change`` applied to it, and to the batch of which it is a share."""
        return replace(change(self), full_batch=None if self.full_batch is None else change(self.full_batch))

    def head(self, windows: int) -> Batch:
        """The first ``windows`` windows as a batch of their own."""
        return replace(self, full_batch=None).map(lambda values: values[:windows])

    def first(self, windows: int) -> int:
        """How many of the first ``windows`` windows of the full batch are in this share of it."""
        full_batch = self.full_batch or self
        return -(-windows * len(self.states) // len(full_batch.states))

    def condition(self) -> Cond:
        """What is known when a plan is made at the window's first point."""
        state, returns = self.states[:, 0], self.returns[:, 0]
        return Cond(state, returns, goal=self.goals, time=self.time, stride=self.stride)


@dataclass(frozen=True)
class Cond(Record):
    """What a plan is conditioned on: the current state, the target return-to-go, the goal."""

    state: Tensor  # (B, S)
    returns: Tensor  # (B,)
    goal: Tensor | None = None  # (B, G)
    cond_mask: Tensor | None = None  # (B,) bool; where false the condition is withheld (dropout, guidance)
    time: Tensor | None = None  # (B,) int64, the step of the episode
    stride: Tensor | None = None  # (B,) int64, the environment steps between the points of the plan, of several strides
    past: Batch | None = None  # the last P points, the current one among them, for planners that continue a history

    def __len__(self) -> int:
        return self.state.shape[0]

    def unconditional(self) -> Cond:
        """The same condition, not given: what classifier-free guidance compares with."""
        return replace(self, cond_mask=torch.zeros(len(self), dtype=torch.bool, device=self.state.device))

    def cfg_batch(self) -> Cond:
        """The conditions twice, (2B, ·): as they are, then withheld."""
        twice = self.map(lambda values: torch.cat([values, values]))
        is_conditional = torch.arange(len(twice), device=self.state.device) < len(self)
        return replace(twice, cond_mask=is_conditional if twice.cond_mask is None else is_conditional & twice.cond_mask)


@dataclass(frozen=True)
class Encoding:
    """What a tokenizer makes of windows in one pass."""

    codes: Codes  # (B, L) or (B, L, C)
    inputs: Tensor  # (B, L - l_1, C), the teacher-forcing inputs of scales 2 to K
    latent: Tensor  # (B, N, C)


@dataclass(frozen=True)
class KnownCodes:
    """Codes that are known before any is drawn: the current state, a goal to end at."""

    codes: Codes  # (B, L) or (B, L, C)
    mask: Tensor  # bool, shaped as the codes; true where they are known
    tokens: tuple[bool, ...] | None = None  # which of the L are known in all rows, so that none reads the mask

    def into(self, codes: Codes, span: slice | None = None) -> Codes:
        """Codes (B, n) or (B, n, C) of a span of tokens, the known ones put in their place."""
        span = span or slice(None)
        return torch.where(self.mask[:, span], self.codes[:, span].to(codes.dtype), codes)


@dataclass(frozen=True)
class Plan:
    """A generated trajectory: its codes, the aggregated latent, and the decoded points."""

    codes: Codes
    latent: Tensor  # (B, N, C)
    trajectory: Tensor | None = None  # (B, T, D)
    noise: Tensor | None = None  # (B, H, A), uniform: which of the likely actions are taken, where a head draws them
    stride: Tensor | None = None  # (B,) int64, environment steps between points, where plans have several strides
    goal: Tensor | None = None  # (B, G)
    worth: Tensor | None = None  # (B,), what the critic said of it, where a sampler chose it by one

    def with_rows(self, rows: Tensor, other: Plan) -> Plan:
        """The plans with those of ``other`` in some rows (n,), which lie where the plans do."""
        changed = {}
        for part in fields(self):
            values, others = getattr(self, part.name), getattr(other, part.name)
            if values is not None and others is not None:
                changed[part.name] = values.index_put((rows,), others)
        return replace(self, **changed)


@dataclass(frozen=True)
class FollowedPlan(Record):
    """What is known of plans that have been followed for some steps, when they are revised."""

    codes: Codes  # (B, L)
    state: Tensor  # (B, S) in which they were drawn
    offset: Tensor  # (B,) int64, environment steps since
    worth: Tensor | None = None  # (B,) as `Plan.worth`
