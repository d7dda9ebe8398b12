"""Which windows are drawn: of one side of a split, of the best episodes; and transitions for further goals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lines import GOALS, line, options, plain, same

from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.types import GoalSampling
from trajgen.data.episodes import Episodes
from trajgen.data.windows import Windows, fit_normalizer

# --- validation episodes ----------------------------------------------------------------------------------------------

LENGTHS = [9, 3, 12, 8, 10, 9, 8, 7, 11, 9]


def numbers(source: Windows) -> set[int]:
    """Which episodes a thousand windows are of: a state of `line` holds its episode's number."""
    return {int(number) for number in source.batch(0, 1000).states[:, 0, 0]}


def test_episodes_are_on_one_side_or_the_other() -> None:
    episodes, choice, units = line(LENGTHS), options(val_fraction=0.3), Normalizer(2, 1, 2)
    trained = Windows(episodes, choice, units)
    aside = [Windows(episodes, choice, units, seed=seed).validation(episodes) for seed in (0, 1)]
    assert len(numbers(aside[0])) == 3 - (1 in numbers(aside[0])) and numbers(aside[0]) == numbers(aside[1])
    assert not numbers(trained) & numbers(aside[0])
    assert numbers(trained) | numbers(aside[0]) == set(range(10)) - {1}  # which is shorter than a window
    unsplit = Windows(episodes, options(), units)
    assert len(trained) + len(aside[0]) == len(unsplit) and numbers(unsplit) == set(range(10)) - {1}


def test_units_are_those_of_what_is_trained_on() -> None:
    episodes, choice = line(LENGTHS), options(val_fraction=0.3)
    aside = numbers(Windows(episodes, choice, Normalizer(2, 1, 2)).validation(episodes))
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
        Windows(episodes, choice, units).validation(episodes)

    with pytest.raises(ConfigError, match=r"data\.val_fraction"):
        both()


# --- the best episodes alone ------------------------------------------------------------------------------------------

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
            assert numbers(Windows(episodes, options(top_fraction=share), Normalizer(2, 1, 2))) == expected - {1}, share
        else:
            with pytest.raises(ConfigError, match=r"data\.top_fraction"):
                Windows(episodes, options(top_fraction=share), Normalizer(2, 1, 2))


def test_all_of_them_by_default_and_the_first_of_equals() -> None:
    episodes = earning()
    assert numbers(Windows(episodes, options(), Normalizer(2, 1, 2))) == set(range(10)) - {1}
    episodes.rewards[:] = 0
    assert numbers(Windows(episodes, options(top_fraction=12 / 86), Normalizer(2, 1, 2))) == {0}  # and 1


def test_both_sides_of_what_is_held_out_are_of_the_best() -> None:
    episodes, choice = earning(), options(top_fraction=0.6, val_fraction=0.4)
    best = numbers(Windows(episodes, options(top_fraction=0.6), Normalizer(2, 1, 2)))
    trained = numbers(Windows(episodes, choice, Normalizer(2, 1, 2)))
    aside = numbers(Windows(episodes, choice, Normalizer(2, 1, 2)).validation(episodes))
    assert trained and aside and trained | aside == best and not trained & aside


@pytest.mark.parametrize("ends", [False, True])
def test_transitions_follow_from_each_of_their_goals(ends: bool) -> None:
    """Against a naive loop: the next state, and for each goal whether the step reaches it."""
    episodes = line([9, 6], terminated=[True, False], seed=3)
    choice = options(**GOALS, max_padding=0.5, terminate_at_goal=ends)
    source = plain(episodes, choice)
    batch = source.with_transitions(GoalSampling(goals=3)).batch(0, 200)
    assert same(batch, source.batch(0, 200)) and source.batch(0, 200).transitions is None
    steps = batch.transitions
    assert steps is not None and steps.goals is not None and batch.goals is not None
    assert steps.goals.shape == (200, 4, 2) and torch.equal(steps.goals[:, 0], batch.goals)
    assert episodes.achieved is not None
    for row in range(200):
        number, first = (int(value) for value in batch.states[row, 0])
        start, length = episodes.starts[number], episodes.lengths[number]
        for h in range(choice.chunk):
            at = first + h
            assert bool(steps.mask[row, h]) == (at < length)
            assert steps.next_states[row, h].tolist() == [number, min(at + 1, length)]
            if at < length:  # also after the arrival at the window's own goal, where the chunk's actions repeat
                assert steps.actions[row, h].tolist() == episodes.actions[start + at].tolist()
            for q in range(4):
                reached = episodes.achieved[start + min(at + 1, length)]
                near = at < length and float(np.linalg.norm(reached - steps.goals[row, q].numpy())) <= 0.6
                assert float(steps.rewards[row, q, h]) == near
                is_last = at + 1 == length and bool(episodes.terminated[number])
                if at < length:
                    assert bool(steps.terminals[row, q, h]) == (is_last or (ends and near))


@pytest.mark.parametrize(("current", "random"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_further_goals_are_where_their_options_say(current: float, random: float) -> None:
    choice = options(**GOALS, max_padding=0.5, discount=0.9)
    batch = plain(line([9, 6]), choice).with_transitions(GoalSampling(2, current, random)).batch(0, 4000)
    assert batch.transitions is not None and batch.transitions.goals is not None
    start, goal = batch.states[:, :1], batch.transitions.goals[:, 1:]  # achieved is (episode, step)
    if current:
        assert torch.equal(goal, (start + torch.tensor([0.0, 1.0])).expand_as(goal))
    elif random:
        assert (goal[..., 0] != start[..., 0]).float().mean().item() == pytest.approx(2 * 15 * 8 / 23**2, abs=0.05)
    else:
        ahead = (goal - start)[..., 1]
        last = torch.tensor([9.0, 6.0])[start[..., 0].long()] - start[..., 1]
        assert (goal[..., 0] == start[..., 0]).all() and (ahead >= 1).all() and (ahead <= last).all()
        share = (ahead == 1)[(last > 1).expand_as(ahead)].float().mean().item()
        assert share == pytest.approx(0.1, abs=0.02)  # 1 - discount


def test_transitions_without_goals_have_the_rewards_of_the_data() -> None:
    batch = plain(line([4], terminated=[True]), options(max_padding=1.0)).with_transitions(GoalSampling()).batch(0, 200)
    row = int(torch.nonzero(batch.states[:, 0, 1] == 2)[0])
    steps = batch.transitions
    assert steps is not None and steps.goals is None
    assert steps.rewards[row].tolist() == [[3, 4, 0]] and steps.mask[row].tolist() == [True, True, False]
    assert steps.terminals[row, 0, :2].tolist() == [False, True]
