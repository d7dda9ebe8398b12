"""Regression by classification: numbers as distributions over bins."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Histogram(nn.Module):
    """Represents a number as the mean of a distribution over evenly spaced bins.

    Trained by cross-entropy against the two bins next to a number, weighted by nearness (the two-hot target of
    arXiv 2403.03950, section 3.1). Learns all answers where data are multimodal, and stays within their bounds.

    Args:
        num_bins: K.
        limit: the centers of the outermost bins are at ±limit; numbers beyond are clamped.
    """

    centers: Tensor

    def __init__(self, num_bins: int, limit: float) -> None:
        super().__init__()
        self.limit = limit
        self.register_buffer("centers", torch.linspace(-limit, limit, num_bins), persistent=False)

    def loss(self, logits: Tensor, values: Tensor) -> Tensor:
        """The cross-entropy (...) of logits (..., K) for values (...)."""
        last = len(self.centers) - 1
        position = (values.clamp(-self.limit, self.limit) + self.limit) * (last / (2 * self.limit))
        lower = position.floor().clamp(max=last - 1)
        weight = (position - lower).unsqueeze(-1)
        index = lower.long().unsqueeze(-1)
        log_probs = logits.float().log_softmax(-1)
        two_hot = (1 - weight) * log_probs.gather(-1, index) + weight * log_probs.gather(-1, index + 1)
        return -two_hot.squeeze(-1)

    def mean(self, logits: Tensor) -> Tensor:
        """The means (...) of the distributions of logits (..., K)."""
        return logits.float().softmax(-1) @ self.centers

    def quantile(self, logits: Tensor, level: float) -> Tensor:
        """Quantiles (...) of the distributions of logits (..., K), each bin's probability spread evenly over it."""
        probabilities = logits.float().softmax(-1)
        cdf = probabilities.cumsum(-1)
        index = (cdf < level).sum(-1, keepdim=True).clamp(max=len(self.centers) - 1)
        probability = probabilities.gather(-1, index)
        inside = (level - cdf.gather(-1, index)) / probability.clamp(min=1e-9) + 0.5  # bins, from the center
        width = 2 * self.limit / (len(self.centers) - 1)
        return (self.centers[index] + inside.clamp(-0.5, 0.5) * width).squeeze(-1)

    def sample(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Bin centers (...) sampled from logits (..., K) by the inverse of the cdf at ``uniform`` (...)."""
        below = logits.float().softmax(-1).cumsum(-1) < uniform.unsqueeze(-1)
        return self.centers[below.sum(-1).clamp(max=len(self.centers) - 1)]
