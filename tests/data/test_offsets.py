"""Features with a large offset, such as seconds since 1970, lose no steps: data and policies subtract it in 64 bits."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import small_sets

from trajgen.core.types import Space
from trajgen.data import minari
from trajgen.data.episodes import Episodes
from trajgen.data.fingerprint import fingerprint
from trajgen.data.options import DataOptions
from trajgen.importing import from_arrays
from trajgen.policies.inputs import ObservationReader

ID = "tests/offsets-v0"
GOALS: dict[str, Any] = {"state_key": "observation", "goal_key": "desired_goal", "achieved_key": "achieved_goal"}
T = np.arange(101)


def rows(start: float = 0.0) -> np.ndarray:
    """Seconds since 1970, metres of UTM, a plain feature, noise about a constant, and whole numbers."""
    return np.stack([1.7e9 + start + T, 4649776.0 + 0.1 * T, T / 10, 0.1 + 1e-9 * np.sin(T), 1e6 + T], axis=1)


def episode(**changes: Any) -> dict[str, Any]:
    return {"observations": rows(), "actions": np.sin(T[:-1, None]), "rewards": np.zeros(100)} | changes


def load(**options: Any) -> Episodes:
    return minari.load(ID, DataOptions(id=ID, **options))


@pytest.mark.parametrize("mapped", [False, True])
def test_no_step_is_lost_on_the_way_to_the_model(mapped: bool) -> None:
    far = rows(1e6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_arrays(ID, [episode(), episode(observations=far)])
        episodes = load(memory_map=mapped)
    offset = episodes.space.state_offset
    assert offset[0] == 1.7e9 + 500050 and offset[2:] == (0, 0, 0)
    np.testing.assert_allclose(np.float64(episodes.states[:101]) + offset, rows(), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(np.diff(episodes.states[:, 0])[:100], 1)
    states, *_ = ObservationReader(episodes.space)(np.concatenate([rows(), far]))
    np.testing.assert_array_equal(states, episodes.states)  # a policy sees what the model was trained on, bit for bit
    if mapped:
        again = load(memory_map=True)
        assert fingerprint(again) == fingerprint(load(memory_map=False)) and again.space == episodes.space
        assert "offsets" in fingerprint(again)


def test_data_without_large_offsets_are_read_as_they_are() -> None:
    from_arrays(ID, [episode(observations=rows()[:, 2:])])
    episodes = load()
    assert episodes.space.state_offset == () and "offsets" not in fingerprint(episodes)
    np.testing.assert_array_equal(episodes.states, rows()[:, 2:].astype(np.float32))


@pytest.mark.parametrize("goal_state", [(), (1, 2)])
def test_goals_and_what_is_measured_against_them_have_one_offset(goal_state: tuple[int, ...]) -> None:
    states = rows()
    places = states[:, 1:3]
    goals = places[::-1] + np.array([0.05, 0])
    observations = {"observation": states, "desired_goal": goals, "achieved_goal": places}
    space = small_sets.unbounded({"observation": 5, "desired_goal": 2, "achieved_goal": 2})
    small_sets.save(ID, [small_sets.episode(observations, np.zeros((100, 1), np.float32))], space, 1)
    episodes = load(**GOALS, goals="hindsight", goal_state=goal_state)
    space = episodes.space
    assert not goal_state or space.goal_offset == (space.state_offset[1], 0.0)
    assert episodes.goals is not None and episodes.achieved is not None
    np.testing.assert_allclose(episodes.goals - episodes.achieved, goals - places, atol=1e-6)
    assert space.goal_offset[0] == pytest.approx(4649781, abs=0.1) and space.goal_offset[1] == 0
    _, read_goals, _ = ObservationReader(space)(observations)
    np.testing.assert_array_equal(read_goals, episodes.goals)


def test_what_cannot_be_centered_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="field 'rewards': 32-bit floats do not hold the steps of feature 0"):
        from_arrays(ID, [episode(rewards=1e9 + T[:-1])])
    from_arrays(ID, [episode(), episode(observations=rows(1e12))], force=True)  # the range itself is too large
    with pytest.warns(UserWarning, match="shorter ranges"):
        load()


@pytest.mark.parametrize("offset", [(1.0, float("nan"), 0.0), (1.0,)])
def test_an_offset_that_does_not_fit_is_refused(offset: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="3 finite numbers"):
        Space(state_dim=3, action_dim=1, state_offset=offset)
