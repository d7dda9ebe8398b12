"""What each kind of component promises. Structural: nothing needs to inherit from these.

Shapes are those of `trajgen.core.types`. A continuous component has ``vocabulary`` None and codes (B, L, C).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import AgentAxis, Batch, Codes, Cond, Encoding, KnownCodes, Losses, Plan


class View(Protocol):
    """Selects the features of a window that the model sees."""

    features: int
    slices: dict[str, slice]
    """Where each field lies among the features."""

    def __call__(self, batch: Batch) -> Tensor:
        """The features (B, T, D) of a batch."""
        ...

    def read(self, x: Tensor, field: str) -> Tensor | None:
        """One field of features (..., D); None if the view does not have it."""
        ...


@runtime_checkable
class TellsAgentsApart(View, Protocol):
    """A view of a team, whose decoder and action head are built for one agent and serve all of them."""

    agent_axis: AgentAxis
    """How the features are those of the agents."""
    of_agent: View
    """The view of an agent's own windows."""


class Layout(Protocol):
    """How code vectors make up a latent, scale by scale.

    The *partial latent* (VAR's f̂) is the latent of the scales drawn so far: for a residual pyramid the running sum of
    all scales, for a row of tokens the tokens so far, with zeros after them.
    """

    def start(self, batch: int) -> Tensor:
        """The empty partial latent (B, N, C)."""
        ...

    def extend(self, partial_latent: Tensor, vectors: Tensor, k: int) -> Tensor:
        """The partial latent with the code vectors (B, l_k, C) of scale k added."""
        ...

    def scale_input(self, partial_latent: Tensor, k: int) -> Tensor:
        """The prior's input (B, l_k, C) at scale k."""
        ...

    def inputs(self, vectors: Tensor) -> Tensor:
        """Code vectors (B, L, C) to the teacher-forcing inputs (B, L - l_1, C) of scales 2 to K."""
        ...

    def latent(self, vectors: Tensor) -> Tensor:
        """Code vectors (B, L, C) to the latent (B, N, C)."""
        ...

    def decoded_fraction(self, k: int) -> float:
        """The fraction of the window, from its start, that is final once scales 0 to k are drawn."""
        ...


@runtime_checkable
class ChoosesScales(Protocol):
    """A schedule whose lengths are chosen from the data, when a training starts."""

    def choose(self, x: Tensor, code_dim: int, bits: float) -> tuple[tuple[int, ...], str]:
        """The lengths for windows (W, T, D) and tokens of C channels and so many bits, and why, in a line."""
        ...


class Tokenizer(Protocol):
    """Turns a window into codes, and codes into code vectors; its layout makes a latent of them."""

    schedule: ScaleSchedule
    layout: Layout
    code_dim: int
    latent_length: int
    vocabulary: int | None

    def encode(self, x: Tensor) -> Encoding:
        """Windows (B, T, D) to codes, teacher-forcing inputs and latent, in one pass and without gradients."""
        ...

    def vectors(self, codes: Codes) -> Tensor:
        """Codes, or relaxed one-hot codes (B, L, V), to code vectors (B, L, C)."""
        ...

    def known_codes(self, cond: Cond) -> KnownCodes | None:
        """The codes that follow from the condition alone; None where codes are learnt."""
        ...

    def loss(self, batch: Batch, x: Tensor, decode: Callable[[Tensor], Tensor]) -> Losses:
        """The losses of one step of the tokenizer's own stage.

        Args:
            batch: whose mask says which points are real.
            x: its windows (B, T, D).
            decode: latent (B, N, C) to trajectory (B, T, D).
        """
        ...

    def after_step(self) -> None:
        """Called after each optimizer step of the tokenizer's stage: moving averages of a codebook."""
        ...

    def usage(self) -> dict[str, float]:
        """How the codes were used since the last call: per scale, the share in use and the perplexity."""
        ...


@runtime_checkable
class HasPoints(Protocol):
    """A tokenizer whose latent determines the trajectory without a decoder."""

    def points(self, latent: Tensor) -> Tensor:
        """Latent (B, N, C) to trajectory (B, T, D)."""
        ...


@runtime_checkable
class Values(HasPoints, Protocol):
    """A tokenizer whose latent is the trajectory itself: each token stands for a point, a field, or a number."""

    period: int
    """Tokens per point."""
    fields_of_tokens: tuple[str, ...]
    """For each token of a point, the field of the view that it belongs to."""

    def spread(self, x: Tensor) -> Tensor:
        """Trajectory (B, T, D) to latent (B, N, C)."""
        ...


@runtime_checkable
class InpaintsPast(Protocol):
    """A tokenizer whose known codes begin with the states of `Cond.past`, where there are any, the current one last."""

    inpaints_past: bool
    """Whether it fixes states at all."""


@runtime_checkable
class Inpaints(Protocol):
    """A tokenizer that tells which parts of its codes follow from any condition."""

    inpaints_goal: bool
    """Whether they end with the goal, with the options that it has."""
    known_tokens: tuple[bool, ...]
    """For each token, whether all of its code is known."""


class Conditioner(Protocol):
    """Embeds what a plan is conditioned on."""

    width: int

    def __call__(self, cond: Cond) -> Tensor:
        """Embeddings (B, K, width), or (B, 1, width) for all scales; of a team (B, L, width), one a token."""
        ...


@runtime_checkable
class DropsCondition(Conditioner, Protocol):
    """A conditioner that withholds parts of conditions in training, for classifier-free guidance."""

    learns_unconditional: bool
    """Whether it does, with the options that it has; without it guidance is refused."""


class Prior(Protocol):
    """A distribution over codes given a condition."""

    def __call__(self, codes: Codes, inputs: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        """One step of training: the loss, and a prediction of the codes that L_cond can follow back.

        Args:
            codes: (B, L) or (B, L, C).
            inputs: the teacher-forcing inputs (B, L - l_1, C) of scales 2 to K.
            cond: B conditions.

        Returns:
            The mean loss, and logits (B, L, V) or continuous codes (B, L, C).
        """
        ...


@runtime_checkable
class SkipsCodes(Protocol):
    """A prior that may leave out the first codes, which then have to follow from the condition."""

    skipped: int
    """The number of codes that are not predicted."""


@runtime_checkable
class Autoregressive(Protocol):
    """A prior that is trained by teacher forcing and drawn scale by scale."""

    def logits(self, inputs: Tensor, cond: Cond) -> Tensor:
        """Teacher-forced predictions (B, L, V or C) from the inputs (B, L - l_1, C) of scales 2 to K."""
        ...

    def loss(self, logits: Tensor, codes: Codes) -> Tensor:
        """The mean loss of predictions (B, L, ·) of ``codes``."""
        ...

    def start(self, cond: Cond) -> Any:
        """The state of a stepwise prediction: what is computed once per plan, and an empty cache."""
        ...

    def step(self, x: Tensor | None, k: int, state: Any) -> Tensor:
        """Predictions (B, l_k, V or C) of scale k from its input (B, l_k, C); None at the first scale."""
        ...


@runtime_checkable
class PredictsPrefix(Autoregressive, Protocol):
    """A prior that predicts all scales up to one in a single pass, where the codes of the coarser ones are given."""

    def predict_prefix(self, inputs: Tensor, k: int, state: Any) -> Tensor:
        """Predictions (B, n, V or C) of scales 1 to k + 1, as their steps would give them.

        Args:
            inputs: of scales 2 to k + 1, (B, n - l_1, C).
            k: number of the last of them, from 0.
            state: as ``start`` gives it; the steps of finer scales follow.
        """
        ...


@runtime_checkable
class Denoising(Protocol):
    """A prior that is drawn by taking noise away, little by little.

    One that can guide by the return has a method ``value(x, t, cond)`` too: the return (B,) expected of noisy codes.
    """

    timesteps: int
    """Levels of noise."""
    beta_schedule: str
    """How noise grows with the level, as diffusers names it."""

    def denoise(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The expected codes (B, L, C), given noisy ones x at noise level t (B,)."""
        ...


@runtime_checkable
class HasVelocity(Protocol):
    """A prior that is drawn by moving noise along a flow."""

    def velocity(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The velocity (B, L, C) of codes x (B, L, C) at times t (B,) from 0, noise, to 1, codes."""
        ...


class Decoder(Protocol):
    """Turns a latent (B, N, C) into a trajectory (B, T, D).

    A partial latent is decoded like a latent: what its scales amount to so far.
    """

    def __call__(self, latent: Tensor, cond: Cond) -> Tensor: ...

    def base(self, latent: Tensor, cond: Cond) -> Tensor:
        """What the base parameters decode alone, before the adapters are trained."""
        ...

    def base_parameters(self) -> list[Any]:
        """Parameters that are trained with the tokenizer."""
        ...

    def adapter_parameters(self) -> list[Any]:
        """Parameters that are trained with the prior: those that read the condition."""
        ...


class ActionHead(Protocol):
    """Reads actions off a plan.

    Trained by the squared error of its actions, unless it is a `HasActionLoss`; one that samples actions is a
    `SamplesActions`.
    """

    reads_trajectory: bool
    """Whether it needs the decoded trajectory, or the latent is enough."""

    def __call__(self, plan: Plan, states: Tensor, offsets: Tensor) -> Tensor:
        """Actions (B, H, A) at H steps after the plan was made.

        Args:
            plan: B plans.
            states: the states (B, H, S) met there.
            offsets: how many environment steps after the plan was made, (B, H) int64.
        """
        ...


@runtime_checkable
class FollowsPlans(Protocol):
    """An action head that can follow a plan beyond the steps at which it was trained."""

    plan_steps: int
    """Environment steps for which a plan can be followed."""


@runtime_checkable
class PlansOneAction(Protocol):
    """A planner whose plans hold the next action alone, so that it plans at every step."""

    plans_one_action: bool


@runtime_checkable
class HasActionLoss(Protocol):
    """An action head with a loss of its own."""

    def loss(self, plan: Plan, states: Tensor, offsets: Tensor, actions: Tensor) -> Tensor:
        """The loss (B, H) of actions (B, H, A)."""
        ...


@runtime_checkable
class SamplesActions(Protocol):
    """An action head that samples its actions."""

    def noise(self, plans: int, rng: Generator | None, device: torch.device) -> Tensor | None:
        """The noise of the actions of B plans, which the planner puts into ``plan.noise``."""
        ...


class Sampler(Protocol):
    """Samples codes from a prior."""

    def __call__(
        self,
        prior: Any,
        tokenizer: Any,
        cond: Cond,
        rng: Generator | None = None,
        known_codes: KnownCodes | None = None,
    ) -> Plan:
        """Codes and latents for the conditions (B, ·); known codes stay as they are."""
        ...


Guide = Callable[[Tensor, Cond], Tensor]
"""From the codes (B, L, C) that a sampler expects in the end, and conditions, to the direction in which they move."""


@runtime_checkable
class FollowsGuide(Protocol):
    """A sampler of continuous codes whose call takes a ``guide`` too (`Guide`; None for none)."""

    follows_guide: bool
    """Always true."""


@runtime_checkable
class RevisesCodes(Protocol):
    """A sampler that can draw the finer scales of plans anew."""

    revises: bool
    """Whether it does, with the prior and the strides that it has."""

    def revise(
        self, prior: Any, tokenizer: Any, cond: Cond, codes: Codes, first: int, rng: Generator | None = None
    ) -> tuple[Plan, Tensor]:
        """Plans whose scales from ``first`` on are drawn anew, and how surprising the coarser codes are.

        Args:
            prior: that is sampled.
            tokenizer: whose layout gives each scale its input.
            cond: B present conditions.
            codes: of the plans that are revised, (B, L).
            first: number of the first scale that is drawn, from 1 to K - 1; those before it stay.
            rng: of the draws.

        Returns:
            The plans, and for each (B,) the negative log likelihood of the codes that stay under the present condition,
            less its expectation: 0 in the mean for codes drawn under that condition.
        """
        ...
