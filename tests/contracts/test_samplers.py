"""Every registered sampler; what top-k and top-p keep, and guidance, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from trajgen.core.errors import ConfigError
from trajgen.core.registry import build, names
from trajgen.core.types import Cond
from trajgen.samplers.autoregressive import Ancestral, draw, keep_top_k, keep_top_p

SAMPLERS = names("sampler")


@pytest.fixture(scope="module")
def model() -> Any:
    """A planner with moved weights and codes in use."""
    made = tiny.planner(tokenizer="multiscale_vq")
    made.tokenizer = tiny.tokenizer("multiscale_vq", "geometric")
    tiny.shake(made.prior, 0.5)
    return made.eval()


def sampler(name: str, **options: Any) -> Any:
    return build("sampler", tiny.node("sampler", name, **options))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kept(logits: Tensor) -> list[list[int]]:
    return [row.isfinite().nonzero().flatten().tolist() for row in logits.flatten(0, -2)]


@pytest.mark.parametrize("name", SAMPLERS)
def test_codes_are_in_range_and_seeded(name: str, model: Any) -> None:
    known, made = tiny.cond(32), sampler(name)
    codes = made(model.prior, model.tokenizer, known, rng())
    assert codes.shape == (32, model.tokenizer.schedule.tokens) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < model.tokenizer.vocabulary
    assert torch.equal(codes, made(model.prior, model.tokenizer, known, rng()))
    assert not codes.requires_grad


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) & {"temperature", "top_k", "top_p"}))
def test_another_seed_draws_other_codes(name: str, model: Any) -> None:
    known, made = tiny.cond(32), sampler(name)
    first, second = (made(model.prior, model.tokenizer, known, rng(seed)) for seed in (0, 1))
    assert not torch.equal(first, second)


def test_greedy_needs_no_random_numbers_and_takes_the_likeliest(model: Any) -> None:
    known = tiny.cond(8)
    codes = sampler("greedy")(model.prior, model.tokenizer, known, None)
    vectors = model.tokenizer.vectors(codes)
    logits = model.prior.logits(model.tokenizer.inputs(vectors), known)
    assert torch.equal(codes, logits.argmax(-1))
    one = sampler("top_k", k=1)(model.prior, model.tokenizer, known, rng())
    cold = sampler("temperature", temperature=1e-4)(model.prior, model.tokenizer, known, rng())
    assert torch.equal(codes, one) and torch.equal(codes, cold)


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


def test_the_temperature_sharpens() -> None:
    logits = torch.log(torch.tensor([0.6, 0.4])).expand(1, 40_000, 2)
    chosen = sampler("temperature", temperature=0.5).choose(logits, rng())
    assert float((chosen == 0).float().mean()) == pytest.approx(0.36 / (0.36 + 0.16), abs=0.01)


def spied(weight: float, model: Any, known: Cond) -> tuple[Tensor, Tensor]:
    """The logits that a greedy choice was made from, and the codes."""
    seen: list[Tensor] = []

    def choose(logits: Tensor, _: Any) -> Tensor:
        seen.append(logits)
        return logits.argmax(-1)

    codes = Ancestral(choose, weight)(model.prior, model.tokenizer, known, None)
    return torch.cat(seen, 1), codes


@pytest.mark.parametrize("weight", [0.0, 1.5, -1.0])
def test_guidance_is_its_formula_over_two_plain_passes(weight: float, model: Any) -> None:
    known = tiny.cond(5)
    seen, codes = spied(weight, model, known)
    given = model.tokenizer.inputs(model.tokenizer.vectors(codes))
    with_it, without = model.prior.logits(given, known), model.prior.logits(given, known.withheld())
    assert (with_it - without).abs().max() > 0.01
    expected = with_it + weight * (with_it - without)
    torch.testing.assert_close(seen, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_guidance_zero_is_none(name: str, model: Any) -> None:
    known = tiny.cond(8)
    plain, zero = (sampler(name, **extra) for extra in ({}, {"guidance": 0.0}))
    one, other = (made(model.prior, model.tokenizer, known, rng()) for made in (plain, zero))
    assert torch.equal(one, other)


def test_continuous_predictions_are_the_codes(cond: Cond) -> None:
    class Lengths:
        schedule, vocabulary = tiny.schedule("geometric"), None

        def start(self, batch: int) -> Tensor:
            return torch.zeros(batch, 0, 3)

        def view(self, canvas: Tensor, k: int) -> Tensor:
            return torch.full((len(canvas), self.schedule.lengths[k], 3), float(canvas.shape[1]))

        def vectors(self, codes: Tensor) -> Tensor:
            return codes

        def extend(self, canvas: Tensor, vectors: Tensor, k: int) -> Tensor:
            return torch.cat([canvas, vectors], 1)

    class Echo:
        def start(self, cond: Cond) -> int:
            return len(cond)

        def step(self, x: Tensor | None, k: int, state: int) -> Tensor:
            return torch.zeros(state, 1, 3) if x is None else x

    codes = sampler("greedy")(Echo(), Lengths(), cond, None)  # what each scale sees: how many tokens came before
    before = [float(span.start) for span in Lengths.schedule.spans for _ in range(span.start, span.stop)]
    assert codes[0, :, 0].tolist() == before


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("temperature", {"temperature": 0.0}),
        ("top_k", {"k": 0}),
        ("top_k", {"temperature": -1.0}),
        ("top_p", {"p": 0.0}),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        sampler(name, **options)
    assert next(iter(options)) in str(caught.value.got)
