"""The transformer prior for any schedule: next-scale, next-token and one-shot prediction are the same network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.registry import register
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Codes, Cond
from trajgen.nn.attention import AdaptiveBlock, KeyValueCache, block_causal_mask, modulated_norm, modulations


@dataclass
class Progress:
    """A stepwise prediction: the modulations of all scales and layers, computed once, and the cache."""

    parts: Tensor  # (K or 1, layers, 6, B, 1, W)
    final: Tensor  # (K or 1, 2, B, 1, W)
    first: Tensor  # (B, 1, W)
    cache: KeyValueCache

    def rows(self, index: Tensor) -> Progress:
        """The predictions of the plans ``index`` (R,), in that order; a plan may be chosen more than once."""
        final = self.final.index_select(2, index)
        return Progress(self.parts.index_select(3, index), final, self.first[index], self.cache.rows(index))


@register("prior", "transformer")
class TransformerPrior(nn.Module):
    """Block-causal transformer over scales, conditioned at every scale (MAGE, section 3; VAR, arXiv 2404.02905).

    All tokens of a scale are predicted in parallel from all coarser scales and the condition. The condition sets
    the normalization of every layer at every scale, and is the input of the first scale. Discrete codes get a
    categorical distribution, continuous ones a mean.

    Args:
        schedule: the scales; L tokens.
        code_dim: C, the width of the inputs.
        vocabulary: V, or None for continuous codes.
        conditioner: module from `Cond` to embeddings (B, K or 1, E).
        width: W.
        depth: layers.
        heads: attention heads; must divide the width.
        expansion: hidden width of the MLPs in units of W.
        dropout: on the outputs of attention and MLP.

    Raises:
        ConfigError: if the heads do not divide the width.
    """

    mask: Tensor | None
    levels: Tensor

    def __init__(
        self,
        schedule: ScaleSchedule,
        code_dim: int,
        vocabulary: int | None,
        conditioner: nn.Module,
        *,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        expansion: float = 4.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if heads < 1 or width < 1 or width % heads:
            raise ConfigError(
                "The attention heads divide the width; both are at least 1.",
                expected="for example prior.width=128 prior.heads=4",
                got=f"prior.width={width}, prior.heads={heads}",
                fix=f"prior.width={32 * max(heads, 1)} prior.heads={max(heads, 1)}",
            )
        self.schedule, self.vocabulary, self.conditioner = schedule, vocabulary, conditioner
        self.width, self.heads = width, heads
        embedding = int(getattr(conditioner, "width", width))
        self.read = nn.Linear(code_dim, width)
        self.begin = nn.Linear(embedding, width)
        self.position = nn.Parameter(torch.randn(schedule.tokens, width) * 0.02)
        layers = [AdaptiveBlock(width, heads, expansion, dropout) for _ in range(depth)]
        self.blocks: Sequence[AdaptiveBlock] = cast(Sequence[AdaptiveBlock], nn.ModuleList(layers))
        self.modulate = nn.Linear(embedding, 8 * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        self.head = nn.Linear(width, vocabulary or code_dim)
        mask = block_causal_mask(schedule)
        self.register_buffer("mask", None if bool(mask.all()) else mask, persistent=False)
        self.register_buffer("levels", torch.tensor(schedule.levels), persistent=False)

    def forward(self, codes: Codes, inputs: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        """The loss of teacher-forced predictions, and the predictions."""
        logits = self.logits(inputs, cond)
        return self.loss(logits, codes), logits

    def logits(self, inputs: Tensor, cond: Cond) -> Tensor:
        """Predictions (B, L, V or C) from the inputs (B, L - l_1, C) of scales 2 to K."""
        modulation, final, first = self._condition(cond)
        x = torch.cat([first.expand(-1, self.schedule.lengths[0], -1), self.read(inputs)], dim=1) + self.position
        per_token = self._per_token(modulation)
        for block in self.blocks:
            x = block(x, per_token, self.mask)
        shift, scale = self._per_token(final).unbind(-2)
        return self.head(modulated_norm(x, shift, 1 + scale))

    def loss(self, logits: Tensor, codes: Codes) -> Tensor:
        """Cross-entropy of token ids (B, L), or squared error of continuous codes (B, L, C), over all tokens."""
        if self.vocabulary is None:
            return F.mse_loss(logits.float(), codes)
        return F.cross_entropy(logits.float().flatten(0, 1), codes.flatten())

    def start(self, cond: Cond) -> Progress:
        """Everything that is computed once per plan, and an empty cache."""
        modulation, final, first = self._condition(cond)
        shift, scale = final.unbind(-2)
        final = torch.stack([shift, 1 + scale]).permute(2, 0, 1, 3).unsqueeze(-2)
        return Progress(modulations(self.blocks, modulation), final, first, KeyValueCache(len(self.blocks)))

    def step(self, x: Tensor | None, k: int, state: Progress) -> Tensor:
        """Predictions (B, l_k, V or C) of scale k from its input (B, l_k, C); None at the first scale."""
        first = state.first.expand(-1, self.schedule.lengths[0], -1)
        tokens = (first if x is None else self.read(x)) + self.position[self.schedule.spans[k]]
        own = k if len(state.parts) > 1 else 0
        parts, final = state.parts[own], state.final[own]
        if len(tokens) == 1:  # a single plan needs no axis for the batch
            tokens, parts, final = tokens[0], parts.flatten(-3), final.flatten(-3)
        for layer, (block, each) in enumerate(zip(self.blocks, parts.unbind(0), strict=True)):
            tokens = block.modulated(tokens, each.unbind(0), cache=(state.cache, layer))
        predicted = self.head(modulated_norm(tokens, *final.unbind(0)))
        return predicted if predicted.ndim == 3 else predicted.unsqueeze(0)

    def _condition(self, cond: Cond) -> tuple[Tensor, Tensor, Tensor]:
        embedded = self.conditioner(cond)
        six, two = self.modulate(F.silu(embedded)).unflatten(-1, (8, self.width)).split([6, 2], dim=-2)
        return six, two, self.begin(embedded[:, :1])

    def _per_token(self, per_scale: Tensor) -> Tensor:
        """What each of the L tokens gets; a condition that is the same at all scales is left to broadcast."""
        return per_scale if per_scale.shape[1] == 1 else per_scale[:, self.levels]
