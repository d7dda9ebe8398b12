"""Transformer blocks with adaptive normalisation and a cache of keys and values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajgen.core.schedule import ScaleSchedule


def block_causal_mask(schedule: ScaleSchedule) -> Tensor:
    """The mask (L, L) in which a token sees its own scale and all coarser ones; true where it may look.

    Blocks of one token make it the usual causal mask.
    """
    levels = torch.tensor(schedule.levels)
    return levels[:, None] >= levels[None, :]


class KeyValueCache:
    """Keys and values of all tokens so far, in memory set aside once: per layer (2, B, heads, L, W / heads)."""

    def __init__(self, depth: int, batch: int, heads: int, tokens: int, width: int, like: Tensor) -> None:
        self.slots = like.new_empty(depth, 2, batch, heads, tokens, width // heads)

    def append(self, layer: int, span: slice, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores keys and values of a span of tokens; returns those of all tokens up to its end."""
        slot = self.slots[layer]
        slot[0, :, :, span] = keys
        slot[1, :, :, span] = values
        return slot[0, :, :, : span.stop], slot[1, :, :, : span.stop]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention of queries, keys and values (B, heads, n, W / heads)."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # The CPU's fused kernel is eight times slower than these products in bfloat16, going backward.
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return scores.softmax(-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class AdaptiveBlock(nn.Module):
    """Attention and MLP whose normalisation is set by a condition (adaLN-Zero, arXiv 2212.09748, section 3.2).

    The six modulations are computed once for all layers from the condition; a layer adds its own offset
    (adaLN-single, arXiv 2310.00426, section 2.3), which costs a sixth of the parameters.

    Args:
        width: W.
        heads: attention heads; must divide W.
        expansion: the MLP's hidden width in units of W.
        dropout: on the outputs of attention and MLP.
    """

    def __init__(self, width: int, heads: int, expansion: float = 4.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        hidden = int(width * expansion)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, width))
        self.offset = nn.Parameter(torch.zeros(6, width))
        self.dropout = nn.Dropout(dropout)
        self.width = width

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        mask: Tensor | None = None,
        cache: tuple[KeyValueCache, int, slice] | None = None,
    ) -> Tensor:
        """Tokens (B, n, W) to tokens (B, n, W).

        Args:
            x: the tokens.
            modulation: (B, n or 1, 6, W) from the condition.
            mask: (n, n), true where a token may look; None lets all see all.
            cache: the cache, this layer's number, and the span of ``x`` among all tokens.
        """
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (modulation + self.offset).unbind(-2)
        batch, n, _ = x.shape
        normed = torch.addcmul(shift_a, F.layer_norm(x, (self.width,)), 1 + scale_a)
        q, k, v = self.qkv(normed).view(batch, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, n, ·)
        if cache is not None:
            store, layer, span = cache
            k, v = store.append(layer, span, k, v)
        attended = attend(q, k, v, mask).transpose(1, 2).reshape(batch, n, -1)
        x = torch.addcmul(x, gate_a, self.dropout(self.out(attended)))
        normed = torch.addcmul(shift_m, F.layer_norm(x, (self.width,)), 1 + scale_m)
        return torch.addcmul(x, gate_m, self.dropout(self.mlp(normed)))
