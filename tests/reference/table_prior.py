"""A prior that looks its logits up, small enough that all its sequences can be enumerated."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trajgen.core.normalizer import Normalizer
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Cond
from trajgen.critics.plans import PlannedReturn
from trajgen.samplers.beam import Beam
from trajgen.samplers.scoring import PlanScore
from trajgen.views import FieldView

VOCABULARY, TOKENS = 3, 4
ALL = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=TOKENS)))  # (81, 4)
UNIT = ScaleSchedule((1,) * TOKENS)
DISCOUNT, STRIDE = 0.9, 2
SCHEDULES = [UNIT, ScaleSchedule((1, 3)), ScaleSchedule((2, 2)), ScaleSchedule((4,))]


class Row:
    """Tokens in a row whose vectors are one-hot; a scale sees the tokens of the scale before it."""

    vocabulary = VOCABULARY

    def __init__(self, schedule: ScaleSchedule) -> None:
        self.schedule, self.layout = schedule, self

    def vectors(self, codes: Tensor) -> Tensor:
        return codes if codes.is_floating_point() else F.one_hot(codes, VOCABULARY).float()

    def latent(self, vectors: Tensor) -> Tensor:
        return vectors

    def start(self, batch: int) -> Tensor:
        return torch.zeros(batch, TOKENS, VOCABULARY)

    def extend(self, partial_latent: Tensor, vectors: Tensor, k: int) -> Tensor:
        extended = partial_latent.clone()
        extended[:, self.schedule.spans[k]] = vectors
        return extended

    def scale_input(self, partial_latent: Tensor, k: int) -> Tensor:
        return partial_latent[:, self.schedule.spans[k - 1]]

    def decoded_fraction(self, k: int) -> float:
        return self.schedule.spans[k].stop / TOKENS


@dataclass
class Memory:
    """What a plan's steps have seen: the number that its tokens make, and the target return."""

    prefix: Tensor  # (B,)
    returns: Tensor  # (B,)


class Chosen(Memory):
    """The same, and it can be chosen from."""

    def rows(self, index: Tensor) -> Chosen:
        return Chosen(self.prefix[index], self.returns[index])


class Table:
    """A prior that looks logits up by all tokens before; the target return tilts them."""

    def __init__(self, schedule: ScaleSchedule, state: type[Memory] = Chosen) -> None:
        draw = torch.Generator().manual_seed(3)
        self.schedule, self.state = schedule, state
        self.tables = [
            2 * torch.randn(VOCABULARY**span.start, span.stop - span.start, VOCABULARY, generator=draw)
            for span in schedule.spans
        ]
        self.tilts = [torch.randn(n, VOCABULARY, generator=draw) for n in schedule]

    def start(self, cond: Cond) -> Memory:
        return self.state(torch.zeros(len(cond), dtype=torch.long), cond.returns)

    def step(self, x: Tensor | None, k: int, state: Memory) -> Tensor:
        for token in [] if x is None else x.argmax(-1).unbind(1):
            state.prefix = state.prefix * VOCABULARY + token
        return self.tables[k][state.prefix] + state.returns[:, None, None] * self.tilts[k]

    def likelihoods(self, cond: Cond) -> Tensor:
        """Of every sequence, (B, 81)."""
        result = torch.zeros(len(cond), len(ALL))
        for i, codes in enumerate(ALL):
            state, x = self.start(cond), None
            for k, span in enumerate(self.schedule.spans):
                logp = self.step(x, k, state).log_softmax(-1)
                tokens = codes[span].expand(len(cond), -1)
                result[:, i] += logp.gather(-1, tokens.unsqueeze(-1)).sum((1, 2))
                x = F.one_hot(tokens, VOCABULARY).float()
        return result


def make_value(points: int) -> tuple[PlanScore, Any]:
    """What plans are worth, and a decoder that gives each of the points a reward and a return by its tokens."""
    draw = torch.Generator().manual_seed(5)
    rates = torch.randn(TOKENS, VOCABULARY, 2, generator=draw)
    normalizer = Normalizer(1, 1)
    normalizer.reward.scale.fill_(2.0)
    normalizer.returns.mean.fill_(0.3)
    view = FieldView(1, 1, (STRIDE,), fields=("reward", "return"))
    value = PlanScore(PlannedReturn(normalizer, DISCOUNT, (STRIDE,)), view)

    def decode(latent: Tensor, cond: Cond) -> Tensor:
        moved = torch.einsum("blv,lvf->blf", latent, rates).unflatten(1, (points, -1)).sum(2)
        return moved + cond.returns[:, None, None] * 0.1

    return value, decode


def wired(prior: Any, points: int = TOKENS) -> tuple[Any, ...]:
    """The wiring of a beam search over the table."""
    value, decode = make_value(points)
    return prior, None, VOCABULARY, decode, value.view, value.critic, points


def beam(prior: Any, points: int = TOKENS, **options: Any) -> Beam:
    return Beam(*wired(prior, points), **{"temperature": None, "prob_threshold": None, **options})


class Spy(Beam):
    """Keeps the plans that were there before the last choice."""

    plans: Any

    def _scores(self, plans: Any, *rest: Any) -> Tensor:
        self.plans = plans
        return super()._scores(plans, *rest)


def worths(cond: Cond, points: int = TOKENS) -> Tensor:
    """What every sequence is worth, (B, 81)."""
    value, decode = make_value(points)
    vectors = F.one_hot(ALL, VOCABULARY).float()
    each = [
        value(decode(vectors, cond.map(lambda v, i=i: v[i : i + 1].expand(81, *v.shape[1:]))), cond)
        for i in range(len(cond))
    ]
    return torch.stack(each)
