"""The residual pyramid, written once: encoding, teacher forcing, sampling and the latent are views of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.schedule import ScaleSchedule


class Pyramid(nn.Module, ABC):
    """A latent f̂ (B, N, C) as a sum of scales: f̂_k = f̂_{k-1} + grow_k(h_k), h_k (B, l_k, C) the code vectors.

    Scale k describes what the coarser ones left over; its input is f̂_{k-1}, pooled to l_k (VAR, arXiv 2404.02905,
    algorithms 1 and 2). The partial latent is the running sum.

    Args:
        schedule: lengths that end at N.
        code_dim: C.
        length: N.

    Raises:
        ConfigError: if the schedule does not end at N, or a scale is longer than N.
    """

    name = "pyramid"
    empty: Tensor

    def __init__(self, schedule: ScaleSchedule, code_dim: int, length: int) -> None:
        super().__init__()
        if not is_pyramid(schedule, length):
            raise ConfigError(
                "The scales of a residual pyramid end at the latent length, and none is longer.",
                expected=f"a last scale of {length}, as in (1, …, {length})",
                got=f"schedule {schedule}",
                fix=f"{pyramid_schedule(length)}, or another tokenizer.latent_length; "
                "a schedule of single tokens needs a tokenizer whose codes are a row, as vq",
            )
        self.schedule, self.code_dim, self.length = schedule, code_dim, length
        self.register_buffer("empty", torch.zeros(1, length, code_dim), persistent=False)

    @abstractmethod
    def pool(self, z: Tensor, k: int) -> Tensor:
        """A latent (B, N, C), averaged to the length of scale k."""

    @abstractmethod
    def extend(self, partial_latent: Tensor, vectors: Tensor, k: int) -> Tensor:
        """The running sum f̂_k, from f̂_{k-1} and the code vectors of scale k."""

    def start(self, batch: int) -> Tensor:
        """The empty sum f̂_0."""
        return self.empty.repeat(batch, 1, 1)

    def scale_input(self, partial_latent: Tensor, k: int) -> Tensor:
        """The prior's input at scale k: the running sum, pooled to (B, l_k, C)."""
        return self.pool(partial_latent, k)

    def decoded_fraction(self, k: int) -> float:
        """All of the window has been sketched at every scale."""
        return 1.0

    def sums(self, batch: int, pick: Callable[[int, Tensor], Tensor]) -> Iterator[Tensor]:
        """Yields f̂_0 = 0, …, f̂_K, where ``pick(k, f̂_{k-1})`` gives the code vectors of scale k."""
        partial_latent = self.start(batch)
        yield partial_latent
        for k in range(self.schedule.scales):
            partial_latent = self.extend(partial_latent, pick(k, partial_latent), k)
            yield partial_latent

    def partial_latents(self, vectors: Tensor) -> list[Tensor]:
        """All running sums f̂_0 to f̂_K of code vectors (B, L, C)."""
        spans = self.schedule.spans
        return list(self.sums(len(vectors), lambda k, _: vectors[:, spans[k]]))

    def inputs(self, vectors: Tensor) -> Tensor:
        """Code vectors (B, L, C) to the teacher-forcing inputs (B, L - l_1, C) of scales 2 to K."""
        return self._scale_inputs(self.partial_latents(vectors))

    def latent(self, vectors: Tensor) -> Tensor:
        """Code vectors (B, L, C) to their sum f̂_K (B, N, C)."""
        return self.partial_latents(vectors)[-1]

    def encode(self, f: Tensor, quantize: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Describes f (B, N, C) by codes, scale by scale.

        Args:
            f: the latent of the encoder.
            quantize: from vectors (B, n, C) to the code vectors (B, n, C) that are nearest to them.

        Returns:
            The vectors that were quantized (B, L, C), the teacher-forcing inputs (B, L - l_1, C) and f̂_K (B, N, C).
        """
        residuals: list[Tensor] = []

        def residual_codes(k: int, partial_latent: Tensor) -> Tensor:
            residuals.append(self.pool(f - partial_latent.detach(), k))
            return quantize(residuals[-1].detach())

        sums = list(self.sums(len(f), residual_codes))
        return torch.cat(residuals, 1), self._scale_inputs(sums), sums[-1]

    def _scale_inputs(self, partial_latents: list[Tensor]) -> Tensor:
        inputs = [self.scale_input(partial_latents[k], k) for k in range(1, self.schedule.scales)]
        return torch.cat(inputs, dim=1) if inputs else partial_latents[0][:, :0]

    def samples(self, f: Tensor) -> Tensor:
        """f (B, N, C) as all scales would see it alone, (B, L, C): what a codebook may start from."""
        return torch.cat([self.pool(f, k) for k in range(self.schedule.scales)], 1)


class ResidualPyramid(Pyramid):
    """The pyramid of MAGE: pools by averages, grows by linear interpolation and a learnt convolution per scale.

    grow(h) = (1 - r) up(h) + r conv(up(h)); averages and interpolation are kept as matrices.

    Args:
        schedule: lengths that end at N.
        code_dim: C.
        length: N.
        smoothing: weight r of the convolution.

    Raises:
        ConfigError: if the schedule does not end at N, or a scale is longer than N.
    """

    def __init__(self, schedule: ScaleSchedule, code_dim: int, length: int, smoothing: float = 0.5) -> None:
        super().__init__(schedule, code_dim, length)
        self.smoothing = smoothing
        self.convolutions = nn.ModuleList(nn.Conv1d(code_dim, code_dim, 3, padding=1) for _ in schedule)
        for k, n in enumerate(schedule):
            self.register_buffer(f"pool_{k}", resampling(length, n), persistent=False)
            self.register_buffer(f"grow_{k}", resampling(n, length), persistent=False)

    def pool(self, z: Tensor, k: int) -> Tensor:
        """A latent (B, N, C), averaged to the length of scale k."""
        return self.get_buffer(f"pool_{k}") @ z

    def extend(self, partial_latent: Tensor, vectors: Tensor, k: int) -> Tensor:
        """The running sum f̂_k, from f̂_{k-1} and the code vectors of scale k."""
        z = self.get_buffer(f"grow_{k}") @ vectors
        smooth = self.convolutions[k](z.transpose(1, 2)).transpose(1, 2)
        return partial_latent + torch.lerp(z, smooth, self.smoothing)


def is_pyramid(schedule: ScaleSchedule, length: int) -> bool:
    """Whether the scales end at ``length`` and none is longer."""
    return schedule.lengths[-1] == length == max(schedule)


def pyramid_schedule(length: int) -> str:
    """What to type for a schedule that ends at ``length``."""
    return "schedule=geometric" if length >= 4 else f"schedule=geometric schedule.scales={length}"


def resampling(source: int, target: int) -> Tensor:
    """The matrix (target, source) of average pooling, or of linear interpolation where it lengthens."""
    eye = torch.eye(source).unsqueeze(0)
    if target <= source:
        return F.adaptive_avg_pool1d(eye, target)[0].T.contiguous()
    return F.interpolate(eye, size=target, mode="linear", align_corners=False)[0].T.contiguous()
