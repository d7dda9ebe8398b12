"""A GPT over codes in a row, each predicted from those before it: the network of Decision Transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.registry import register
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Codes, Cond
from trajgen.nn.attention import KeyValueCache, attend

DEVIATION = 0.02
"""Of GPT-2's initial weights."""


@dataclass
class Progress:
    """A stepwise prediction: what is computed once, and the cache."""

    first: Tensor | None  # (B, 1, W), the token that opens the row
    time: Tensor  # (B,), the step of the episode at which the row begins
    cache: KeyValueCache

    def rows(self, index: Tensor) -> Progress:
        """The predictions of the plans ``index`` (R,), in that order; a plan may be chosen more than once."""
        first = None if self.first is None else self.first[index]
        return Progress(first, self.time[index], self.cache.rows(index))


@register("prior", "gpt")
class GPTPrior(nn.Module):
    """GPT-2 over codes in a row, with ends of its own for each type of code (Decision Transformer, arXiv 2106.01345).

    Code j is of type j modulo the period: in Decision Transformer a return, a state or an action (section 3). The
    blocks are those of GPT-2 (Radford et al. 2019, section 2.3). The condition opens the row, or is not looked at.

    Args:
        schedule: scales of one token each; L of them.
        code_dim: C, the width of the inputs.
        vocabulary: V, or None for continuous codes.
        conditioner: module from `Cond` to embeddings (B, K or 1, E), of which the first is read.
        period: codes per point, where each stands for a part of a point; else 1.
        stride: environment steps between points.
        width: W.
        depth: layers.
        heads: attention heads; must divide the width.
        activation: of the MLPs: gelu as in GPT-2, or relu as in Decision Transformer's continuous control.
        dropout: on the embeddings and on the outputs of attention and MLP.
        prefix: open the row with the embedded condition, from which code 0 is predicted. Without it the condition is
            not looked at and code 0 is one that is always given: its prediction is zeros, and is not trained.
        timesteps: how many steps of an episode have a learnt embedding, which all codes of a point get; later steps
            share the last one. 0 leaves it out.
        positions: a learnt embedding of each place in the row.

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
        conditioner: nn.Module,
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
        _check_schedule(schedule, prefix, learnt=vocabulary is not None and period == 1)
        _check_sizes(width, heads, timesteps)
        self.schedule, self.vocabulary, self.outputs = schedule, vocabulary, vocabulary or code_dim
        self.period, self.stride, self.width, self.heads = period, stride, width, heads
        self.skipped = 0 if prefix else 1  # codes that are not predicted
        self.tokens = schedule.tokens - self.skipped
        self.opening = Opening(conditioner, width) if prefix else None
        self.read = ByType(period, code_dim, width)
        self.moment = nn.Embedding(timesteps, width) if timesteps else None
        self.embedded = nn.LayerNorm(width)
        self.position = nn.Parameter(torch.randn(self.tokens, width) * DEVIATION) if positions else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, depth, activation, dropout) for _ in range(depth))
        self.final = nn.LayerNorm(width)
        self.head = ByType(period, width, self.outputs)
        if self.moment is not None:
            nn.init.normal_(self.moment.weight, std=DEVIATION)
        self.register_buffer("mask", torch.ones(self.tokens, self.tokens).tril().bool(), persistent=False)

    def forward(self, codes: Codes, inputs: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        """The loss of teacher-forced predictions, and the predictions."""
        logits = self.logits(inputs, cond)
        return self.loss(logits, codes), logits

    def logits(self, inputs: Tensor, cond: Cond) -> Tensor:
        """Predictions (B, L, V or C) from the inputs (B, L - 1, C): all codes but the last."""
        return F.pad(self.head(self.hidden(inputs, cond), self.skipped), (0, 0, self.skipped, 0))

    def hidden(self, inputs: Tensor, cond: Cond) -> Tensor:
        """What the heads read: (B, L, W) from the opening on, or (B, L - 1, W) without one."""
        time = _time(cond)
        row = self._timed(self.read(inputs, 0), 0, time)
        if self.opening is not None:
            row = torch.cat([self._timed(self.opening(cond), 0, time), row], dim=1)
        x = self._placed(row, slice(0, self.tokens))
        for block in self.blocks:
            x = block(x, self.mask)
        return self.final(x)

    def loss(self, logits: Tensor, codes: Codes) -> Tensor:
        """Cross-entropy of token ids (B, L), or squared error of continuous codes (B, L, C), over what is predicted."""
        predicted, known = logits[:, self.skipped :].float(), codes[:, self.skipped :]
        if self.vocabulary is None:
            return F.mse_loss(predicted, known)
        return F.cross_entropy(predicted.flatten(0, 1), known.flatten())

    def start(self, cond: Cond) -> Progress:
        """Everything that is computed once per plan, and an empty cache."""
        time = _time(cond)
        first = None if self.opening is None else self._timed(self.opening(cond), 0, time)
        return Progress(first, time, KeyValueCache(len(self.blocks)))

    def step(self, x: Tensor | None, k: int, state: Progress) -> Tensor:
        """Predictions (B, 1, V or C) of code k from the code before it (B, 1, C); None at the first."""
        if x is not None:
            tokens = self._timed(self.read(x, k - 1), k - 1, state.time)
        elif state.first is not None:
            tokens = state.first
        else:
            return self.head.weight.new_zeros(len(state.time), 1, self.outputs)
        span = slice(k - self.skipped, k - self.skipped + 1)
        tokens = self._placed(tokens, span)
        for layer, block in enumerate(self.blocks):
            tokens = block(tokens, cache=(state.cache, layer))
        return self.head(self.final(tokens), k)

    def _timed(self, tokens: Tensor, first: int, time: Tensor) -> Tensor:
        """Tokens (B, n, W) of the codes from number ``first`` on, with the step of the episode at their points."""
        if self.moment is None:
            return tokens
        codes = torch.arange(first, first + tokens.shape[1], device=tokens.device)
        steps = time.unsqueeze(1) + torch.div(codes, self.period, rounding_mode="floor") * self.stride
        return tokens + self.moment(steps.clamp(0, self.moment.num_embeddings - 1))

    def _placed(self, tokens: Tensor, span: slice) -> Tensor:
        """Tokens (B, n, W) of a span of the row, as they enter the first block."""
        x = self.embedded(tokens)
        return self.dropout(x if self.position is None else x + self.position[span])


class Opening(nn.Module):
    """The token that opens a row: the embedded condition, (B, ·) to (B, 1, W)."""

    def __init__(self, conditioner: nn.Module, width: int) -> None:
        super().__init__()
        self.conditioner = conditioner
        self.begin = nn.Linear(int(getattr(conditioner, "width", width)), width)

    def forward(self, cond: Cond) -> Tensor:
        return self.begin(self.conditioner(cond)[:, :1])


class ByType(nn.Module):
    """A linear map for each type of code; code j is of type j modulo the number of types.

    Args:
        types: how many there are.
        inputs, outputs: widths.
    """

    def __init__(self, types: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.types = types
        self.weight = nn.Parameter(torch.empty(types, outputs, inputs).uniform_(-1, 1) * inputs**-0.5)
        self.bias = nn.Parameter(torch.empty(types, outputs).uniform_(-1, 1) * inputs**-0.5)

    def forward(self, x: Tensor, first: int) -> Tensor:
        """Values (B, n, inputs) of the codes from number ``first`` on, to (B, n, outputs)."""
        n, before = x.shape[1], first % self.types
        if n == 1 or self.types == 1:
            return F.linear(x, self.weight[before], self.bias[before])
        whole = F.pad(x, (0, 0, before, -(before + n) % self.types)).unflatten(1, (-1, self.types))
        every = torch.einsum("bpti,toi->bpto", whole, self.weight) + self.bias
        return every.flatten(1, 2)[:, before : before + n]


class Block(nn.Module):
    """A block of GPT-2: attention and MLP, each normalized first and added to its input.

    Args:
        width: W.
        heads: attention heads; must divide W.
        depth: of the whole network: what each layer adds starts the smaller, the more layers there are.
        activation: of the MLP, gelu (its tanh form) or relu.
        dropout: on the outputs of attention and MLP.
    """

    def __init__(self, width: int, heads: int, depth: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.bend = nn.ReLU() if activation == "relu" else nn.GELU(approximate="tanh")
        self.dropout = nn.Dropout(dropout)
        for layer in (self.qkv, self.out, self.wide, self.narrow):
            nn.init.normal_(layer.weight, std=DEVIATION)
            nn.init.zeros_(layer.bias)
        for layer in (self.out, self.narrow):
            nn.init.normal_(layer.weight, std=DEVIATION * (2 * depth) ** -0.5)

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: tuple[KeyValueCache, int] | None = None) -> Tensor:
        """Tokens (B, n, W) to tokens (B, n, W).

        Args:
            x: the tokens.
            mask: (n, n), true where a token may look; None lets all see all.
            cache: the cache, and this layer's number.
        """
        batch, n, _ = x.shape
        heads = self.qkv(self.before_attention(x)).view(batch, n, 3, self.heads, -1)
        heads = heads.permute(2, 0, 3, 1, 4)  # (3, B, heads, n, ·)
        if cache is None:
            q, k, v = heads.unbind(0)
        else:
            store, layer = cache
            q, (k, v) = heads[0], store.append(layer, heads[1:])
        attended = attend(q, k, v, mask).transpose(1, 2).reshape(batch, n, -1)
        x = x + self.dropout(self.out(attended))
        return x + self.dropout(self.narrow(self.bend(self.wide(self.before_mlp(x)))))


def _time(cond: Cond) -> Tensor:
    """The step of the episode at which a row begins, (B,); its first where that is not said."""
    return cond.state.new_zeros(len(cond), dtype=torch.long) if cond.time is None else cond.time


def _check_schedule(schedule: ScaleSchedule, prefix: bool, learnt: bool) -> None:
    if any(length != 1 for length in schedule):
        raise ConfigError(
            "A GPT predicts one token after the other.",
            expected="a schedule of scales of one token each",
            got=f"{schedule}",
            fix=f"schedule=unit{' tokenizer=vq' if learnt else ''}, or prior=transformer for this schedule",
        )
    if schedule.tokens == 1 and not prefix:
        raise ConfigError(
            "A row of one token has nothing to be predicted from but the condition.",
            expected="prior.prefix=true",
            got="prior.prefix=false, schedule (1)",
            fix="prior.prefix=true",
        )


def _check_sizes(width: int, heads: int, timesteps: int) -> None:
    if heads < 1 or width < 1 or width % heads:
        raise ConfigError(
            "The attention heads divide the width; both are at least 1.",
            expected="for example prior.width=128 prior.heads=4",
            got=f"prior.width={width}, prior.heads={heads}",
            fix=f"prior.width={32 * max(heads, 1)} prior.heads={max(heads, 1)}",
        )
    if timesteps < 0:
        raise ConfigError(
            "prior.timesteps is how many steps of an episode have an embedding.",
            expected="the longest episode's steps, or 0 for none",
            got=f"prior.timesteps={timesteps}",
            fix="prior.timesteps=0",
        )
