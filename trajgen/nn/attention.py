"""Transformer blocks with adaptive normalization, and the cache of keys and values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.schedule import ScaleSchedule

Cache = list[Tensor | None]
"""Keys and values of all tokens so far, (2, B, heads, n, W / heads) for each layer, None before the first.

They grow by concatenation instead of filling preallocated memory: a plan stays a function without side effects, which
can be captured, exported and compiled, and a captured plan has all its memory preallocated anyway.
"""


def block_causal_mask(schedule: ScaleSchedule, across_agents: bool = True) -> Tensor:
    """The mask (L, L) in which a token attends to its own scale and all coarser ones; true where it attends.

    With scales of one token it is the usual causal mask. Without ``across_agents`` an agent's tokens attend to no other
    agent's, but still to those of all agents together.
    """
    levels, agents = torch.tensor(schedule.levels), torch.tensor(schedule.agents_of_tokens)
    is_coarser = levels[:, None] >= levels[None, :]
    is_own = (agents[:, None] == agents[None, :]) | (agents[None, :] < 0)
    return is_coarser if across_agents else is_coarser & is_own


def check_heads(width: int, heads: int, kind: str = "prior") -> None:
    """Raises a `ConfigError` if the attention heads do not divide the width of a component of a kind."""
    if heads < 1 or width < 1 or width % heads:
        raise ConfigError(
            "The attention heads divide the width; both are at least 1.",
            got=f"{kind}.width={width}, {kind}.heads={heads}",
            fix=f"{kind}.width={32 * max(heads, 1)} {kind}.heads={max(heads, 1)}",
        )


def zero_linear(in_features: int, out_features: int) -> nn.Linear:
    """A linear layer that starts at zero, as those of adaptive normalization do."""
    layer = nn.Linear(in_features, out_features)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def cache_rows(cache: Cache, index: Tensor) -> Cache:
    """The cache of the sequences ``index`` (R,), in that order."""
    return [None if layer is None else layer.index_select(1, index) for layer in cache]


def attend(qkv: Tensor, heads: int, mask: Tensor | None = None, cache: Cache | None = None, layer: int = 0) -> Tensor:
    """Multi-head scaled dot-product attention of projected tokens (..., n, 3 W), to (..., n, W).

    Args:
        qkv: queries, keys and values of each token.
        heads: attention heads; must divide W.
        mask: (n, m), true where a token attends; None for full attention.
        cache: whose keys and values are attended to as well, and which is extended by those of the tokens.
        layer: number of the layer in the cache.
    """
    *batch, n, width = qkv.shape
    split = qkv.view(-1, n, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)  # (3, B, heads, n, ·)
    if cache is None:
        q, k, v = split.unbind(0)
    else:
        q, past = split[0], cache[layer]
        cache[layer] = keys_values = split[1:] if past is None else torch.cat([past, split[1:]], dim=3)
        k, v = keys_values.unbind(0)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # The backward pass of the CPU's fused kernel is eight times slower than these products in bfloat16.
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
        attended = scores.softmax(-1).to(v.dtype) @ v
    else:
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return attended.transpose(1, 2).reshape(*batch, n, width // 3)


class AdaptiveBlock(nn.Module):
    """Attention and MLP whose normalization is set by a condition (adaLN-Zero, arXiv 2212.09748, section 3.2).

    The six modulations are computed from the condition once for all layers; a layer adds an offset of its own
    (adaLN-single, arXiv 2310.00426, section 2.3), which needs a sixth of the parameters.

    Args:
        width: W.
        heads: attention heads; must divide W.
        expansion: hidden width of the MLP in units of W.
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

    def forward(self, x: Tensor, modulation: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, n, W) to tokens (B, n, W).

        Args:
            x: the tokens.
            modulation: (B, n or 1, 6, W) from the condition.
            mask: (n, n), true where a token attends; None for full attention.
        """
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (modulation + self.offset).unbind(-2)
        return self.modulated(x, (shift_a, 1 + scale_a, gate_a, shift_m, 1 + scale_m, gate_m), mask)

    def modulated(
        self, x: Tensor, parts: Sequence[Tensor], mask: Tensor | None = None, cache: Cache | None = None, layer: int = 0
    ) -> Tensor:
        """Tokens (B, n, W) to tokens (B, n, W), with modulations computed before.

        Args:
            x: the tokens; (n, W) of a single sequence, which takes fewer operations.
            parts: shift, factor and gate of the attention, then of the MLP, each (B, n or 1, W), or (W,) of a single
                sequence; see `modulations`.
            mask: (n, n), true where a token attends; None for full attention.
            cache: of keys and values, see `attend`.
            layer: number of this block in the cache.
        """
        shift_a, factor_a, gate_a, shift_m, factor_m, gate_m = parts
        attended = attend(self.qkv(modulated_norm(x, shift_a, factor_a)), self.heads, mask, cache, layer)
        x = torch.addcmul(x, gate_a, self.dropout(self.out(attended)))
        return torch.addcmul(x, gate_m, self.dropout(self.mlp(modulated_norm(x, shift_m, factor_m))))


def modulated_norm(x: Tensor, shift: Tensor, factor: Tensor) -> Tensor:
    """Layer normalization of tokens (…, n, W), scaled and shifted by (…, n or 1, W), or by (W,) in one operation."""
    if factor.ndim == 1:
        return F.layer_norm(x, factor.shape, factor, shift)
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), factor)


def modulations(blocks: Iterable[AdaptiveBlock], modulation: Tensor) -> Tensor:
    """The ``parts`` of all blocks for all scales at once, so that a step of sampling only looks them up.

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
