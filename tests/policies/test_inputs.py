"""A policy that is given something else than observations and rewards of its episodes says so, and stays as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_receding_horizon import policy

from trajgen.core.errors import TrajgenError
from trajgen.core.types import Space
from trajgen.policies.inputs import ObservationReader

ENTRIES = Space(3, 2, 1, state_key="observation", goal_key="desired_goal")
ROW = np.zeros(3, np.float32)
SEEN = {"observation": np.zeros((2, 3)), "desired_goal": np.zeros((2, 1))}


@pytest.mark.parametrize(
    ("space", "batch", "observation", "words"),
    [
        (Space(3, 2), None, np.zeros(4), r"3 values[\s\S]*\(4,\)"),
        (Space(3, 2), None, (ROW, {}), "the pair .observation, info. of env.reset"),
        (Space(3, 2), None, {"observation": ROW}, r"expected: 3 numbers[\s\S]*got: +dict"),
        (Space(3, 2), None, np.array([0.0, None, 1.0], dtype=object), "finite"),
        (Space(3, 2), None, np.array(["a", "b", "c"]), "holds numbers"),
        (Space(3, 2), None, ROW * np.nan, "value 0: not finite"),
        (Space(3, 2), None, np.array([0, 0, 1e300]), "value 2: not finite"),
        (Space(3, 2), None, np.zeros((2, 3)), r"1 episodes, and gets 2[\s\S]*batch=2"),
        (Space(3, 2), 4, ROW, r"4 episodes, and gets 1 observations"),
        (Space(3, 2), 2, np.zeros((3, 3)), "2 episodes, and gets 3"),
        (Space(3, 2), 2, np.zeros((2, 1, 3)), r"shape \(2, 1, 3\)"),
        (ENTRIES, 2, np.zeros((2, 3)), "a dictionary with 'observation', 'desired_goal'"),
        (ENTRIES, 2, {"observation": np.zeros((2, 3))}, "missing"),
        (ENTRIES, 2, SEEN | {"desired_goal": np.zeros((1, 1))}, "2 states and 1 goals"),
        (ENTRIES, 2, SEEN | {"desired_goal": np.full((2, 1), np.inf)}, "goal, value 0"),
    ],
)
def test_observations_that_do_not_fit(space: Space, batch: int | None, observation: Any, words: str) -> None:
    acting = policy(space)
    acting.reset(batch=batch)
    with pytest.raises(TrajgenError, match=words):
        acting.act(observation)
    assert not acting.planner.conds


def test_whole_numbers_lists_and_read_only_arrays_are_observations() -> None:
    acting = policy()
    acting.reset()
    rows = np.ones(3, np.float32)
    rows.flags.writeable = False
    for observation in (rows, [1, 1, 1], np.ones(3, np.int64), torch.ones(3), np.ones((1, 3))):
        assert acting.act(observation).shape == (2,)


def test_a_list_of_nested_dictionaries_is_a_batch() -> None:
    nested = replace(ENTRIES, state_key=("arm/place", "arm/speed"))
    rows = [{"arm": {"place": ROW[:2] + n, "speed": ROW[:1]}, "desired_goal": ROW[:1]} for n in range(2)]
    states, goals, _ = ObservationReader(nested)(rows)
    assert states.tolist() == [[0, 0, 0], [1, 1, 0]] and goals is not None and goals.shape == (2, 1)


@pytest.mark.parametrize("reward", [np.array([1.0, 4.0]), np.array([[1.0], [4.0]]), [1, 4]])
def test_rewards_are_one_for_each_episode(reward: Any) -> None:
    acting = policy(replan_interval=1, discount=1.0)
    acting.reset(batch=2)
    acting.act(np.zeros((2, 3)))
    acting.observe(reward, [False, False])
    acting.act(np.zeros((2, 3)))
    assert acting.planner.conds[-1].returns.tolist() == [9.0, 6.0]


@pytest.mark.parametrize(
    ("reward", "done", "words"),
    [
        (np.array([1.0, np.nan]), [False, False], "reward is finite"),
        (1.0, [False, False], "one value for each"),
        (np.zeros(3), [False, False], "one value for each"),
        (np.zeros((2, 2)), [False, False], "one value for each"),
        ([None, 1.0], [False, False], "reward is"),
        (np.zeros(2), False, "done is one value"),
    ],
)
def test_other_rewards_are_refused_and_change_nothing(reward: Any, done: Any, words: str) -> None:
    acting = policy(discount=1.0)
    acting.reset(batch=2)
    acting.act(np.zeros((2, 3)))
    with pytest.raises(TrajgenError, match=words):
        acting.observe(reward, done)
    assert acting._remaining.tolist() == [10.0, 10.0]


@pytest.mark.parametrize("ids", [[True, False, True], np.array([True, False, True]), [0, 2], np.array([2, 0])])
def test_episodes_start_anew_by_number_or_by_truth_value(ids: Any) -> None:
    acting = policy(replan_interval=4)
    acting.reset(batch=3)
    acting.act(np.zeros((3, 3)))
    acting.reset(ids=ids)
    assert acting.act(np.zeros((3, 3))).tolist() == [[2, 0], [1, 1], [2, 0]]
    acting.reset(ids=[])


@pytest.mark.parametrize("ids", [[3], [-1], [True, False], [0.5], ["a"], [[0]]])
def test_episodes_that_there_are_not_are_named(ids: Any) -> None:
    acting = policy()
    acting.reset(batch=3)
    with pytest.raises(TrajgenError, match="numbers from 0 to 2, or 3 truth values"):
        acting.reset(ids=ids)


@pytest.mark.parametrize("batch", [-1, 0, 2.5, True, "2"])
def test_a_batch_is_a_number_of_episodes(batch: Any) -> None:
    acting = policy()
    acting.reset(batch=np.int64(3))
    with pytest.raises(TrajgenError, match=r"whole number of episodes[\s\S]*batch="):
        acting.reset(batch=batch)
    assert acting.act(np.zeros((3, 3))).shape == (3, 2)


def test_nothing_is_done_before_a_reset() -> None:
    for states in (np.zeros(3), np.zeros((2, 3))):
        with pytest.raises(TrajgenError, match="must be reset before"):
            policy().act(states)
    with pytest.raises(TrajgenError, match="one value for each episode"):
        policy().observe(1.0, False)
    with pytest.raises(TrajgenError):
        policy().reset(ids=[0])
