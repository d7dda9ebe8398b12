"""The transformer prior for any schedule: next-scale, next-token and one-shot prediction are the same network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.protocols import Values
from trajgen.core.registry import register
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Codes, Cond
from trajgen.nn.attention import (
    AdaptiveBlock,
    Cache,
    block_causal_mask,
    cache_rows,
    check_heads,
    modulated_norm,
    modulations,
    zero_linear,
)


@dataclass
class DecodeState:
    """The state of a stepwise prediction: the modulations of all scales and layers, and the cache."""

    parts: Tensor  # (L, K or 1, layers, 6, B, 1, W)
    final: Tensor  # (L, K or 1, 2, B, 1, W)
    start: Tensor  # (B, l_1 or 1, W), the input of the first scale
    positions: Tensor  # (L, W)
    cache: Cache

    def rows(self, index: Tensor) -> DecodeState:
        """The states of the plans ``index`` (R,), in that order; a plan may occur more than once."""
        parts, final = self.parts.index_select(3, index), self.final.index_select(2, index)
        return DecodeState(parts, final, self.start[index], self.positions, cache_rows(self.cache, index))


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
        tokenizer: which says what part of a point each token is, if it does (`trajgen.core.protocols.Values`).
        width: features W of each token within the network.
        depth: number of transformer layers.
        heads: attention heads; must divide the width.
        expansion: hidden width of the MLPs in units of W.
        dropout: on the outputs of attention and MLP.
        action_weight: of actions in the loss, beside 1 for other parts of a point: the code of Trajectory Transformer
            (arXiv 2106.02039) has 5. Other than 1 needs a tokenizer of values.
        value_weight: of rewards and returns in the loss, likewise; that code has 1.
        across_agents: of a team, whether the tokens of an agent attend to those of the others; false leaves it those of
            all agents together, and with none of them makes agents independent.

    Raises:
        ConfigError: if the heads do not divide the width, no token is of a field that is weighted, or there are no
            agents to keep apart.
    """

    mask: Tensor | None
    levels: Tensor
    positions: Tensor | None
    token_weights: Tensor | None

    def __init__(
        self,
        schedule: ScaleSchedule,
        code_dim: int,
        vocabulary: int | None,
        conditioner: Any,
        tokenizer: Any,
        *,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        expansion: float = 4.0,
        dropout: float = 0.0,
        action_weight: float = 1.0,
        value_weight: float = 1.0,
        across_agents: bool = True,
    ) -> None:
        super().__init__()
        check_heads(width, heads)
        if not across_agents and schedule.agents[-1] == 1:
            raise ConfigError(
                "prior.across_agents=false needs a view that tells agents apart.",
                got=f"prior.across_agents=false with the scales {schedule}",
                fix="prior.across_agents=true, or view=agents with data of several agents",
            )
        self.schedule, self.vocabulary, self.conditioner = schedule, vocabulary, conditioner
        self.width, self.heads = width, heads
        self.input_proj = nn.Linear(code_dim, width)
        self.start_token = nn.Linear(conditioner.width, width)
        self.pos_embed = nn.Parameter(torch.randn(max(schedule.positions) + 1, width) * 0.02)
        positions = torch.tensor(schedule.positions) if schedule.agents[-1] > 1 else None
        self.register_buffer("positions", positions, persistent=False)
        layers = [AdaptiveBlock(width, heads, expansion, dropout) for _ in range(depth)]
        self.blocks: Sequence[AdaptiveBlock] = cast(Sequence[AdaptiveBlock], nn.ModuleList(layers))
        self.modulation = zero_linear(conditioner.width, 8 * width)
        self.head = nn.Linear(width, vocabulary or code_dim)
        self.across_agents = across_agents
        mask = block_causal_mask(schedule, across_agents)
        self.register_buffer("mask", None if bool(mask.all()) else mask, persistent=False)
        self.register_buffer("levels", torch.tensor(schedule.levels), persistent=False)
        weights = _token_weights(tokenizer, schedule, action_weight, value_weight)
        self.register_buffer("token_weights", weights, persistent=False)

    def forward(self, codes: Codes, inputs: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        """The loss of teacher-forced predictions, and the predictions."""
        logits = self.logits(inputs, cond)
        return self.loss(logits, codes), logits

    def logits(self, inputs: Tensor, cond: Cond) -> Tensor:
        """Predictions (B, L, V or C) from the inputs (B, L - l_1, C) of scales 2 to K."""
        modulation, start, positions = self._condition(cond)
        start = start.expand(-1, self.schedule.lengths[0], -1)
        x = torch.cat([start, self.input_proj(inputs)], dim=1) + positions
        if 1 < modulation.shape[1] < self.schedule.tokens:  # that of one scale is left to broadcast
            modulation = modulation[:, self.levels]
        of_blocks, final = modulation.split([6, 2], dim=-2)
        for block in self.blocks:
            x = block(x, of_blocks, self.mask)
        shift, scale = final.unbind(-2)
        return self.head(modulated_norm(x, shift, 1 + scale))

    def loss(self, logits: Tensor, codes: Codes) -> Tensor:
        """Cross-entropy of token ids (B, L), or squared error of continuous codes (B, L, C), over all tokens."""
        if self.token_weights is None and self.vocabulary is None:
            return F.mse_loss(logits.float(), codes)
        if self.token_weights is None:
            return F.cross_entropy(logits.float().flatten(0, 1), codes.flatten())
        if self.vocabulary is None:
            losses = (logits.float() - codes).square().mean(-1)
        else:
            losses = F.cross_entropy(logits.float().transpose(1, 2), codes, reduction="none")
        return (losses * self.token_weights).mean()

    def start(self, cond: Cond) -> DecodeState:
        """What is computed once per plan, with an empty cache."""
        modulation, start, positions = self._condition(cond)
        of_blocks, final = modulation.split([6, 2], dim=-2)
        shift, scale = final.unbind(-2)
        final = torch.stack([shift, 1 + scale]).permute(2, 0, 1, 3).unsqueeze(-2)
        return DecodeState(modulations(self.blocks, of_blocks), final, start, positions, [None] * len(self.blocks))

    def step(self, x: Tensor | None, k: int, state: DecodeState) -> Tensor:
        """Predictions (B, l_k, V or C) of scale k from its input (B, l_k, C); None at the first scale."""
        tokens = state.start.expand(-1, self.schedule.lengths[0], -1) if x is None else self.input_proj(x)
        span = self.schedule.spans[k]
        tokens = tokens + state.positions[span]
        mask = None if self.across_agents or self.mask is None else self.mask[span, : span.stop]
        if self.schedule.scales < len(state.parts):
            return self._predict(tokens, *self._of_tokens(state, span), state, mask)
        scale = k if len(state.parts) > 1 else 0
        return self._predict(tokens, state.parts[scale], state.final[scale], state, mask)

    def predict_prefix(self, inputs: Tensor, k: int, state: DecodeState) -> Tensor:
        """Predictions (B, n, V or C) of scales 1 to k + 1 in one pass, as their steps would give them.

        Args:
            inputs: of scales 2 to k + 1, (B, n - l_1, C).
            k: number of the last scale, from 0.
            state: with an empty cache, which is filled.
        """
        start = state.start.expand(-1, self.schedule.lengths[0], -1)
        tokens = torch.cat([start, self.input_proj(inputs)], dim=1)
        n = tokens.shape[1]
        tokens, parts, final = tokens + state.positions[:n], state.parts[0], state.final[0]
        if len(state.parts) > 1:
            parts, final = self._of_tokens(state, slice(n))
        return self._predict(tokens, parts, final, state, None if self.mask is None else self.mask[:n, :n])

    def _predict(
        self, tokens: Tensor, parts: Tensor, final: Tensor, state: DecodeState, mask: Tensor | None = None
    ) -> Tensor:
        """Predictions (B, n, V or C) from tokens (B, n, W), given those in the cache, which is extended by them.

        Args:
            tokens: that are predicted from.
            parts, final: their modulations, (layers, 6, B, n or 1, W) and (2, B, n or 1, W).
            state: of the prediction.
            mask: (n, m), of these tokens to them and those in the cache.
        """
        if len(tokens) == 1:  # a single plan needs no batch axis
            tokens = tokens[0]
            axes = (-3, -2) if parts.shape[-2] == 1 else (-3,)
            parts, final = parts.squeeze(axes), final.squeeze(axes)
        for layer, (block, of_block) in enumerate(zip(self.blocks, parts.unbind(0), strict=True)):
            tokens = block.modulated(tokens, of_block.unbind(0), mask, state.cache, layer)
        logits = self.head(modulated_norm(tokens, *final.unbind(0)))
        return logits if logits.ndim == 3 else logits.unsqueeze(0)

    def _condition(self, cond: Cond) -> tuple[Tensor, Tensor, Tensor]:
        """Modulations (B, L, K or 1, 6 of the blocks and 2 of the head, W), start tokens, embedded positions (L, W).

        The start tokens are (B, l_1 or 1, W). Agents share the positions of their tokens.
        """
        embedded = self.conditioner(cond)
        modulation = self.modulation(F.silu(embedded)).unflatten(-1, (8, self.width))
        first = self.schedule.lengths[0] if embedded.shape[1] > self.schedule.scales else 1
        positions = self.pos_embed if self.positions is None else self.pos_embed[self.positions]
        return modulation, self.start_token(embedded[:, :first]), positions

    def _of_tokens(self, state: DecodeState, span: slice) -> tuple[Tensor, Tensor]:
        """The modulations of a span of tokens, each of which has its own or those of its scale."""
        rows = span if self.schedule.scales < len(state.parts) else self.levels[span]
        return state.parts[rows, ..., 0, :].movedim(0, -2), state.final[rows, ..., 0, :].movedim(0, -2)


def _token_weights(tokenizer: Any, schedule: ScaleSchedule, action_weight: float, value_weight: float) -> Tensor | None:
    """Weights (L,) of tokens in the loss, with mean 1; None where all are alike."""
    if action_weight == value_weight == 1:
        return None
    by_field = {"action": action_weight, "reward": value_weight, "return": value_weight}
    fields = tokenizer.fields_of_tokens if isinstance(tokenizer, Values) else ()
    if min(by_field.values()) <= 0 or not set(by_field) & set(fields):
        raise ConfigError(
            "prior.action_weight and prior.value_weight are positive weights of actions, and of rewards and returns.",
            got=f"{action_weight} and {value_weight}, tokens of {', '.join(dict.fromkeys(fields)) or 'learnt codes'}",
            fix="prior.action_weight=1 prior.value_weight=1",
        )
    weights = torch.tensor([by_field.get(field, 1.0) for field in fields])
    weights = weights.repeat(schedule.tokens // len(fields))
    return weights / weights.mean()
