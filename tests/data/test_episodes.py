"""Episodes are checked as they come in, and laid end to end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from trajgen.core.errors import DataError
from trajgen.core.types import Space
from trajgen.data.episodes import Episode, Episodes

SPACE = Space(state_dim=2, action_dim=1, goal_dim=2, goal_key="desired_goal")


def episode(steps: int, terminated: bool = False) -> Episode:
    rows = np.arange(2.0 * (steps + 1)).reshape(-1, 2)
    return Episode(
        states=rows,
        actions=np.ones((steps, 1)),
        rewards=np.arange(1.0, steps + 1),
        terminated=terminated,
        goals=rows + 1,
        achieved=rows,
    )


def test_rows_lie_end_to_end_with_an_empty_step_after_each_episode() -> None:
    episodes = Episodes.collect([episode(2), episode(1, terminated=True)], name="two", space=SPACE)
    assert episodes.states.tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]]
    assert episodes.rewards.tolist() == [1, 2, 0, 1, 0]
    assert episodes.actions[:, 0].tolist() == [1, 1, 0, 1, 0]
    assert episodes.starts.tolist() == [0, 3]
    assert episodes.ends.tolist() == [2, 4]
    assert episodes.terminated.tolist() == [False, True]
    assert episodes.goals is not None and episodes.goals[3].tolist() == [1, 2]
    assert (len(episodes), episodes.steps) == (2, 3)
    for values in (episodes.states, episodes.actions, episodes.rewards):
        assert values.dtype == np.float32 and values.flags["C_CONTIGUOUS"]


def test_goals_are_optional() -> None:
    bare = replace(episode(2), goals=None, achieved=None)
    assert Episodes.collect([bare], name="bare", space=SPACE).goals is None


@pytest.mark.parametrize(
    ("field", "values", "words"),
    [
        ("states", np.zeros((3, 2)), "shape (3, 2)"),  # no final observation
        ("states", np.zeros((4, 5)), "shape (4, 5)"),
        ("states", np.zeros((4, 2, 1)), "shape (4, 2, 1)"),
        ("states", np.full((4, 2), "a"), "<U1"),
        ("states", np.array([[0, 0], [0, 0], [0, np.nan], [0, 0]]), "row 2"),
        ("actions", np.zeros((4, 1)), "shape (4, 1)"),
        ("actions", np.zeros((3, 2)), "shape (3, 2)"),
        ("actions", np.full((3, 1), 1e300), "row 0"),  # infinite in 32 bits
        ("rewards", np.array([0, np.inf, 0]), "row 1"),
        ("rewards", np.zeros((3, 1)), "shape (3, 1)"),
        ("rewards", np.array([None, 1.0, 2.0]), "object"),
        ("goals", np.zeros((4, 3)), "shape (4, 3)"),
        ("achieved", np.zeros((3, 2)), "shape (3, 2)"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_a_bad_field_is_named(field: str, values: Any, words: str) -> None:
    bad = replace(episode(3), **{field: values})
    with pytest.raises(DataError) as caught:
        Episodes.collect([episode(3), bad], name="the-set", space=SPACE)
    for part in ("'the-set'", "episode 1", repr(field), words):
        assert part in str(caught.value.got)


def test_an_episode_needs_a_step_and_a_set_an_episode() -> None:
    with pytest.raises(DataError, match="at least one step"):
        Episodes.collect([episode(0)], name="s", space=SPACE)
    with pytest.raises(DataError, match="at least one episode"):
        Episodes.collect([], name="s", space=SPACE)
