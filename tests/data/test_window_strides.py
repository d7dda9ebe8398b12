"""Windows at several strides: against those of a single one, and by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from lines import GOALS, line, options, plain

from trajgen.core.errors import ConfigError
from trajgen.core.types import Batch
from trajgen.data.windows import Windows

SEVERAL = (2, 4)


def starts(windows: Windows) -> dict[int, set[tuple[int, int]]]:
    """The starts of windows (episode, step), by stride."""
    batch = windows.batch(0, 2000)
    assert batch.stride is not None
    by_stride: dict[int, set[tuple[int, int]]] = {}
    for stride, (episode, step) in zip(batch.stride.tolist(), batch.states[:, 0].tolist(), strict=True):
        by_stride.setdefault(stride, set()).add((int(episode), int(step)))
    return by_stride


def test_a_window_is_a_start_and_a_stride_at_which_it_fits() -> None:
    # Three points, 2 and 4 steps apart, in episodes of 5 and 8 steps that run out of time.
    windows = plain(line([5, 8]), options(stride=SEVERAL))
    assert starts(windows) == {2: {(0, 0), (0, 1), *((1, step) for step in range(5))}, 4: {(1, 0)}}
    assert len(windows) == 7 + 1


@pytest.mark.parametrize("goals", [{}, {**GOALS, "terminate_at_goal": True}, GOALS])
def test_windows_of_several_strides_are_those_of_each(goals: dict[str, Any]) -> None:
    choice = options(stride=(2, 3, 4), max_padding=0.5, discount=0.9, **goals)
    episodes = line([11, 16, 3], terminated=[True, False, True], seed=3)
    batch = plain(episodes, choice).batch(0, 64)
    assert batch.stride is not None and batch.stride.unique().tolist() == [2, 3, 4]
    assert batch.actions.shape == (64, 3, 0, 1)  # their number would differ
    for stride in (2, 3, 4):
        single = plain(episodes, replace(choice, stride=stride)).batch(0, 4000)
        row_of = {key: row for row, key in enumerate(keys(single))}
        rows = torch.nonzero(batch.stride == stride)[:, 0].tolist()
        same = [row_of[keys(batch)[row]] for row in rows]
        for name in ("states", "rewards", "returns", "mask", "chunk_actions", "chunk_mask"):
            torch.testing.assert_close(getattr(batch, name)[rows], getattr(single, name)[same], msg=name)


def keys(batch: Batch) -> list[tuple[float, ...]]:
    """Start and goal of each window."""
    goals = batch.states[:, 0] if batch.goals is None else batch.goals
    return [tuple(key) for key in torch.cat([batch.states[:, 0], goals], dim=1).tolist()]


def test_one_stride_in_a_list_is_that_stride() -> None:
    episodes = line([11, 16], seed=3)
    one, other = (plain(episodes, options(**GOALS, stride=stride)).batch(1, 32) for stride in (2, (2,)))
    assert one.stride is other.stride is None
    assert torch.equal(one.returns, other.returns) and torch.equal(one.actions, other.actions)


def test_held_out_windows_have_all_strides() -> None:
    episodes = line([9] * 10)
    windows = plain(episodes, options(stride=SEVERAL, val_fraction=0.3))
    val, train = starts(windows.validation(episodes)), starts(windows)
    assert val.keys() == train.keys() == {2, 4}
    assert not {episode for episode, _ in val[4]} & {episode for episode, _ in train[2]}


@pytest.mark.parametrize("stride", [(4, 2), (2, 2), (0, 2), ()])
def test_strides_increase(stride: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"data\.stride"):
        options(stride=stride)


def test_a_stride_at_which_no_window_fits_is_refused_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match=r"data\.stride=\[2,3\]"):
        plain(line([6]), options(stride=(2, 3, 4)))
