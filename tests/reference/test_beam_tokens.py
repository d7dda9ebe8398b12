"""Beam search where tokens are known, or are numbers of a point."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from table_prior import (
    ALL,
    DISCOUNT,
    SCHEDULES,
    STRIDE,
    UNIT,
    VOCABULARY,
    Chosen,
    Memory,
    Row,
    Spy,
    Table,
    beam,
    wired,
)
from torch import Tensor

from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Cond, KnownCodes
from trajgen.critics.plans import PlannedReturn
from trajgen.samplers.beam import Beam
from trajgen.views import FieldView


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_known_tokens_stay_and_the_rest_is_the_likeliest(schedule: ScaleSchedule) -> None:
    prior, cond = Table(schedule), tiny.cond(4)
    mask = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    codes = torch.tensor([[2, 0, 0, 0], [0, 1, 0, 2], [2, 0, 1, 2], [1, 1, 1, 1]])
    plan = beam(prior, beam_width=81, expansions=81, score="likelihood")(
        prior, Row(schedule), cond, None, KnownCodes(codes, mask)
    )
    fits = ((codes[:, None] == ALL) | ~mask[:, None]).all(-1)  # (4, 81)
    assert torch.equal(plan.codes, ALL[prior.likelihoods(cond).masked_fill(~fits, -torch.inf).argmax(1)])


def test_scales_that_are_known_are_not_expanded() -> None:
    prior, cond = Table(UNIT), tiny.cond(4)
    rows: list[int] = []
    step = prior.step
    prior.step = lambda x, k, state: rows.append(len(state.returns)) or step(x, k, state)
    mask = torch.tensor([1, 1, 0, 0]).bool().expand(4, -1)
    known_codes = KnownCodes(torch.full((4, 4), 2), mask)
    codes = beam(prior, beam_width=2, expansions=2)(prior, Row(UNIT), cond, None, known_codes).codes
    assert rows == [4, 4, 4, 8] and (codes[:, :2] == 2).all()


class InOnePass(Table):
    """A prior that predicts known scales in one pass."""

    passes = 0

    def predict_prefix(self, inputs: Tensor, k: int, state: Memory) -> Tensor:
        self.passes += 1
        logits = [self.step(None, 0, state)]
        logits += [self.step(inputs[:, self.schedule.spans[i - 1]], i, state) for i in range(1, k + 1)]
        return torch.cat(logits, dim=1)

    def forward(self) -> None: ...

    logits = loss = forward


@pytest.mark.parametrize("score", ["critic", "likelihood"])
@pytest.mark.parametrize("count", [0, 1, 3, 4])
@pytest.mark.parametrize("state", [Chosen, Memory])
def test_known_tokens_in_one_pass_are_those_in_several(count: int, score: Any, state: type[Memory]) -> None:
    prior, plain, cond = InOnePass(UNIT, state), Table(UNIT), tiny.cond(8)
    known_codes = KnownCodes(
        torch.arange(4).expand(8, -1) % VOCABULARY,
        torch.arange(4).expand(8, -1) < count,
        (True,) * count + (False,) * (4 - count),
    )
    plans = []
    for p in (prior, plain):
        search = Spy(*wired(p), beam_width=2, expansions=3, score=score, temperature=None, prob_threshold=0.3)
        plan = search(p, Row(UNIT), cond, None, known_codes)
        plans.append((plan.codes, plan.latent, search.plans.likelihood if count < 4 else plan.codes))
    assert prior.passes == (0 < count < 4 and state is Chosen)  # what cannot be selected from is stepped again
    for in_one_pass, in_several in zip(*plans, strict=True):
        torch.testing.assert_close(in_one_pass, in_several)


class Numbers(Row):
    """Tokens that are numbers of a point: an action, then the return, whose codes stand for 0, 1 and 2."""

    period, fields_of_tokens = 2, ("action", "return")

    def points(self, latent: Tensor) -> Tensor:
        return (latent * torch.arange(float(VOCABULARY))).sum(-1).view(len(latent), -1, 2)

    def spread(self, x: Tensor) -> Tensor:
        return F.one_hot(x.flatten(1).long(), VOCABULARY).float()


def test_plans_are_ranked_by_the_return_that_is_expected_and_branch_at_actions() -> None:
    prior, cond, tokenizer = Table(UNIT), tiny.cond(32), Numbers(UNIT)
    view, numbers = FieldView(1, 1, (STRIDE,), fields=("action", "return")), torch.arange(float(VOCABULARY))
    view.slices = {"action": slice(0, 1), "return": slice(1, 2)}
    critic = PlannedReturn(Normalizer(1, 1), DISCOUNT, (STRIDE,))
    sampler = Beam(
        *(prior, tokenizer, VOCABULARY, lambda latent, _: tokenizer.points(latent), view, critic, 2),
        beam_width=9,
        temperature=None,
        prob_threshold=None,
        branch_fields=("action",),
    )
    codes = sampler(prior, tokenizer, cond).codes
    expected, likeliest_return = torch.zeros(32, VOCABULARY), torch.zeros(32, VOCABULARY, dtype=torch.long)
    for action in range(VOCABULARY):
        state = prior.start(cond)
        prior.step(None, 0, state)
        logits = prior.step(numbers.eq(action).float().expand(32, 1, -1), 1, state)[:, 0]
        expected[:, action], likeliest_return[:, action] = logits.softmax(-1) @ numbers, logits.argmax(-1)
    assert torch.equal(codes[:, 0], expected.argmax(1))
    assert torch.equal(codes[:, 1], likeliest_return.gather(1, codes[:, :1]).squeeze(1))
    assert not torch.equal(expected.argmax(1), likeliest_return.argmax(1))  # what the drawn returns would have chosen


def test_a_return_that_is_known_is_not_expected() -> None:
    prior, cond, tokenizer = Table(UNIT), tiny.cond(4), Numbers(UNIT)
    view, critic = FieldView(1, 1, (STRIDE,), fields=("return",)), PlannedReturn(Normalizer(1, 1), DISCOUNT, (STRIDE,))

    def decode(latent: Tensor, cond: Cond) -> Tensor:
        return tokenizer.points(latent)[..., 1:]

    search = Spy(prior, tokenizer, VOCABULARY, decode, view, critic, 2, temperature=None, prob_threshold=None)
    mask = torch.tensor([False, True, False, False]).expand(4, -1)
    search(prior, tokenizer, cond, None, KnownCodes(torch.full((4, 4), 2), mask))
    assert set(search.plans.expected) == {3}


def test_fields_that_no_token_stands_for_are_refused() -> None:
    with pytest.raises(ConfigError, match="branch_fields"):
        beam(Table(UNIT), branch_fields=("action",))
