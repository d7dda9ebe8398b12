"""Transformer blocks with adaptive normalization and a cache of keys and values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
    """Keys and values of all tokens so far, per layer (2, B, heads, n, W / heads).

    They grow by concatenation, not in memory set aside: a plan is then a function without side effects, which can be
    captured, exported and compiled as it stands; a captured plan has all its memory set aside anyway.
    """

    def __init__(self, depth: int) -> None:
        self.layers: list[Tensor | None] = [None] * depth

    def append(self, layer: int, both: Tensor) -> tuple[Tensor, ...]:
        """Adds keys and values (2, B, heads, n, ·) of n more tokens; returns those of all."""
        past = self.layers[layer]
        every = both if past is None else torch.cat([past, both], dim=3)
        self.layers[layer] = every
        return every.unbind(0)

    def rows(self, index: Tensor) -> KeyValueCache:
        """The same of the sequences ``index`` (R,), in that order."""
        chosen = KeyValueCache(len(self.layers))
        chosen.layers = [None if kept is None else kept.index_select(1, index) for kept in self.layers]
        return chosen


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
    """Attention and MLP whose normalization is set by a condition (adaLN-Zero, arXiv 2212.09748, section 3.2).

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
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.width = width

    def forward(self, x: Tensor, modulation: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, n, W) to tokens (B, n, W).

        Args:
            x: the tokens.
            modulation: (B, n or 1, 6, W) from the condition.
            mask: (n, n), true where a token may look; None lets all see all.
        """
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (modulation + self.offset).unbind(-2)
        return self.modulated(x, (shift_a, 1 + scale_a, gate_a, shift_m, 1 + scale_m, gate_m), mask)

    def modulated(
        self,
        x: Tensor,
        parts: Sequence[Tensor],
        mask: Tensor | None = None,
        cache: tuple[KeyValueCache, int] | None = None,
    ) -> Tensor:
        """Tokens (B, n, W) to tokens (B, n, W), by modulations that are ready.

        Args:
            x: the tokens; (n, W) of a single sequence, which takes fewer operations.
            parts: shift, factor and gate of the attention, then of the MLP, each (B, n or 1, W), or (W,) of a single
                sequence; see `modulations`.
            mask: (n, n), true where a token may look; None lets all see all.
            cache: the cache, and this layer's number.
        """
        shift_a, factor_a, gate_a, shift_m, factor_m, gate_m = parts
        width = x.shape[-1] // self.heads
        heads = self.qkv(modulated_norm(x, shift_a, factor_a)).view(-1, x.shape[-2], 3, self.heads, width)
        heads = heads.permute(2, 0, 3, 1, 4)  # (3, B, heads, n, ·)
        if cache is None:
            q, k, v = heads.unbind(0)
        else:
            store, layer = cache
            q, (k, v) = heads[0], store.append(layer, heads[1:])
        attended = attend(q, k, v, mask).transpose(1, 2).reshape(x.shape)
        x = torch.addcmul(x, gate_a, self.dropout(self.out(attended)))
        return torch.addcmul(x, gate_m, self.dropout(self.mlp(modulated_norm(x, shift_m, factor_m))))


def modulated_norm(x: Tensor, shift: Tensor, factor: Tensor) -> Tensor:
    """Layer normalization of tokens (…, n, W), scaled and shifted by (…, n or 1, W), or by (W,) in one operation."""
    if factor.ndim == 1:
        return F.layer_norm(x, factor.shape, factor, shift)
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), factor)


def modulations(blocks: Iterable[AdaptiveBlock], modulation: Tensor) -> Tensor:
    """What all blocks take as ``parts``, for every scale at once, so that a step of sampling has only to look it up.

    Args:
        blocks: D of them.
        modulation: (B, K, 6, W) from the condition.

    Returns:
        (K, D, 6, B, 1, W).
    """
    total = modulation.unsqueeze(2) + torch.stack([block.offset for block in blocks])  # (B, K, D, 6, W)
    shift, scale, gate = total.unflatten(-2, (2, 3)).unbind(-2)
    parts = torch.stack([shift, 1 + scale, gate], dim=-2).flatten(-3, -2)
    return parts.permute(1, 2, 3, 0, 4).unsqueeze(-2).contiguous()
