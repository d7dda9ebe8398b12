"""Candidates of a search: the likeliest or random joint choices of the codes of a scale."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from trajgen.samplers.autoregressive import draw


def likeliest(logits: Tensor, count: int) -> Tensor:
    """The ``count`` likeliest of all joint choices of n independent tokens, exactly.

    The best choices of i + 1 tokens continue best choices of i tokens by one of the best tokens.

    Args:
        logits: (R, n, V), of which sums are compared: log probabilities up to a constant per token.
        count: E; fewer are returned where there are fewer.

    Returns:
        Ids (R, E, n), the likeliest first.
    """
    best, ids = logits.new_zeros(len(logits), 1), logits.new_zeros(len(logits), 1, 0, dtype=torch.int64)
    for token in logits.unbind(1):
        top, index = token.topk(min(count, token.shape[-1]), dim=-1)
        sums = (best.unsqueeze(2) + top.unsqueeze(1)).flatten(1)
        best, pick = sums.topk(min(count, sums.shape[1]), dim=-1)
        before = (pick // top.shape[1]).unsqueeze(-1).expand(-1, -1, ids.shape[-1])
        last = index.gather(1, pick % top.shape[1]).unsqueeze(-1)
        ids = torch.cat([ids.gather(1, before), last], dim=-1)
    return ids


def sample_candidates(logits: Tensor, count: int, rng: Generator | None) -> Tensor:
    """Ids (R, E, n) sampled from softmax(logits (R, n, V)); of more than one, the likeliest is the first.

    A single token is drawn without replacement: the E largest of logits plus Gumbel noise (arXiv 1903.06059). Joint
    draws of several tokens may repeat.
    """
    mode = logits.argmax(-1)
    if logits.shape[1] > 1:
        ids = draw(logits.unsqueeze(1).expand(-1, count, -1, -1), rng)
        return torch.cat([mode.unsqueeze(1), ids[:, 1:]], dim=1) if count > 1 else ids
    perturbed = logits[:, 0] - torch.empty_like(logits[:, 0]).exponential_(generator=rng).log()
    if count > 1:
        perturbed = perturbed.scatter(-1, mode, torch.inf)
    return perturbed.topk(min(count, logits.shape[-1]), dim=-1).indices.unsqueeze(-1)


def is_repeated(ids: Tensor) -> Tensor:
    """Whether a candidate (R, E, n) equals an earlier one, (R, E)."""
    same = (ids.unsqueeze(1) == ids.unsqueeze(2)).all(-1)
    return same.tril(-1).any(-1)
