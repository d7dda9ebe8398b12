"""The best episodes alone: as many as a share of the steps takes, on both sides of what is held out."""

from __future__ import annotations

import pytest
from test_held_out import LENGTHS, numbers
from test_windows import line, options

from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.data.episodes import Episodes
from trajgen.data.windows import Windows

UNITS = Normalizer(2, 1, 2)
RETURNS = [3.0, 9.0, -1.0, 7.0, 2.0, 8.0, 2.0, -5.0, 6.0, 1.0]


def earning() -> Episodes:
    """Episodes whose returns are known, each earned at its last step but one."""
    episodes = line(LENGTHS)
    episodes.rewards[:] = 0
    episodes.rewards[episodes.ends - 2] = RETURNS
    return episodes


def test_the_best_episodes_make_up_the_share_of_the_steps() -> None:
    """In order of return: 1 (3 steps), 5 (9), 3 (8), 8 (11), 0 (9), 4, 6, 9, 2, 7; 86 steps in all."""
    episodes = earning()
    assert episodes.steps == 86
    for share, expected in [(0.01, {1}), (3 / 86, {1}), (12 / 86, {1, 5}), (0.2, {1, 5, 3}), (0.37, {1, 5, 3, 8, 0})]:
        if expected != {1}:  # which is shorter than a window
            assert numbers(Windows(episodes, options(top_fraction=share), UNITS)) == expected - {1}, share
        else:
            with pytest.raises(ConfigError, match=r"data\.top_fraction"):
                Windows(episodes, options(top_fraction=share), UNITS)


def test_all_of_them_by_default_and_the_first_of_equals() -> None:
    episodes = earning()
    assert numbers(Windows(episodes, options(), UNITS)) == set(range(10)) - {1}
    episodes.rewards[:] = 0
    assert numbers(Windows(episodes, options(top_fraction=12 / 86), UNITS)) == {0}  # and 1


def test_both_sides_of_what_is_held_out_are_of_the_best() -> None:
    episodes, choice = earning(), options(top_fraction=0.6, val_fraction=0.4)
    best = numbers(Windows(episodes, options(top_fraction=0.6), UNITS))
    trained = numbers(Windows(episodes, choice, UNITS))
    aside = numbers(Windows(episodes, choice, UNITS, part="val"))
    assert trained and aside and trained | aside == best and not trained & aside


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_a_share_is_more_than_nothing(share: float) -> None:
    with pytest.raises(ConfigError, match=r"data\.top_fraction"):
        options(top_fraction=share)
