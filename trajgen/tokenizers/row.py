"""A row of tokens: the partial latent of codes that follow each other instead of adding up."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.schedule import ScaleSchedule
from trajgen.tokenizers.pyramid import resampling


class TokenRow(nn.Module):
    """A latent (B, N, C) as N code vectors in a row, drawn from its start to its end.

    The partial latent is the row so far, with zeros after it. The input of scale k is what was drawn last, resampled
    from l_{k-1} to l_k vectors where the lengths differ: with single tokens, the token before (next-token prediction).

    Args:
        schedule: lengths that add up to N.
        code_dim: C.
        length: N.

    Raises:
        ConfigError: if the lengths do not add up to N.
    """

    name = "row"
    empty: Tensor

    def __init__(self, schedule: ScaleSchedule, code_dim: int, length: int) -> None:
        super().__init__()
        if not is_row(schedule, length):
            raise ConfigError(
                "The scales of a row of tokens share it out: their lengths add up to the number of tokens.",
                expected=f"lengths that add up to {length}, as (1, …, 1) or ({length})",
                got=f"schedule {schedule}, which adds up to {schedule.tokens}",
                fix="schedule=unit for one token after the other, or schedule=single for all at once",
            )
        self.schedule, self.code_dim, self.length = schedule, code_dim, length
        self.register_buffer("empty", torch.zeros(1, length, code_dim), persistent=False)
        for k, (before, own) in enumerate(pairwise(schedule), start=1):
            if before != own:
                self.register_buffer(f"resample_{k}", resampling(before, own), persistent=False)

    def start(self, batch: int) -> Tensor:
        """The empty row."""
        return self.empty.repeat(batch, 1, 1)

    def extend(self, partial_latent: Tensor, vectors: Tensor, k: int) -> Tensor:
        """The row with the vectors (B, l_k, C) of scale k put in their place; the row given stays as it is."""
        span = self.schedule.spans[k]
        return torch.slice_scatter(partial_latent, vectors.to(partial_latent.dtype), 1, span.start, span.stop)

    def scale_input(self, partial_latent: Tensor, k: int) -> Tensor:
        """The vectors of scale k - 1, (B, l_k, C); zeros at the first scale, which has none before it."""
        spans = self.schedule.spans
        return (
            self._resampled(partial_latent[:, spans[k - 1]], k) if k else torch.zeros_like(partial_latent[:, spans[0]])
        )

    def decoded_fraction(self, k: int) -> float:
        """The share of the row that is drawn once scale k is."""
        return self.schedule.spans[k].stop / self.length

    def inputs(self, vectors: Tensor) -> Tensor:
        """Code vectors (B, L, C) to the inputs (B, L - l_1, C) of scales 2 to K."""
        lengths, spans = self.schedule.lengths, self.schedule.spans
        if len(set(lengths)) == 1:  # a shift: rows can have hundreds of tokens
            return vectors[:, : self.length - lengths[0]]
        return torch.cat([self._resampled(vectors[:, spans[k - 1]], k) for k in range(1, len(lengths))], dim=1)

    def latent(self, vectors: Tensor) -> Tensor:
        """The code vectors themselves, (B, N, C)."""
        return vectors

    def encode(self, f: Tensor, quantize: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Describes f (B, N, C) by codes.

        Args:
            f: the latent of the encoder.
            quantize: from vectors (B, N, C) to the code vectors (B, N, C) that are nearest to them.

        Returns:
            f itself, the teacher-forcing inputs (B, L - l_1, C), and the code vectors (B, N, C).
        """
        vectors = quantize(f.detach())
        return f, self.inputs(vectors), vectors

    def samples(self, f: Tensor) -> Tensor:
        """f itself: what a codebook may start from."""
        return f

    def _resampled(self, vectors: Tensor, k: int) -> Tensor:
        lengths = self.schedule.lengths
        return vectors if lengths[k] == lengths[k - 1] else self.get_buffer(f"resample_{k}") @ vectors


def is_row(schedule: ScaleSchedule, length: int) -> bool:
    """Whether the lengths of the scales add up to ``length``."""
    return schedule.tokens == length
