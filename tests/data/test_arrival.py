"""Windows of tasks that end on arrival: what comes after the goal is padding, and pays nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.types import Space
from trajgen.data.episodes import Episode, Episodes
from trajgen.data.options import DataOptions
from trajgen.data.windows import Windows

STEPS, DISCOUNT = 40, 0.9


def walk() -> Episodes:
    """A walk along a line to 20 and back, one unit a step; the goal asked for is never reached."""
    place = np.concatenate([np.arange(21.0), np.arange(19.0, -1.0, -1.0)])[:, None]
    raw = Episode(
        states=place,
        actions=np.ones((STEPS, 1)),
        rewards=np.zeros(STEPS),
        goals=np.full_like(place, 99.0),
        achieved=place,
    )
    return Episodes.collect([raw], name="walk", space=Space(1, 1, 1, "state", "goal"))


def windows(**changes: Any) -> Windows:
    settings: dict[str, Any] = {
        "horizon": 8,
        "stride": 2,
        "chunk": 4,
        "discount": DISCOUNT,
        "return_power": 1.0,
        "goal_key": "goal",
        "achieved_key": "place",
        "goals": "hindsight",
        "relabel_ratio": 1.0,
        "goal_radius": 0.25,
        "max_padding": 1.0,
        **changes,
    }
    return Windows(walk(), DataOptions(id="walk", **settings), Normalizer(1, 1, 1))


def first_arrival(start: int, goal: float) -> int:
    place = walk().states[:, 0]
    return next(row for row in range(start + 1, STEPS + 1) if abs(place[row] - goal) <= 0.25)


def test_a_window_ends_where_its_goal_is_first_reached() -> None:
    batch = windows(terminate_at_goal=True).batch(0, 200)
    assert batch.goals is not None and batch.time is not None
    passed_twice = 0
    for index, start in enumerate(batch.time.tolist()):
        goal = float(batch.goals[index, 0])
        arrival = first_arrival(start, goal)
        again = windows().batch(0, 200).returns[index, 0] if index < 3 else None
        expected = DISCOUNT ** (arrival - start - 1)
        assert float(batch.returns[index, 0]) == pytest.approx(expected, abs=2e-3)
        assert again is None or float(again) >= expected - 2e-3  # without an end, coming back pays once more
        points = start + 2 * np.arange(8)
        assert batch.mask[index].tolist() == (points <= arrival).tolist()
        assert batch.chunk_mask[index].tolist() == (start + np.arange(4) < arrival).tolist()
        beyond = batch.states[index, torch.from_numpy(points >= arrival)]
        assert torch.equal(beyond, torch.full_like(beyond, walk().states[arrival, 0]))
        assert float(batch.rewards[index].sum()) == float(arrival <= start + 16)
        passed_twice += sum(abs(walk().states[start + 1 :, 0] - goal) <= 0.25) > 1
    assert passed_twice > 20


def test_beyond_an_arrival_that_absorbs_every_point_is_the_goal() -> None:
    left_out, stays = (
        windows(terminate_at_goal=True, absorbing_terminals=absorbing).batch(0, 200) for absorbing in (False, True)
    )
    assert stays.time is not None and stays.goals is not None
    arrived = 0
    for index, start in enumerate(stays.time.tolist()):
        arrival = first_arrival(start, float(stays.goals[index, 0]))
        beyond = torch.from_numpy(start + 2 * np.arange(8) > arrival)
        assert stays.mask[index, ~beyond].all() and not left_out.mask[index, beyond].any()
        if start + 2 * 8 >= arrival:  # of an arrival beyond the window nothing is known
            assert stays.mask[index].all()
            arrived += int(beyond.any())
        assert not stays.returns[index, beyond].any() and not stays.rewards[index, beyond].any()
    assert arrived > 20
    assert torch.equal(stays.states, left_out.states) and torch.equal(stays.chunk_mask, left_out.chunk_mask)


@pytest.mark.parametrize("terminated", [True, False])
def test_a_terminal_absorbs_and_a_timeout_does_not(terminated: bool) -> None:
    raw = Episode(states=np.arange(7.0)[:, None], actions=np.ones((6, 1)), rewards=np.ones(6), terminated=terminated)
    episodes = Episodes.collect([raw], name="fall", space=Space(1, 1, 0, "state", None))
    choice = DataOptions(
        id="fall", horizon=4, stride=1, chunk=2, return_power=1.0, max_padding=0.5, absorbing_terminals=True
    )
    batch = Windows(episodes, choice, Normalizer(1, 1, 0)).batch(0, 50)
    assert batch.time is not None
    real = batch.time.unsqueeze(1) + torch.arange(4) <= 6
    assert not real.all()
    assert torch.equal(batch.mask, torch.ones_like(real) if terminated else real)


def test_a_goal_that_is_never_reached_leaves_the_window_as_it_is() -> None:
    asked = {"goals": "dataset", "goal_radius": 0.25}
    one, other = (windows(terminate_at_goal=ends, **asked).batch(0, 50) for ends in (True, False))
    assert torch.equal(one.mask, other.mask) and torch.equal(one.states, other.states)
    assert float(one.returns.abs().max()) == 0


def test_an_end_on_arrival_needs_a_radius() -> None:
    with pytest.raises(ConfigError, match="goal_radius"):
        DataOptions(id="walk", terminate_at_goal=True)
