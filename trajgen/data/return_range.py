"""The range of returns that a data set's windows begin with."""

from __future__ import annotations

from dataclasses import replace

import torch

from trajgen.core.types import USUAL_RETURNS
from trajgen.data.episodes import Episodes
from trajgen.data.options import DataOptions
from trajgen.data.windows import SAMPLE, Windows, fit_normalizer

OUTLIERS = 1e-3
"""The share of windows with lower returns, and of those with higher ones, that the range leaves out."""


def with_return_range(episodes: Episodes, options: DataOptions) -> Episodes:
    """The episodes, whose space has the range of the normalized returns at the start of windows, by a seeded sample.

    It is at least the usual one. Where few steps bring most of the rewards, returns lie far beyond it.
    """
    windows = Windows(episodes, options, fit_normalizer(episodes, options))
    returns = torch.cat([windows.batch(step, SAMPLE[1]).returns[:, 0] for step in range(SAMPLE[0])])
    low, high = returns.quantile(returns.new_tensor([OUTLIERS, 1 - OUTLIERS])).tolist()
    bounds = min(low, USUAL_RETURNS[0]), max(high, USUAL_RETURNS[1])
    return replace(episodes, space=replace(episodes.space, return_range=bounds))
