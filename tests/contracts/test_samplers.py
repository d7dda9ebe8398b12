"""Every registered sampler; what top-k and top-p keep, guidance, and what plans are worth, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.registry import build, names
from trajgen.core.types import Cond, KnownCodes
from trajgen.samplers.autoregressive import AutoregressiveSampler, draw, keep_top_k, keep_top_p
from trajgen.samplers.value import PlanValue
from trajgen.views import FieldView

SAMPLERS = names("sampler")
DRAWING = ["temperature", "top_k", "top_p", "best_of_n", "beam"]
"""Samplers that draw from the distribution of discrete codes."""


@pytest.fixture(scope="module")
def model() -> Any:
    """A planner with moved weights and codes in use."""
    made = tiny.planner(tokenizer="multiscale")
    made.tokenizer = tiny.tokenizer("multiscale", "geometric")
    tiny.shake(made.prior, 0.5)
    tiny.shake(made.decoder)
    return made.eval()


def wired(model: Any, **changes: Any) -> dict[str, Any]:
    """The wiring of a sampler in a composition."""
    parts = {name: getattr(model, name) for name in ("prior", "tokenizer", "decoder", "view", "normalizer")}
    sizes = {"horizon": tiny.HORIZON, "stride": tiny.STRIDE, "discount": 0.9}
    return {**parts, "vocabulary": model.tokenizer.vocabulary, **sizes, **changes}


def sampler(name: str, model: Any, *, wiring: dict[str, Any] | None = None, **options: Any) -> Any:
    return build("sampler", tiny.node("sampler", name, **options), **(wiring or wired(model)))


def accepted(name: str, model: Any) -> Any:
    """The sampler; None if it refuses the composition."""
    try:
        return sampler(name, model)
    except ConfigError as refusal:
        tiny.check_cure(refusal)
        return None


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kept(logits: Tensor) -> list[list[int]]:
    return [row.isfinite().nonzero().flatten().tolist() for row in logits.flatten(0, -2)]


@pytest.mark.parametrize("name", DRAWING)
def test_samplers_of_discrete_codes_accept_them(name: str, model: Any) -> None:
    assert accepted(name, model) is not None


@pytest.mark.parametrize("name", SAMPLERS)
def test_codes_are_in_range_and_seeded(name: str, model: Any) -> None:
    known, made = tiny.cond(32), accepted(name, model)
    if made is None:
        return
    codes = made(model.prior, model.tokenizer, known, rng()).codes
    assert codes.shape == (32, model.tokenizer.schedule.tokens) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < model.tokenizer.vocabulary
    assert torch.equal(codes, made(model.prior, model.tokenizer, known, rng()).codes)
    assert not codes.requires_grad


@pytest.mark.parametrize("name", DRAWING)
def test_another_seed_draws_other_codes(name: str, model: Any) -> None:
    known, made = tiny.cond(32), sampler(name, model)
    first, second = (made(model.prior, model.tokenizer, known, rng(seed)).codes for seed in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", SAMPLERS)
def test_known_codes_stay_and_are_seen_by_the_others(name: str, model: Any) -> None:
    known, made = tiny.cond(32), accepted(name, model)
    if made is None:
        return
    tokens, first = model.tokenizer.schedule.tokens, model.tokenizer.schedule.lengths[0]
    free = made(model.prior, model.tokenizer, known, rng()).codes
    mask = torch.rand(32, tokens, generator=rng(3)) < 0.4
    given = KnownCodes((free + 1) % model.tokenizer.vocabulary, mask)
    codes = made(model.prior, model.tokenizer, known, rng(), given).codes
    assert torch.equal(codes[mask], given.codes[mask])
    assert (codes == given.codes).float()[~mask].mean() < 0.5
    opening = KnownCodes(given.codes, torch.arange(tokens).expand(32, -1) < first)
    assert not torch.equal(made(model.prior, model.tokenizer, known, rng(), opening).codes[:, first:], free[:, first:])


@pytest.mark.parametrize("name", SAMPLERS)
def test_nothing_known_is_none_given(name: str, model: Any) -> None:
    known, made = tiny.cond(8), accepted(name, model)
    if made is None:
        return
    free = made(model.prior, model.tokenizer, known, rng()).codes
    nothing = KnownCodes(torch.zeros_like(free), torch.zeros_like(free, dtype=torch.bool))
    assert torch.equal(made(model.prior, model.tokenizer, known, rng(), nothing).codes, free)


def test_greedy_needs_no_random_numbers_and_takes_the_likeliest(model: Any) -> None:
    known = tiny.cond(8)
    codes = sampler("greedy", model)(model.prior, model.tokenizer, known, None).codes
    vectors = model.tokenizer.vectors(codes)
    logits = model.prior.logits(model.tokenizer.layout.inputs(vectors), known)
    assert torch.equal(codes, logits.argmax(-1))
    limits: list[tuple[str, dict[str, Any]]] = [
        ("top_k", {"k": 1}),
        ("temperature", {"temperature": 1e-4}),
        ("top_p", {"p": 1e-4}),
        ("beam", {"beam_width": 1, "expansions": 1, "temperature": None}),
        ("best_of_n", {"temperature": 1e-4}),
    ]
    for name, options in limits:
        assert torch.equal(codes, sampler(name, model, **options)(model.prior, model.tokenizer, known, rng()).codes), (
            name
        )


def test_top_k_keeps_the_k_largest() -> None:
    logits = torch.tensor([[[3.0, 1.0, 2.0, 0.0], [0.0, 5.0, 4.0, 6.0]]])
    assert kept(keep_top_k(logits, 2)) == [[0, 2], [1, 3]]
    assert torch.equal(keep_top_k(logits, 4), logits) and torch.equal(keep_top_k(logits, 9), logits)


@pytest.mark.parametrize(
    ("p", "sets"),
    [
        (0.05, [[0], [2]]),  # always at least the likeliest
        (0.45, [[0], [1, 2]]),  # 0.5 reaches 0.45; 0.4 does not
        (0.6, [[0, 2], [1, 2]]),  # 0.5 + 0.3
        (0.9, [[0, 1, 2], [0, 1, 2]]),
        (1.0, [[0, 1, 2, 3], [0, 1, 2, 3]]),
    ],
)
def test_top_p_keeps_the_fewest_that_reach_p(p: float, sets: list[list[int]]) -> None:
    shares = torch.tensor([[[0.5, 0.15, 0.3, 0.05], [0.2, 0.39, 0.4, 0.01]]])
    assert kept(keep_top_p(shares.log(), p)) == sets


def test_draws_are_distributed_as_softmax() -> None:
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0])
    ids = draw(logits.expand(1, 40_000, 4), rng())
    shares = torch.bincount(ids.flatten(), minlength=4) / 40_000
    assert (shares - logits.softmax(0)).abs().max() < 0.01  # 4 standard errors


def test_the_temperature_sharpens(model: Any) -> None:
    logits = torch.log(torch.tensor([0.6, 0.4])).expand(1, 40_000, 2)
    chosen = sampler("temperature", model, temperature=0.5).sample_fn(logits, rng())
    assert float((chosen == 0).float().mean()) == pytest.approx(0.36 / (0.36 + 0.16), abs=0.01)


def spied(weight: float, model: Any, known: Cond) -> tuple[Tensor, Tensor]:
    """The logits that a greedy choice was made from, and the codes."""
    seen: list[Tensor] = []

    def choose(logits: Tensor, _: Any) -> Tensor:
        seen.append(logits)
        return logits.argmax(-1)

    codes = AutoregressiveSampler(choose, weight)(model.prior, model.tokenizer, known, None).codes
    return torch.cat(seen, 1), codes


@pytest.mark.parametrize("weight", [0.0, 1.5, -1.0])
def test_guidance_is_its_formula_over_two_plain_passes(weight: float, model: Any) -> None:
    known = tiny.cond(5)
    seen, codes = spied(weight, model, known)
    given = model.tokenizer.layout.inputs(model.tokenizer.vectors(codes))
    with_it, without = model.prior.logits(given, known), model.prior.logits(given, known.unconditional())
    assert (with_it - without).abs().max() > 0.01
    expected = with_it + weight * (with_it - without)
    torch.testing.assert_close(seen, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["greedy", "temperature", "top_k", "top_p", "best_of_n"])
def test_guidance_zero_is_none(name: str, model: Any) -> None:
    known = tiny.cond(8)
    plain, zero = (sampler(name, model, **extra) for extra in ({}, {"guidance": 0.0}))
    one, other = (made(model.prior, model.tokenizer, known, rng()).codes for made in (plain, zero))
    assert torch.equal(one, other)


class Lengths:
    """A tokenizer of continuous codes whose scales see how many tokens came before."""

    schedule, vocabulary = tiny.schedule("geometric"), None

    @property
    def layout(self) -> Any:
        return self

    def start(self, batch: int) -> Tensor:
        return torch.zeros(batch, 0, 3)

    def scale_input(self, partial_latent: Tensor, k: int) -> Tensor:
        return (
            torch.full((len(partial_latent), self.schedule.lengths[k], 3), float(partial_latent.shape[1]))
            + partial_latent.sum() * 0.01
        )

    def vectors(self, codes: Tensor) -> Tensor:
        return codes

    def extend(self, partial_latent: Tensor, vectors: Tensor, k: int) -> Tensor:
        return torch.cat([partial_latent, vectors], 1)


class Echo:
    """A prior that predicts what it sees."""

    def start(self, cond: Cond) -> int:
        return len(cond)

    def step(self, x: Tensor | None, k: int, state: int) -> Tensor:
        return torch.zeros(state, 1, 3) if x is None else x


def test_continuous_predictions_are_the_codes(model: Any, cond: Cond) -> None:
    made = sampler("greedy", model, wiring=wired(model, prior=Echo(), vocabulary=None))
    codes = made(Echo(), Lengths(), cond, None).codes
    assert codes.shape == (6, Lengths.schedule.tokens, 3)
    assert (codes[:, Lengths.schedule.spans[1]] == 1).all()  # one token before, which was zero


def test_features_of_continuous_codes_are_known_one_by_one(cond: Cond) -> None:
    tokens = Lengths.schedule.tokens
    mask = torch.rand(6, tokens, 3, generator=rng()) < 0.3
    mask[:, 0, 1] = True
    given = KnownCodes(torch.full((6, tokens, 3), 9.0), mask)
    greedy = AutoregressiveSampler(lambda logits, _: logits)
    free, codes = (greedy(Echo(), Lengths(), cond, None, known).codes for known in (None, given))
    assert (codes[mask] == 9).all() and (codes[~mask] < 9).all()
    assert (codes - free)[~mask].abs().sum() > 0  # the others have seen them


OUT_OF_RANGE: list[tuple[str, dict[str, Any]]] = [
    ("temperature", {"temperature": 0.0}),
    ("top_k", {"k": 0}),
    ("top_k", {"temperature": -1.0}),
    ("top_p", {"p": 0.0}),
    ("top_p", {"p": 1.1}),
    ("top_p", {"temperature": 0.0}),
    ("best_of_n", {"n": 0}),
    ("best_of_n", {"temperature": 0.0}),
    ("beam", {"beam_width": 0}),
    ("beam", {"expansions": 0}),
    ("beam", {"temperature": 0.0}),
    ("beam", {"top_k": 0}),
    ("beam", {"select_every": 0}),
    ("beam", {"prob_threshold": 1.0}),
    ("beam", {"prob_threshold": 0.0}),
    ("beam", {"prob_weight": 0.0}),
    ("beam", {"score": "luck"}),
]


@pytest.mark.parametrize(("name", "options"), OUT_OF_RANGE)
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any], model: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        sampler(name, model, **options)
    assert next(iter(options)) in str(caught.value.got)
    tiny.check_cure(caught.value)


@pytest.mark.parametrize("name", ["greedy", *DRAWING])
def test_a_prior_that_does_not_step_is_refused(name: str, model: Any) -> None:
    with pytest.raises(ConfigError, match="prior=transformer") as caught:
        sampler(name, model, wiring=wired(model, prior=torch.nn.Linear(1, 1)))
    assert "Linear" in str(caught.value.got)
    tiny.check_cure(caught.value)


@pytest.mark.parametrize("name", DRAWING)
def test_continuous_codes_are_refused_where_something_is_drawn(name: str, model: Any) -> None:
    with pytest.raises(ConfigError, match="sampler=greedy") as caught:
        sampler(name, model, wiring=wired(model, vocabulary=None))
    tiny.check_cure(caught.value)


@pytest.mark.parametrize("name", ["best_of_n", "beam"])
def test_a_view_that_tells_no_return_is_refused_where_it_is_searched_for(name: str, model: Any) -> None:
    wiring = wired(model, view=FieldView(4, 2, tiny.STRIDE, fields=("state", "action")))
    with pytest.raises(ConfigError, match=r"view\.fields=\[return,state,action\]") as caught:
        sampler(name, model, wiring=wiring)
    tiny.check_cure(caught.value)
    if name == "beam":
        assert sampler(name, model, wiring=wiring, score="likelihood").value is None


def test_the_best_of_n_is_the_best_of_n(model: Any) -> None:
    known, n = tiny.cond(7), 5
    codes = sampler("best_of_n", model, n=n, temperature=0.8)(model.prior, model.tokenizer, known, rng()).codes
    many = known.map(lambda values: values.repeat_interleave(n, 0))
    drawn = sampler("temperature", model, temperature=0.8)(model.prior, model.tokenizer, many, rng()).codes
    decoded = model.decoder(model.tokenizer.layout.latent(model.tokenizer.vectors(drawn)), many)
    worth = model.view.read(decoded, "return")[:, 0, 0].view(7, n)
    assert (worth.std(1) > 0.01).sum() > 3
    assert torch.equal(codes, drawn.view(7, n, -1)[torch.arange(7), worth.argmax(1)])


def test_a_beam_for_the_return_promises_more_than_one_for_likelihood(model: Any) -> None:
    known = tiny.cond(16)
    worth = []
    for score in ("return", "likelihood"):
        made = sampler("beam", model, score=score, expansions=4, prob_threshold=None)
        codes = made(model.prior, model.tokenizer, known, rng()).codes
        decoded = model.decoder(model.tokenizer.layout.latent(model.tokenizer.vectors(codes)), known)
        worth.append(model.view.read(decoded, "return")[:, 0, 0].mean())
    assert worth[0] > worth[1]


def worth(fields: tuple[str, ...], x: Tensor, points: int | None) -> list[float]:
    normalizer = Normalizer(1, 1, power=0.5)
    normalizer.reward.mean.fill_(1.0)
    normalizer.reward.scale.fill_(2.0)
    normalizer.returns.scale.fill_(3.0)
    value = PlanValue(FieldView(1, 1, 2, fields=fields), normalizer, 0.9, 2)
    found: list[float] = value(x, points).tolist()
    return found


def test_what_plans_are_worth_by_hand() -> None:
    rewards, returns = [1.0, 2.0, -1.0], [1.0, 4.0, 2.0]  # normalized: r = 2 x + 1, and R = (3 x)²
    r, big = [3.0, 5.0, -1.0], [9.0, 144.0, 36.0]
    fade = 0.9**2  # two environment steps between points
    x = torch.tensor([rewards, returns]).T.unsqueeze(0)  # (1, 3, 2)
    whole = r[0] + fade * r[1] + fade**2 * big[2]  # the last point's return counts its own reward
    assert worth(("reward", "return"), x, None) == pytest.approx([whole])
    assert worth(("reward", "return"), x, 2) == pytest.approx([r[0] + fade * big[1]])
    assert worth(("reward", "return"), x, 1) == pytest.approx([big[0]])
    assert worth(("reward",), x[..., :1], None) == pytest.approx([r[0] + fade * r[1] + fade**2 * r[2]])
    assert worth(("reward",), x[..., :1], 2) == pytest.approx([r[0] + fade * r[1]])
    assert worth(("return",), x[..., 1:], 3) == pytest.approx([big[0]])


def test_plans_of_a_batch_are_worth_what_each_is_alone() -> None:
    x = torch.randn(5, 4, 2)
    alone = [worth(("reward", "return"), one.unsqueeze(0), 3)[0] for one in x]
    assert worth(("reward", "return"), x, 3) == pytest.approx(alone, abs=1e-5)
