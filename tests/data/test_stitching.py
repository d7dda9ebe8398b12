"""Stitched episodes on two corridors that cross: one is walked from west to east, the other from south to north."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.types import Space
from trajgen.data.episodes import Episode, Episodes
from trajgen.data.options import DataOptions
from trajgen.data.stitching import with_stitched
from trajgen.data.windows import Windows

STEPS = 10
WEST, NORTH = (-5.0, 0.0), (0.0, 5.0)
OPTIONS = DataOptions(
    id="cross-v0", horizon=3, stride=5, chunk=5, max_padding=0.5, discount=0.9, return_power=1.0, stitch=0.875,
    state_key="s", goal_key="g", achieved_key="a", goals="hindsight", relabel_ratio=1.0, goal_radius=0.5,
    terminate_at_goal=True, max_episode_steps=STEPS,
)  # fmt: skip


def cross(copies: int = 8, apart: float = 0.0) -> Episodes:
    """Walks of ten steps of length 1 along x and along y; those along y pass ``apart`` beside the crossing."""
    along, still = np.arange(-5.0, 6.0), np.zeros(STEPS + 1)
    ways = [np.stack([along, still], 1), np.stack([still, along + apart], 1)]
    actions, rewards = np.arange(1.0, STEPS + 1)[:, None], np.ones(STEPS)
    raw = [Episode(way, actions, rewards, False, np.repeat(way[-1:], STEPS + 1, 0), way) for way in ways]
    return Episodes.collect(raw * copies, name="cross", space=Space(2, 1, 2, "s", "g"))


def test_paths_turn_at_the_crossing_and_nowhere_else() -> None:
    episodes = cross()
    stitched = with_stitched(episodes, OPTIONS)
    assert len(stitched) == 16 + stitched.stitched
    assert np.array_equal(stitched.states[: len(episodes.states)], episodes.states)
    turns = 0
    for first, last in zip(stitched.starts[16:], stitched.ends[16:], strict=True):
        path = stitched.states[first : last + 1]
        steps = np.diff(path, axis=0)
        assert (np.abs(steps).sum(1) == 1).all()  # no jumps: one episode is where the other one was
        for (at, before), (_, after) in pairwise(zip(path[1:], steps, strict=False)):
            if (before != after).any():
                assert at.tolist() == [0, 0] and before.sum() == after.sum() == 1
                turns += 1
        assert (stitched.goals[first : last + 1] == path[-1]).all()
        assert not stitched.actions[last].any() and stitched.actions[first:last].all()
    assert turns > 5


@pytest.mark.parametrize("stitch", [0.5, 0.875])
def test_stitched_steps_are_the_share_where_paths_end_early(stitch: float) -> None:
    """Walks of ten steps that are left behind at random steps have half as many, and more of them are needed."""
    episodes = cross()
    stitched = with_stitched(episodes, replace(OPTIONS, stitch=stitch))
    most = stitched.lengths[16:].max()
    assert 0 <= stitched.lengths[16:].sum() - stitch / (1 - stitch) * episodes.steps < 4 * most
    assert stitched.lengths[16:].mean() < 0.8 * STEPS


def test_a_window_leads_from_the_start_of_one_to_the_end_of_the_other_only_if_stitched() -> None:
    for stitch, leads in ((0.0, False), (0.875, True)):
        options = replace(OPTIONS, stitch=stitch)
        windows = Windows(with_stitched(cross(), options), options, Normalizer(2, 1, 2))
        batch = windows.batch(0, 6000)
        assert batch.goals is not None
        is_west = (batch.states[:, 0] == batch.states.new_tensor(WEST)).all(1)
        rows = is_west & (batch.goals == batch.goals.new_tensor(NORTH)).all(1)
        assert bool(rows.any()) == leads
        if leads:  # by the crossing, and a reward after ten steps: 0.9^9, 0.9^4, and the arrival
            assert batch.states[rows].unique(dim=0).tolist() == [[[-5, 0], [0, 0], [0, 5]]]
            np.testing.assert_allclose(batch.returns[rows][0], [0.9**9, 0.9**4, 0.0], rtol=1e-5)


def test_held_out_episodes_are_no_part_of_paths() -> None:
    options = replace(OPTIONS, val_fraction=0.5)
    episodes = cross(2)
    windows = Windows(episodes, options, Normalizer(2, 1, 2))
    validation = windows.validation(episodes).batch(0, 200).chunk_states
    with_paths = Windows(stitched := with_stitched(episodes, options), options, Normalizer(2, 1, 2))
    again = with_paths.validation(stitched).batch(0, 200).chunk_states
    assert {tuple(x) for x in validation[:, 0].tolist()} == {tuple(x) for x in again[:, 0].tolist()}


def test_a_path_does_not_leave_a_terminal() -> None:
    """A walk along x ends at the crossing, since the task is over there; one beside it goes on."""
    walks = [cross(1).states[:11], cross(1).states[11:], cross(1).states[:11] + np.array([0.0, 2.0], np.float32)]
    walks[0] = walks[0][:6]
    raw = [
        Episode(way, np.ones((len(way) - 1, 1)), np.ones(len(way) - 1), number == 0, way, way)
        for number, way in enumerate(walks)
    ] * 8
    episodes = Episodes.collect(raw, name="ending", space=Space(2, 1, 2, "s", "g"))
    stitched = with_stitched(episodes, OPTIONS)
    over = 0
    for first, last, terminated in zip(stitched.starts, stitched.ends, stitched.terminated, strict=True):
        path = stitched.states[first : last + 1]
        comes_from_west = (path[1:] == 0).all(1) & (path[:-1, 1] == 0)
        assert not comes_from_west[:-1].any() and terminated == comes_from_west[-1]
        over += first >= len(episodes.states) and terminated
    assert over > 5


def test_episodes_that_do_not_meet_are_refused() -> None:
    far = cross(1, apart=100.0)
    with pytest.raises(ConfigError, match="none of them do"):
        with_stitched(far, OPTIONS)
    with pytest.raises(ConfigError, match=r"data\.stitch"):
        replace(OPTIONS, stitch=1.0)
