"""Beam search against the enumeration of all sequences, a search written with lists, and teacher forcing."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.registry import build
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Cond, KnownCodes
from trajgen.critics.plans import PlannedReturn
from trajgen.samplers.autoregressive import greedy
from trajgen.samplers.beam import Beam
from trajgen.samplers.scoring import PlanScore
from trajgen.views import FieldView

VOCABULARY, TOKENS = 3, 4
ALL = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=TOKENS)))  # (81, 4)
UNIT = ScaleSchedule((1,) * TOKENS)
DISCOUNT, STRIDE = 0.9, 2


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


SCHEDULES = [UNIT, ScaleSchedule((1, 3)), ScaleSchedule((2, 2)), ScaleSchedule((4,))]


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


def test_sharp_draws_do_not_fill_the_beam_with_one_plan() -> None:
    prior, cond = Table(ScaleSchedule((2, 2))), tiny.cond(8)
    search = Spy(*wired(prior), beam_width=4, expansions=8, temperature=1.0, score="likelihood")
    search(prior, Row(prior.schedule), cond, torch.Generator().manual_seed(0))
    live = search.plans.likelihood.isfinite().view(8, -1)
    for plans, alive in zip(search.plans.codes.view(8, -1, TOKENS), live, strict=True):
        distinct = [tuple(row) for row in plans[alive].tolist()]
        assert len(distinct) == len(set(distinct)) > 1


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
    decode = lambda latent, _: tokenizer.points(latent)[..., 1:]  # noqa: E731
    search = Spy(prior, tokenizer, VOCABULARY, decode, view, critic, 2, temperature=None, prob_threshold=None)
    mask = torch.tensor([False, True, False, False]).expand(4, -1)
    search(prior, tokenizer, cond, None, KnownCodes(torch.full((4, 4), 2), mask))
    assert set(search.plans.expected) == {3}


def test_fields_that_no_token_stands_for_are_refused() -> None:
    with pytest.raises(ConfigError, match="branch_fields"):
        beam(Table(UNIT), branch_fields=("action",))


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
