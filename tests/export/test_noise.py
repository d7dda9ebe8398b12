"""Randomness as an input: what is recorded is what is drawn, and what is given takes its place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trajgen.core.errors import ConfigError
from trajgen.export.randomness import Draw, RecordDraws, ReplayNoise

CPU = torch.device("cpu")
DRAWS: dict[str, Callable[[torch.Generator | None], Tensor]] = {
    "exponential": lambda rng: torch.empty(2, 3).exponential_(generator=rng),
    "normal": lambda rng: torch.randn(2, 3, generator=rng),
    "normal of a shape": lambda rng: torch.randn((2, 3), generator=rng, device=CPU),
    "uniform": lambda rng: torch.rand(2, 3, generator=rng),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_recorded_draw_repeats_the_numbers_of_its_generator(name: str) -> None:
    with RecordDraws() as recorded:
        DRAWS[name](None)
    (draw,) = recorded.draws
    assert draw == Draw(name.split()[0], (2, 3))
    expected = DRAWS[name](torch.Generator().manual_seed(3))
    assert torch.equal(draw.sample(torch.Generator().manual_seed(3), CPU), expected)


def test_given_numbers_take_the_place_of_drawn_ones_in_order() -> None:
    one, two = torch.full((2, 3), 1.0), torch.full((2, 3), 2.0)
    with ReplayNoise([one, two]):
        first, second = torch.randn(2, 3), torch.empty(2, 3).exponential_()
    assert torch.equal(first, one) and torch.equal(second, two)


def test_calls_that_draw_nothing_are_left_alone() -> None:
    with RecordDraws() as recorded:
        summed = torch.ones(3).cumsum(0)
    assert recorded.draws == [] and summed.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.multinomial(torch.ones(4), 2),
        lambda: torch.randint(5, (2,)),
        lambda: torch.empty(3).exponential_(2.0),
        lambda: torch.empty(3).normal_(mean=1.0),
    ],
    ids=["multinomial", "randint", "exponential with a rate", "normal with a mean"],
)
def test_draws_that_cannot_be_given_are_refused(draw: Callable[[], Tensor]) -> None:
    with RecordDraws(), pytest.raises(ConfigError, match=r"standard random numbers[\s\S]*policy\.backend=eager"):
        draw()
