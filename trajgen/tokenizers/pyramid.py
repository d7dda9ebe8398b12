"""The residual pyramid, written once: encoding, teacher forcing, sampling and the latent are views of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.schedule import ScaleSchedule


class ResidualPyramid(nn.Module):
    """A latent f̂ (B, N, C) as a sum of scales: f̂_k = f̂_{k-1} + smooth(up(h_k)), h_k (B, l_k, C) the code vectors.

    Scale k describes what the coarser ones left over; its input is f̂_{k-1}, pooled to l_k (VAR, arXiv 2404.02905,
    algorithms 1 and 2). Pooling is by averages and growing by linear interpolation, both kept as matrices.

    Args:
        schedule: lengths that end at N.
        code_dim: C.
        length: N.
        smoothing: weight r of the learnt convolution in smooth(z) = (1 - r) z + r conv(z).

    Raises:
        ConfigError: if the schedule does not end at N, or a scale is longer than N.
    """

    def __init__(self, schedule: ScaleSchedule, code_dim: int, length: int, smoothing: float = 0.5) -> None:
        super().__init__()
        if schedule.lengths[-1] != length or max(schedule) > length:
            raise ConfigError(
                "The scales of a residual pyramid end at the latent length, and none is longer.",
                expected=f"a last scale of {length}, as in (1, …, {length})",
                got=f"schedule {schedule}",
                fix="schedule=geometric, or another tokenizer.latent_length; "
                "a schedule of single tokens needs a tokenizer of one scale",
            )
        self.schedule, self.code_dim, self.length, self.smoothing = schedule, code_dim, length, smoothing
        self.convolutions = nn.ModuleList(nn.Conv1d(code_dim, code_dim, 3, padding=1) for _ in schedule)
        for k, n in enumerate(schedule):
            self.register_buffer(f"pool_{k}", _resampling(length, n), persistent=False)
            self.register_buffer(f"grow_{k}", _resampling(n, length), persistent=False)

    def pool(self, z: Tensor, k: int) -> Tensor:
        """A latent (B, N, C), averaged to the length of scale k."""
        return self.get_buffer(f"pool_{k}") @ z

    def extend(self, canvas: Tensor, vectors: Tensor, k: int) -> Tensor:
        """The running sum f̂_k, from f̂_{k-1} and the code vectors of scale k."""
        z = self.get_buffer(f"grow_{k}") @ vectors
        smooth = self.convolutions[k](z.transpose(1, 2)).transpose(1, 2)
        return canvas + torch.lerp(z, smooth, self.smoothing)

    def sums(self, batch: int, pick: Callable[[int, Tensor], Tensor]) -> Iterator[Tensor]:
        """Yields f̂_0 = 0, …, f̂_K, where ``pick(k, f̂_{k-1})`` gives the code vectors of scale k."""
        canvas = self.start(batch)
        yield canvas
        for k in range(self.schedule.scales):
            canvas = self.extend(canvas, pick(k, canvas), k)
            yield canvas

    def start(self, batch: int) -> Tensor:
        """The empty sum f̂_0."""
        return self.get_buffer("grow_0").new_zeros(batch, self.length, self.code_dim)

    def given(self, vectors: Tensor) -> list[Tensor]:
        """All running sums f̂_0 to f̂_K of code vectors (B, L, C)."""
        spans = self.schedule.spans
        return list(self.sums(len(vectors), lambda k, _: vectors[:, spans[k]]))


def _resampling(source: int, target: int) -> Tensor:
    """The matrix (target, source) of average pooling, or of linear interpolation where it lengthens."""
    eye = torch.eye(source).unsqueeze(0)
    if target <= source:
        return F.adaptive_avg_pool1d(eye, target)[0].T.contiguous()
    return F.interpolate(eye, size=target, mode="linear", align_corners=False)[0].T.contiguous()
