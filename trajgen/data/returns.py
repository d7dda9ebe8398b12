"""Returns-to-go of the stored rewards, and the discounts of those that follow from a window's goal."""

from __future__ import annotations

import math
from itertools import accumulate

import numpy as np

from trajgen.data.episodes import Episodes
from trajgen.data.mapped import drop_pages

NEGLIGIBLE = 1e-3
"""Discount below which a reward is left out."""


def returns_to_go(episodes: Episodes, discount: float) -> np.ndarray:
    """Discounted sum of the stored rewards from each row (M,) to the end of its episode; in memory, also of files."""
    returns = np.zeros(episodes.rewards.shape, np.float32)
    for first, last in zip(episodes.starts, episodes.ends, strict=True):
        backwards = episodes.rewards[first : last + 1][::-1].tolist()
        returns[first : last + 1] = list(accumulate(backwards, lambda rest, reward: reward + discount * rest))[::-1]
    drop_pages(episodes.rewards)
    return returns


def score_episodes(returns: np.ndarray, lengths: np.ndarray) -> dict[str, float]:
    """What recorded episodes with these returns and lengths (E,) earned: their mean, that of the best tenth."""
    best = np.sort(returns)[-max(1, round(len(returns) / 10)) :]
    return {
        "mean": float(returns.mean()),
        "best_tenth": float(best.mean()),
        "episodes": len(returns),
        "median_steps": float(np.median(lengths)),
    }


def episode_returns(episodes: Episodes) -> np.ndarray:
    """The sum of the stored rewards of each episode (E,)."""
    returns = np.add.reduceat(
        episodes.rewards, episodes.starts, dtype=np.float64
    )  # the row after the last step is zero
    drop_pages(episodes.rewards)
    return returns


def strides_ahead(episodes: Episodes, stride: int, discount: float) -> int:
    """How many strides a return-to-go looks ahead: until rewards are negligible, or the longest episode ends."""
    longest = int(episodes.lengths.max())
    steps = math.log(NEGLIGIBLE) / math.log(discount) if discount < 1 else math.inf
    return math.ceil(min(longest, steps) / stride)


def stride_discounts(points: int, stride: int, discount: float, ahead: int) -> np.ndarray:
    """Weights (strides, points) of the reward of each stride in the return-to-go of each point."""
    lag = np.arange(points + ahead - 1)[:, None] - np.arange(points)
    weights = discount ** (stride * lag.astype(float))
    return np.where((lag >= 0) & (lag < ahead), weights, 0.0).astype(np.float32)
