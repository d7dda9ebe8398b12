"""Numbers as distributions over bins: regression by classification."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Histogram(nn.Module):
    """Numbers told as the mean of a distribution over evenly spaced bins.

    Trained by cross-entropy against the two bins beside a number, each in proportion to its nearness: the two-hot
    target of arXiv 2403.03950, section 3.1. Where data answer one question in several ways, it learns all of them,
    and where they are bounded it stays within.

    Args:
        bins: K, how many.
        limit: the centers of the outermost bins are at ±limit; numbers beyond count as there.
    """

    centers: Tensor

    def __init__(self, bins: int, limit: float) -> None:
        super().__init__()
        self.limit = limit
        self.register_buffer("centers", torch.linspace(-limit, limit, bins), persistent=False)

    def loss(self, logits: Tensor, values: Tensor) -> Tensor:
        """The cross-entropy (...) of logits (..., K) for values (...)."""
        last = len(self.centers) - 1
        place = (values.clamp(-self.limit, self.limit) + self.limit) * (last / (2 * self.limit))
        below = place.floor().clamp(max=last - 1)
        share = (place - below).unsqueeze(-1)
        index = below.long().unsqueeze(-1)
        likely = logits.float().log_softmax(-1)
        beside = (1 - share) * likely.gather(-1, index) + share * likely.gather(-1, index + 1)
        return -beside.squeeze(-1)

    def mean(self, logits: Tensor) -> Tensor:
        """The numbers (...) that logits (..., K) tell."""
        return logits.float().softmax(-1) @ self.centers

    def draw(self, logits: Tensor, shares: Tensor) -> Tensor:
        """Bins' centers (...) drawn from logits (..., K): where the cumulated probabilities pass ``shares`` (...)."""
        passed = logits.float().softmax(-1).cumsum(-1) < shares.unsqueeze(-1)
        return self.centers[passed.sum(-1).clamp(max=len(self.centers) - 1)]
