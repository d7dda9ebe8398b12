"""Beam search against the enumeration of all sequences, a search written with lists, and teacher forcing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from table_prior import (
    ALL,
    SCHEDULES,
    STRIDE,
    TOKENS,
    UNIT,
    VOCABULARY,
    Memory,
    Row,
    Spy,
    Table,
    beam,
    make_value,
    wired,
    worths,
)
from torch import Tensor

from trajgen.core.registry import build
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Cond
from trajgen.samplers.autoregressive import greedy
from trajgen.views import FieldView


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_wide_enough_it_finds_the_likeliest_of_all_sequences(schedule: ScaleSchedule) -> None:
    prior, cond = Table(schedule), tiny.cond(8)
    codes = beam(prior, beam_width=81, expansions=81, score="likelihood")(prior, Row(schedule), cond).codes
    assert torch.equal(codes, ALL[prior.likelihoods(cond).argmax(1)])
    if schedule is UNIT:
        assert not torch.equal(codes, greedy()(prior, Row(schedule), cond).codes)  # there is something to search


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_wide_enough_it_finds_the_sequence_of_the_highest_value(schedule: ScaleSchedule) -> None:
    prior, cond = Table(schedule), tiny.cond(8)
    codes = beam(prior, beam_width=81, expansions=81)(prior, Row(schedule), cond).codes
    assert torch.equal(codes, ALL[worths(cond).argmax(1)])


def test_below_the_threshold_value_is_traded_for_likelihood() -> None:
    prior, cond = Table(UNIT), tiny.cond(8)
    likelihoods, worth = prior.likelihoods(cond), worths(cond)
    penalised = worth + 0.7 * (likelihoods - TOKENS * math.log(0.4)).clamp(max=0)
    search = beam(prior, beam_width=81, expansions=3, prob_threshold=0.4, prob_weight=0.7)
    codes = search(prior, Row(UNIT), cond).codes
    assert torch.equal(codes, ALL[penalised.argmax(1)])
    assert not torch.equal(penalised.argmax(1), worth.argmax(1))
    assert not torch.equal(penalised.argmax(1), likelihoods.argmax(1))


def searched(prior: Table, cond: Cond, width: int, expand: int, ends: list[int], score: str, points: int) -> list[int]:
    """Beam search with lists over unit tokens, for one condition."""
    likelihoods = prior.likelihoods(cond)[0].reshape((VOCABULARY,) * TOKENS).double()
    value, decode = make_value(points)

    def logp(tokens: list[int]) -> float:
        return float(likelihoods[tuple(tokens)].exp().sum().log())  # all that go on from here

    def worth(tokens: list[int]) -> float:
        points_decided = len(tokens) * points // TOKENS
        if score == "likelihood" or not points_decided:
            return logp(tokens)
        padded = F.one_hot(torch.tensor([tokens + [0] * (TOKENS - len(tokens))]), VOCABULARY).float()
        return float(value(decode(padded, cond), cond, points_decided))

    plans: list[list[int]] = [[]]
    ways = width * expand
    for k in range(TOKENS):
        likely = [sorted(range(VOCABULARY), key=lambda token, p=plan: -logp([*p, token])) for plan in plans]
        plans = [[*plan, token] for plan, order in zip(plans, likely, strict=True) for token in order[:ways]]
        ways = 1
        if k in ends:
            plans = sorted(plans, key=worth, reverse=True)[:width]
            ways = max(1, width * expand // len(plans))
    return max(plans, key=worth)


@pytest.mark.parametrize("score", ["critic", "likelihood"])
@pytest.mark.parametrize(("width", "expand"), [(1, 1), (1, 2), (2, 2), (3, 1), (3, 3)])
def test_with_pruning_it_is_the_search_with_lists(width: int, expand: int, score: str) -> None:
    prior, cond = Table(UNIT), tiny.cond(8)
    codes = beam(prior, beam_width=width, expansions=expand, score=score)(prior, Row(UNIT), cond).codes
    expected = [
        searched(prior, cond.map(lambda v, i=i: v[i : i + 1]), width, expand, [0, 1, 2, 3], score, TOKENS)
        for i in range(8)
    ]
    assert codes.tolist() == expected


@pytest.mark.parametrize("select_every", [2, None])
def test_plans_are_chosen_once_a_point(select_every: int | None) -> None:
    prior, cond = Table(UNIT), tiny.cond(8)
    codes = beam(prior, points=2, beam_width=2, expansions=3, select_every=select_every)(prior, Row(UNIT), cond).codes
    ones = [cond.map(lambda v, i=i: v[i : i + 1]) for i in range(8)]
    assert codes.tolist() == [searched(prior, one, 2, 3, [1, 3], "return", 2) for one in ones]
    assert codes.tolist() != [searched(prior, one, 2, 3, [0, 1, 2, 3], "return", 2) for one in ones]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_one_beam_continued_in_one_way_is_greedy(schedule: ScaleSchedule) -> None:
    prior, cond = Table(schedule), tiny.cond(8)
    codes = beam(prior, beam_width=1, expansions=1)(prior, Row(schedule), cond).codes
    assert torch.equal(codes, greedy()(prior, Row(schedule), cond).codes)


@pytest.mark.parametrize("select_every", [1, 3])
def test_a_prior_without_select_is_stepped_again(select_every: int) -> None:
    prior, plain, cond = Table(UNIT), Table(UNIT, Memory), tiny.cond(8)
    codes = [
        beam(p, beam_width=3, expansions=2, select_every=select_every)(p, Row(UNIT), cond).codes for p in (prior, plain)
    ]
    assert torch.equal(*codes)


def test_sharp_draws_do_not_fill_the_beam_with_one_plan() -> None:
    prior, cond = Table(ScaleSchedule((2, 2))), tiny.cond(8)
    search = Spy(*wired(prior), beam_width=4, expansions=8, temperature=1.0, score="likelihood")
    search(prior, Row(prior.schedule), cond, torch.Generator().manual_seed(0))
    live = search.plans.likelihood.isfinite().view(8, -1)
    for plans, alive in zip(search.plans.codes.view(8, -1, TOKENS), live, strict=True):
        distinct = [tuple(row) for row in plans[alive].tolist()]
        assert len(distinct) == len(set(distinct)) > 1


def test_candidates_are_among_the_k_likeliest() -> None:
    prior, cond = Table(ScaleSchedule((4,))), tiny.cond(64)
    logits = prior.step(None, 0, prior.start(cond))
    search = beam(prior, beam_width=4, expansions=4, top_k=2, temperature=5.0)
    codes = search(prior, Row(prior.schedule), cond, torch.Generator().manual_seed(0)).codes
    assert (codes != logits.argmin(-1)).all()
    unrestricted = beam(prior, beam_width=4, expansions=4, temperature=5.0)
    assert (
        unrestricted(prior, Row(prior.schedule), cond, torch.Generator().manual_seed(0)).codes == logits.argmin(-1)
    ).any()


@pytest.mark.parametrize(
    ("schedule", "select_every"), [("geometric", 1), ("unit", 1), ("unit", 3), ("two_level", None)]
)
def test_likelihoods_with_chosen_caches_are_those_of_teacher_forcing(schedule: str, select_every: int | None) -> None:
    lengths, cond = tiny.schedule(schedule), tiny.cond(3)
    wiring: dict[str, Any] = {"schedule": lengths, "code_dim": 4, "vocabulary": 7, "strides": (STRIDE,)}
    wiring |= {"state_dim": 4, "action_dim": 2, **tiny.GOALS, "horizon": tiny.HORIZON, "period": 1, "agent_axis": None}
    wiring["conditioner"] = build("conditioner", tiny.node("conditioner", "fields"), **wiring)
    wiring["tokenizer"] = None
    prior = tiny.shake(build("prior", tiny.node("prior", "transformer"), **wiring)).eval()
    table = torch.randn(7, 4)

    class Tokens:
        """A partial latent of everything drawn; a scale sees the last of it, over and over."""

        schedule, vocabulary = lengths, 7

        @property
        def layout(self) -> Any:
            return self

        def vectors(self, codes: Tensor) -> Tensor:
            return table[codes]

        def start(self, batch: int) -> Tensor:
            return torch.zeros(batch, 0, 4)

        def extend(self, partial_latent: Tensor, vectors: Tensor, k: int) -> Tensor:
            return torch.cat([partial_latent, vectors], 1)

        def scale_input(self, partial_latent: Tensor, k: int) -> Tensor:
            return partial_latent.cumsum(1)[:, -1:].expand(-1, lengths.lengths[k], -1)

        def decoded_fraction(self, k: int) -> float:
            return 1.0

    tokenizer = Tokens()
    search = Spy(
        prior, None, 7, None, FieldView(4, 2, (STRIDE,)), None, tiny.HORIZON,
        beam_width=4, expansions=3, select_every=select_every, score="likelihood", temperature=3.0,
    )  # fmt: skip
    plan = search(prior, tokenizer, cond, torch.Generator().manual_seed(0))
    codes, each = search.plans.codes, search.plans.rows_per_cond
    assert each == 12 and len({tuple(row) for row in codes[:each].tolist()}) > 4
    vectors = tokenizer.vectors(codes)
    inputs = [tokenizer.scale_input(vectors[:, : span.start], k) for k, span in enumerate(lengths.spans) if k]
    forced = prior.logits(torch.cat(inputs, 1), cond.map(lambda v: v.repeat_interleave(each, 0))).log_softmax(-1)
    expected = forced.gather(-1, codes.unsqueeze(-1)).sum((1, 2))
    torch.testing.assert_close(search.plans.likelihood, expected, atol=1e-4, rtol=1e-4)
    best = codes.view(3, each, -1)[torch.arange(3), expected.view(3, each).argmax(1)]
    assert torch.equal(plan.codes, best)
