"""Windows of tasks that end on arrival: what comes after the goal is padding, and pays nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from trajgen.core.errors import ConfigError
from trajgen.core.normalise import Normaliser
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
        "power": 1.0,
        "goal_key": "goal",
        "achieved_key": "place",
        "goals": "hindsight",
        "desired_share": 0.0,
        "goal_radius": 0.25,
        "max_padding": 1.0,
        **changes,
    }
    return Windows(walk(), DataOptions(id="walk", **settings), Normaliser(1, 1, 1))


def first_arrival(start: int, goal: float) -> int:
    place = walk().states[:, 0]
    return next(row for row in range(start + 1, STEPS + 1) if abs(place[row] - goal) <= 0.25)


def test_a_window_ends_where_its_goal_is_first_reached() -> None:
    batch = windows(goal_ends=True).batch(0, 200)
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


def test_a_goal_that_is_never_reached_leaves_the_window_as_it_is() -> None:
    asked = {"goals": "desired", "goal_radius": 0.25}
    one, other = (windows(goal_ends=ends, **asked).batch(0, 50) for ends in (True, False))
    assert torch.equal(one.mask, other.mask) and torch.equal(one.states, other.states)
    assert float(one.returns.abs().max()) == 0


def test_an_end_on_arrival_needs_a_radius() -> None:
    with pytest.raises(ConfigError, match="goal_radius"):
        DataOptions(id="walk", goal_ends=True)
