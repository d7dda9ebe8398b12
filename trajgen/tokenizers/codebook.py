"""The codebook: a flat vector quantiser of vector-quantize-pytorch, and how often its codes are used."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

from trajgen.core.schedule import ScaleSchedule


class Codebook(nn.Module):
    """One codebook for all scales, moved by running averages; codes that fall out of use are revived.

    Args:
        size: V.
        code_dim: C.
        decay: of the running averages.
        revive_below: a code whose running count falls below this is replaced by a vector of the batch.
        commitment: weight of the loss that keeps vectors near their codes.
    """

    def __init__(
        self,
        size: int,
        code_dim: int,
        *,
        decay: float = 0.9,
        revive_below: float = 1.0,
        commitment: float = 0.25,
    ) -> None:
        super().__init__()
        self.quantiser = VectorQuantize(
            dim=code_dim,
            codebook_size=size,
            decay=decay,
            kmeans_init=True,
            threshold_ema_dead_code=revive_below,
            commitment_weight=commitment,
            rotation_trick=False,
        )
        self._started = False

    @property
    def started(self) -> bool:
        """Whether the codes have seen data; asked of the device only until they have."""
        self._started = self._started or bool(self.quantiser._codebook.initted)
        return self._started

    @property
    def table(self) -> Tensor:
        """All code vectors (V, C)."""
        return self.quantiser.codebook

    def nearest(self, x: Tensor) -> Tensor:
        """Token ids (B, n) of the codes nearest to x (B, n, C)."""
        return torch.cdist(x.float(), self.table).argmin(-1)

    def learn(self, x: Tensor) -> Tensor:
        """Moves the codes towards x (B, n, C) once, and returns the commitment loss.

        The codes of the very first call are the k-means centres of x.
        """
        return self.quantiser(x)[2].sum()


class Usage(nn.Module):
    """Counts how often each code was used at each scale.

    Args:
        schedule: K scales.
        size: V.
    """

    counts: Tensor

    def __init__(self, schedule: ScaleSchedule, size: int) -> None:
        super().__init__()
        self.schedule = schedule
        self.register_buffer("counts", torch.zeros(schedule.scales, size), persistent=False)

    @torch.no_grad()
    def add(self, ids: Tensor) -> None:
        """Counts token ids (B, L)."""
        for k, span in enumerate(self.schedule.spans):
            used = ids[:, span].reshape(-1)
            self.counts[k].scatter_add_(0, used, torch.ones_like(used, dtype=self.counts.dtype))

    def take(self) -> dict[str, float]:
        """Per scale and overall, the share of codes in use and their perplexity; starts counting anew."""
        rows = torch.cat([self.counts, self.counts.sum(0, keepdim=True)])
        shares = rows / rows.sum(1, keepdim=True).clamp(min=1)
        perplexity = torch.special.entr(shares).sum(1).exp()
        used = (rows > 0).float().mean(1)
        self.counts.zero_()
        names = [f"scale_{k + 1}" for k in range(self.schedule.scales)] + ["all"]
        return {
            f"{label}/{name}": float(value)
            for label, values in (("usage", used), ("perplexity", perplexity))
            for name, value in zip(names, values, strict=True)
        }
