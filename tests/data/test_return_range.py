"""The range of returns that a return target tells apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from lines import options

from trajgen.core.types import USUAL_RETURNS, Space
from trajgen.data.episodes import Episode, Episodes
from trajgen.data.return_range import with_return_range
from trajgen.data.windows import fit_normalizer


def episodes(rewards: np.ndarray) -> Episodes:
    states = np.arange(len(rewards) + 1.0)[:, None]
    raw = [Episode(states, states[1:], rewards, terminated=True)]
    return Episodes.collect(raw, name="line", space=Space(1, 1, 0, "s", None))


def test_it_reaches_the_return_of_a_start_that_costs_more_than_all_that_follows() -> None:
    data, choice = episodes(np.where(np.arange(100) < 2, -10.0, -0.01)), options(discount=0.5, stride=1, horizon=4)
    low, high = with_return_range(data, choice).space.return_range
    start = -10 - 10 / 2 - 0.01 * (1 / 4) * 2
    returns = fit_normalizer(data, choice).returns
    assert low == pytest.approx(float(returns(torch.tensor([start]))), abs=1e-2) and low < -4
    assert high == USUAL_RETURNS[1]


def test_it_is_the_usual_one_for_others() -> None:
    data = episodes(np.random.default_rng(0).normal(size=200))
    assert with_return_range(data, options()).space == replace(data.space, return_range=USUAL_RETURNS)
