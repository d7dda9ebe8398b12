"""A GPT over codes in a row, each predicted from those before it: the network of Decision Transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajgen.core.checks import check_range
from trajgen.core.errors import ConfigError
from trajgen.core.registry import register
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Codes, Cond
from trajgen.nn.attention import Cache, attend, cache_rows, check_heads

INIT_STD = 0.02
"""Standard deviation of GPT-2's initial weights."""


@dataclass
class DecodeState:
    """The state of a stepwise prediction: the start token, the time, and the cache."""

    start: Tensor | None  # (B, 1, W)
    time: Tensor  # (B,), the step of the episode at which the row begins
    cache: Cache

    def rows(self, index: Tensor) -> DecodeState:
        """The states of the plans ``index`` (R,), in that order; a plan may occur more than once."""
        start = None if self.start is None else self.start[index]
        return DecodeState(start, self.time[index], cache_rows(self.cache, index))


@register("prior", "gpt")
class GPTPrior(nn.Module):
    """GPT-2 over codes in a row, with separate input and output layers per type (Decision Transformer, 2106.01345).

    Code j is of type j modulo the period: in Decision Transformer a return, a state or an action (section 3). The
    blocks are those of GPT-2 (Radford et al. 2019, section 2.3). The condition is a prefix of the row, or is ignored.

    Args:
        schedule: scales of one token each; L of them.
        code_dim: C, the width of the inputs.
        vocabulary: V, or None for continuous codes.
        conditioner: module from `Cond` to embeddings (B, K or 1, E), of which the first is used.
        period: codes per point, where each stands for a part of a point; else 1.
        stride: environment steps between points.
        width: features W of each token within the network.
        depth: number of transformer layers.
        heads: attention heads; must divide the width.
        activation: of the MLPs: gelu as in GPT-2, or relu as in Decision Transformer's continuous control.
        dropout: on the embeddings and on the outputs of attention and MLP.
        prefix: start the row with the embedded condition, from which code 0 is predicted. Without it the condition is
            ignored and code 0 has to be known: its prediction is zeros, and is not trained.
        timesteps: how many steps of an episode have a learnt embedding, which all codes of a point get; later steps
            share the last one. 0 leaves it out.
        positions: a learnt embedding of each position in the row.

    Raises:
        ConfigError: if a scale has several tokens, if nothing is left to predict, or if the heads do not divide the
            width.
    """

    mask: Tensor

    def __init__(
        self,
        schedule: ScaleSchedule,
        code_dim: int,
        vocabulary: int | None,
        conditioner: Any,
        period: int,
        stride: int,
        *,
        width: int = 128,
        depth: int = 3,
        heads: int = 4,
        activation: Literal["gelu", "relu"] = "gelu",
        dropout: float = 0.1,
        prefix: bool = True,
        timesteps: int = 0,
        positions: bool = True,
    ) -> None:
        super().__init__()
        _check_schedule(schedule, prefix)
        check_heads(width, heads)
        check_range("prior.timesteps", timesteps, 0, usual=0)
        self.schedule, self.vocabulary, self.out_features = schedule, vocabulary, vocabulary or code_dim
        self.period, self.stride, self.width, self.heads = period, stride, width, heads
        self.skipped = 0 if prefix else 1  # codes that are not predicted
        self.tokens = schedule.tokens - self.skipped
        self.prefix = Prefix(conditioner, width) if prefix else None
        self.input_proj = LinearByType(period, code_dim, width)
        self.time_embed = nn.Embedding(timesteps, width) if timesteps else None
        self.input_norm = nn.LayerNorm(width)
        self.pos_embed = nn.Parameter(torch.randn(self.tokens, width) * INIT_STD) if positions else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(GPTBlock(width, heads, depth, activation, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = LinearByType(period, width, self.out_features)
        if self.time_embed is not None:
            nn.init.normal_(self.time_embed.weight, std=INIT_STD)
        self.register_buffer("mask", torch.ones(self.tokens, self.tokens).tril().bool(), persistent=False)

    def forward(self, codes: Codes, inputs: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        """The loss of teacher-forced predictions, and the predictions."""
        logits = self.logits(inputs, cond)
        return self.loss(logits, codes), logits

    def logits(self, inputs: Tensor, cond: Cond) -> Tensor:
        """Predictions (B, L, V or C) from the inputs (B, L - 1, C): all codes but the last."""
        return F.pad(self.head(self.hidden(inputs, cond), self.skipped), (0, 0, self.skipped, 0))

    def hidden(self, inputs: Tensor, cond: Cond) -> Tensor:
        """The input of the heads: (B, L, W) with a prefix, or (B, L - 1, W) without one."""
        time = _time(cond)
        tokens = self._add_time(self.input_proj(inputs, 0), 0, time)
        if self.prefix is not None:
            tokens = torch.cat([self._add_time(self.prefix(cond), 0, time), tokens], dim=1)
        x = self._embed(tokens, slice(0, self.tokens))
        for block in self.blocks:
            x = block(x, self.mask)
        return self.norm(x)

    def loss(self, logits: Tensor, codes: Codes) -> Tensor:
        """Cross-entropy of token ids (B, L), or squared error of continuous codes (B, L, C), of predicted codes."""
        logits, codes = logits[:, self.skipped :].float(), codes[:, self.skipped :]
        if self.vocabulary is None:
            return F.mse_loss(logits, codes)
        return F.cross_entropy(logits.flatten(0, 1), codes.flatten())

    def start(self, cond: Cond) -> DecodeState:
        """What is computed once per plan, with an empty cache."""
        time = _time(cond)
        start = None if self.prefix is None else self._add_time(self.prefix(cond), 0, time)
        return DecodeState(start, time, [None] * len(self.blocks))

    def step(self, x: Tensor | None, k: int, state: DecodeState) -> Tensor:
        """Predictions (B, 1, V or C) of code k from the code before it (B, 1, C); None at the first."""
        if x is not None:
            tokens = self._add_time(self.input_proj(x, k - 1), k - 1, state.time)
        elif state.start is not None:
            tokens = state.start
        else:
            return self.head.weight.new_zeros(len(state.time), 1, self.out_features)
        x = self._embed(tokens, slice(k - self.skipped, k - self.skipped + 1))
        for layer, block in enumerate(self.blocks):
            x = block(x, None, state.cache, layer)
        return self.head(self.norm(x), k)

    def _add_time(self, tokens: Tensor, first: int, time: Tensor) -> Tensor:
        """Tokens (B, n, W) of the codes from number ``first`` on, with the embedded step of the episode added."""
        if self.time_embed is None:
            return tokens
        codes = torch.arange(first, first + tokens.shape[1], device=tokens.device)
        steps = time.unsqueeze(1) + torch.div(codes, self.period, rounding_mode="floor") * self.stride
        return tokens + self.time_embed(steps.clamp(0, self.time_embed.num_embeddings - 1))

    def _embed(self, tokens: Tensor, span: slice) -> Tensor:
        """The input (B, n, W) of the first block from the tokens of a span of the row."""
        x = self.input_norm(tokens)
        return self.dropout(x if self.pos_embed is None else x + self.pos_embed[span])


class Prefix(nn.Module):
    """The first token of a row, embedded from a condition: (B, ·) to (B, 1, W)."""

    def __init__(self, conditioner: Any, width: int) -> None:
        super().__init__()
        self.conditioner = conditioner
        self.cond_proj = nn.Linear(conditioner.width, width)

    def forward(self, cond: Cond) -> Tensor:
        return self.cond_proj(self.conditioner(cond)[:, :1])


class LinearByType(nn.Module):
    """A linear layer for each type of code; code j is of type j modulo the number of types.

    Args:
        types: their number.
        in_features: width of the inputs.
        out_features: width of the outputs.
    """

    def __init__(self, types: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.types = types
        bound = in_features**-0.5
        self.weight = nn.Parameter(torch.empty(types, out_features, in_features).uniform_(-1, 1) * bound)
        self.bias = nn.Parameter(torch.empty(types, out_features).uniform_(-1, 1) * bound)

    def forward(self, x: Tensor, first: int) -> Tensor:
        """Values (B, n, in) of the codes from number ``first`` on, to (B, n, out)."""
        n, before = x.shape[1], first % self.types
        if n == 1 or self.types == 1:
            return F.linear(x, self.weight[before], self.bias[before])
        by_type = F.pad(x, (0, 0, before, -(before + n) % self.types)).unflatten(1, (-1, self.types))
        out = torch.einsum("bpti,toi->bpto", by_type, self.weight) + self.bias
        return out.flatten(1, 2)[:, before : before + n]


class GPTBlock(nn.Module):
    """A block of GPT-2: attention and MLP, each with pre-normalization and a residual connection.

    Args:
        width: features W of each token within the network.
        heads: attention heads; must divide W.
        depth: of the whole network, with which the initial weights of the residual branches shrink.
        activation: of the MLP, gelu (its tanh form) or relu.
        dropout: on the outputs of attention and MLP.
    """

    def __init__(self, width: int, heads: int, depth: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.act = nn.ReLU() if activation == "relu" else nn.GELU(approximate="tanh")
        self.dropout = nn.Dropout(dropout)
        for layer in (self.qkv, self.out, self.fc1, self.fc2):
            nn.init.normal_(layer.weight, std=INIT_STD)
            nn.init.zeros_(layer.bias)
        for layer in (self.out, self.fc2):
            nn.init.normal_(layer.weight, std=INIT_STD * (2 * depth) ** -0.5)

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: Cache | None = None, layer: int = 0) -> Tensor:
        """Tokens (B, n, W) to tokens (B, n, W): see `attend`."""
        attended = attend(self.qkv(self.norm1(x)), self.heads, mask, cache, layer)
        x = x + self.dropout(self.out(attended))
        return x + self.dropout(self.fc2(self.act(self.fc1(self.norm2(x)))))


def _time(cond: Cond) -> Tensor:
    """The step of the episode at which a row begins, (B,); 0 where it is unknown."""
    return cond.state.new_zeros(len(cond), dtype=torch.long) if cond.time is None else cond.time


def _check_schedule(schedule: ScaleSchedule, prefix: bool) -> None:
    if any(length != 1 for length in schedule):
        raise ConfigError(
            "A GPT predicts one token after the other, and takes scales of one token each.",
            got=f"schedule {schedule}",
            fix="schedule=unit, or prior=transformer for this schedule",
        )
    if schedule.tokens == 1 and not prefix:
        raise ConfigError(
            "prior.prefix=false needs a row of at least two tokens: the first is not predicted.",
            got="prior.prefix=false, schedule (1)",
            fix="prior.prefix=true",
        )
