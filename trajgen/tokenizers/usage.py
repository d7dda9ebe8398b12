"""How often codes are used."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trajgen.core.schedule import ScaleSchedule


class Usage(nn.Module):
    """Counts how often each code was used at each scale.

    Args:
        schedule: K scales.
        size: V.
    """

    counts: Tensor
    rows: Tensor

    def __init__(self, schedule: ScaleSchedule, size: int) -> None:
        super().__init__()
        self.schedule = schedule
        self.register_buffer("counts", torch.zeros(schedule.scales, size), persistent=False)
        self.register_buffer("rows", torch.tensor(schedule.levels) * size, persistent=False)

    @torch.no_grad()
    def add(self, ids: Tensor) -> None:
        """Counts token ids (B, L)."""
        used = (ids + self.rows).reshape(-1)
        self.counts.view(-1).scatter_add_(0, used, torch.ones_like(used, dtype=self.counts.dtype))

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
