"""How code vectors make up a latent: as scales of a residual pyramid that add up, or as tokens in a row."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.schedule import ScaleSchedule
from trajgen.nn.agents import fold, resampling_grid, unfold
from trajgen.nn.layers import resampling

Quantize = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From vectors (B, n, C) to the ids (B, n) of the nearest codes and their vectors (B, n, C)."""


class ResidualPyramid(nn.Module):
    """A latent f̂ (B, N, C) as a sum of scales: f̂_k = f̂_{k-1} + grow_k(h_k), h_k (B, l_k, C) the code vectors.

    Scale k quantizes the residual f - f̂_{k-1}; its input is f̂_{k-1}, pooled to l_k (VAR, arXiv 2404.02905, algorithms
    1 and 2). Pools by averages; grow(h) = (1 - r) up(h) + r conv_k(up(h)), with linear interpolation up. The partial
    latent is the running sum.

    The latent of a team is a grid of agents and time. Scales that are of all agents together pool over both axes, and
    grow along both; convolutions run along time. So that what distinguishes agents does not cancel out in their mean,
    each agent's channels are rotated against those of the one before it, and rotated back when they grow.

    Args:
        schedule: lengths that end at N.
        code_dim: C.
        length: N.
        smoothing: weight r of the convolutions.
        identify: whether channels are rotated; without it agents are alike.

    Raises:
        ConfigError: if the schedule does not end at N, or a scale is longer than N.
    """

    empty: Tensor

    def __init__(
        self, schedule: ScaleSchedule, code_dim: int, length: int, smoothing: float = 0.5, identify: bool = True
    ) -> None:
        super().__init__()
        self.agents = schedule.agents[-1]
        points = length // self.agents
        if not is_pyramid(schedule, length):
            geometric = "schedule=geometric" if points >= 4 else f"schedule=geometric schedule.scales={points}"
            raise ConfigError(
                "The scales end at the latent length with none longer (a residual pyramid), or add up to it (a row of "
                "tokens).",
                expected=f"a last and longest scale of {length}, or lengths that add up to {length}",
                got=f"schedule {schedule}, which adds up to {schedule.tokens}",
                fix=f"view=fields for a row of tokens, or {geometric}"
                if self.agents > 1
                else f"{geometric} for a pyramid, or schedule=unit for a row",
            )
        self.schedule, self.code_dim, self.length, self.smoothing = schedule, code_dim, length, smoothing
        self.register_buffer("empty", torch.zeros(1, length, code_dim), persistent=False)
        self.convolutions = nn.ModuleList(nn.Conv1d(code_dim, code_dim, 3, padding=1) for _ in schedule)
        for k, (n, many) in enumerate(zip(schedule, schedule.agents, strict=True)):
            pool = resampling_grid((self.agents, points), (many, n // many))
            grow = resampling_grid((many, n // many), (self.agents, points))
            self.register_buffer(f"pool_{k}", pool, persistent=False)
            self.register_buffer(f"grow_{k}", grow, persistent=False)
        self.rotates = [identify and many < self.agents for many in schedule.agents]
        rotation = torch.arange(code_dim) + torch.arange(self.agents).repeat_interleave(points)[:, None]
        self.register_buffer("rotation", rotation % code_dim, persistent=False)
        self.register_buffer("inverse_rotation", self.get_buffer("rotation").argsort(-1), persistent=False)

    def start(self, batch: int) -> Tensor:
        """The empty sum f̂_0."""
        return self.empty.repeat(batch, 1, 1)

    def extend(self, partial_latent: Tensor, vectors: Tensor, k: int) -> Tensor:
        """The running sum f̂_k, from f̂_{k-1} and the code vectors of scale k."""
        z = self.get_buffer(f"grow_{k}") @ vectors
        if self.rotates[k]:
            z = self._rotated(z, "inverse_rotation")
        rows = z if self.agents == 1 else fold(z, self.agents)
        smooth = self.convolutions[k](rows.transpose(1, 2)).transpose(1, 2)
        smooth = smooth if self.agents == 1 else unfold(smooth, self.agents)
        return partial_latent + torch.lerp(z, smooth, self.smoothing)

    def pool(self, z: Tensor, k: int) -> Tensor:
        """A latent (B, N, C), averaged to the length of scale k, (B, l_k, C)."""
        return self.get_buffer(f"pool_{k}") @ (self._rotated(z, "rotation") if self.rotates[k] else z)

    def _rotated(self, z: Tensor, name: str) -> Tensor:
        return z.gather(-1, self.get_buffer(name).expand(len(z), -1, -1))

    scale_input = pool  # the prior's input at scale k is the running sum f̂_{k-1}, pooled

    def decoded_fraction(self, k: int) -> float:
        """1: every scale covers the whole window."""
        return 1.0

    def inputs(self, vectors: Tensor) -> Tensor:
        """Code vectors (B, L, C) to the teacher-forcing inputs (B, L - l_1, C) of scales 2 to K."""
        partial_latent, inputs = self.start(len(vectors)), []
        for k, span in enumerate(self.schedule.spans[:-1]):
            partial_latent = self.extend(partial_latent, vectors[:, span], k)
            inputs.append(self.pool(partial_latent, k + 1))
        return torch.cat(inputs or [partial_latent[:, :0]], 1)

    def latent(self, vectors: Tensor) -> Tensor:
        """Code vectors (B, L, C) to their sum f̂_K (B, N, C)."""
        return self.after_scales(vectors)[-1]

    def after_scales(self, vectors: Tensor) -> list[Tensor]:
        """Code vectors (B, L, C) to the sums f̂_1, …, f̂_K, (B, N, C) each."""
        sums = [self.start(len(vectors))]
        for k, span in enumerate(self.schedule.spans):
            sums.append(self.extend(sums[-1], vectors[:, span], k))
        return sums[1:]

    def encode(self, f: Tensor, quantize: Quantize) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Quantizes f (B, N, C) scale by scale.

        Args:
            f: the latent of the encoder.
            quantize: see `Quantize`.

        Returns:
            Ids (B, L), the vectors that they stand for (B, L, C), the teacher-forcing inputs (B, L - l_1, C) and f̂_K
            (B, N, C).
        """
        partial_latent, ids, residuals, inputs = self.start(len(f)), [], [], []
        for k in range(self.schedule.scales):
            if k:
                inputs.append(self.pool(partial_latent, k))
            residuals.append(self.pool(f - partial_latent.detach(), k))
            nearest, codes = quantize(residuals[-1].detach())
            ids.append(nearest)
            partial_latent = self.extend(partial_latent, codes, k)
        inputs = inputs or [partial_latent[:, :0]]
        return torch.cat(ids, 1), torch.cat(residuals, 1), torch.cat(inputs, 1), partial_latent

    def samples(self, f: Tensor) -> Tensor:
        """f (B, N, C) pooled to all scales, (B, L, C): vectors from which a codebook can be initialized."""
        return torch.cat([self.pool(f, k) for k in range(self.schedule.scales)], 1)


class TokenRow(nn.Module):
    """A latent (B, N, C) as N code vectors in a row, from the start of the window to its end.

    The partial latent is the tokens so far, with zeros after them. The input of scale k is the scale before, resampled
    from l_{k-1} to l_k vectors where the lengths differ: with single tokens, next-token prediction.

    Args:
        schedule: lengths that add up to N.
        code_dim: C.
        length: N.

    Raises:
        ConfigError: if the lengths do not add up to N.
    """

    empty: Tensor

    def __init__(self, schedule: ScaleSchedule, code_dim: int, length: int) -> None:
        super().__init__()
        if schedule.tokens != length:
            raise ConfigError(
                "The scales of a row add up to the number of tokens.",
                expected=f"lengths that add up to {length}, as (1, …, 1) or ({length})",
                got=f"schedule {schedule}, which adds up to {schedule.tokens}",
                fix="schedule=unit for one token after the other, or schedule=single for all at once",
            )
        self.schedule, self.code_dim, self.length = schedule, code_dim, length
        self.register_buffer("empty", torch.zeros(1, length, code_dim), persistent=False)
        for k, (previous, n) in enumerate(pairwise(schedule), start=1):
            if previous != n:
                self.register_buffer(f"resample_{k}", resampling(previous, n), persistent=False)

    def start(self, batch: int) -> Tensor:
        """The empty row."""
        return self.empty.repeat(batch, 1, 1)

    def extend(self, partial_latent: Tensor, vectors: Tensor, k: int) -> Tensor:
        """A copy of the row with the code vectors (B, l_k, C) of scale k."""
        span = self.schedule.spans[k]
        return torch.slice_scatter(partial_latent, vectors.to(partial_latent.dtype), 1, span.start, span.stop)

    def scale_input(self, partial_latent: Tensor, k: int) -> Tensor:
        """The prior's input (B, l_k, C) at scale k: the scale before; zeros at the first."""
        spans = self.schedule.spans
        if not k:
            return torch.zeros_like(partial_latent[:, spans[0]])
        return self._resampled(partial_latent[:, spans[k - 1]], k)

    def decoded_fraction(self, k: int) -> float:
        """The fraction of the row that scales 0 to k make up."""
        return self.schedule.spans[k].stop / self.length

    def inputs(self, vectors: Tensor) -> Tensor:
        """Code vectors (B, L, C) to the teacher-forcing inputs (B, L - l_1, C) of scales 2 to K."""
        lengths, spans = self.schedule.lengths, self.schedule.spans
        if len(set(lengths)) == 1:  # a shift: rows can have hundreds of tokens
            return vectors[:, : self.length - lengths[0]]
        return torch.cat([self._resampled(vectors[:, spans[k - 1]], k) for k in range(1, len(lengths))], dim=1)

    def latent(self, vectors: Tensor) -> Tensor:
        """The code vectors themselves, (B, N, C)."""
        return vectors

    def after_scales(self, vectors: Tensor) -> list[Tensor]:
        """The code vectors (B, N, C) alone: no scale covers the whole row before the last."""
        return [vectors]

    def encode(self, f: Tensor, quantize: Quantize) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ids (B, N), f (B, N, C) itself, teacher-forcing inputs (B, L - l_1, C), and the code vectors (B, N, C)."""
        ids, vectors = quantize(f.detach())
        return ids, f, self.inputs(vectors), vectors

    def samples(self, f: Tensor) -> Tensor:
        """f itself: vectors from which a codebook can be initialized."""
        return f

    def _resampled(self, vectors: Tensor, k: int) -> Tensor:
        lengths = self.schedule.lengths
        return vectors if lengths[k] == lengths[k - 1] else self.get_buffer(f"resample_{k}") @ vectors


def layout_of(schedule: ScaleSchedule, code_dim: int, length: int, identify: bool = True) -> ResidualPyramid | TokenRow:
    """The layout of a schedule: a residual pyramid if it ends at N, a row if it adds up to N.

    A single scale of N tokens does both, and is a pyramid. The latent of a team is always one.

    Args:
        schedule: the scales.
        code_dim: C.
        length: N.
        identify: of a team, whether its agents are told apart.

    Raises:
        ConfigError: if it does neither.
    """
    if schedule.tokens == length and not is_pyramid(schedule, length) and schedule.agents[-1] == 1:
        return TokenRow(schedule, code_dim, length)
    return ResidualPyramid(schedule, code_dim, length, identify=identify)


def is_pyramid(schedule: ScaleSchedule, length: int) -> bool:
    """Whether the scales end at ``length`` and none is longer."""
    return schedule.lengths[-1] == length == max(schedule)
