"""Episodes that are held out: never in a batch that is trained on, always the same ones, and no others in theirs."""

from __future__ import annotations

import pytest
from test_windows import line, options

from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.data.windows import Windows, fit_normalizer

LENGTHS = [9, 3, 12, 8, 10, 9, 8, 7, 11, 9]


def numbers(source: Windows) -> set[int]:
    """Which episodes a thousand windows are of: a state of `line` holds its episode's number."""
    return {int(number) for number in source.batch(0, 1000).states[:, 0, 0]}


def test_episodes_are_on_one_side_or_the_other() -> None:
    episodes, choice, units = line(LENGTHS), options(val_fraction=0.3), Normalizer(2, 1, 2)
    trained = Windows(episodes, choice, units)
    aside = [Windows(episodes, choice, units, seed=seed, part="val") for seed in (0, 1)]
    assert len(numbers(aside[0])) == 3 - (1 in numbers(aside[0])) and numbers(aside[0]) == numbers(aside[1])
    assert not numbers(trained) & numbers(aside[0])
    assert numbers(trained) | numbers(aside[0]) == set(range(10)) - {1}  # which is shorter than a window
    whole = Windows(episodes, options(), units)
    assert len(trained) + len(aside[0]) == len(whole) and numbers(whole) == set(range(10)) - {1}


def test_units_are_those_of_what_is_trained_on() -> None:
    episodes, choice = line(LENGTHS), options(val_fraction=0.3)
    aside = numbers(Windows(episodes, choice, Normalizer(2, 1, 2), part="val"))
    without = line(LENGTHS)
    without.states[[int(state[0]) in aside for state in without.states]] *= 1000
    one, two = (fit_normalizer(data, choice).state_dict() for data in (episodes, without))
    assert all((one[name] == two[name]).all() for name in one)


@pytest.mark.parametrize(("lengths", "share"), [([9], 0.5), ([9, 3], 0.5)])
def test_both_sides_need_windows(lengths: list[int], share: float) -> None:
    """With one episode nothing is left to train on; of two, only one is long enough."""
    episodes, choice, units = line(lengths), options(val_fraction=share), Normalizer(2, 1, 2)

    def both() -> None:
        Windows(episodes, choice, units)
        Windows(episodes, choice, units, part="val")

    with pytest.raises(ConfigError, match=r"data\.val_fraction"):
        both()


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(ConfigError, match=r"data\.val_fraction"):
        options(val_fraction=share)
