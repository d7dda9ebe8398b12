"""Statistics of scores: means, interquartile means, bootstrap intervals, normalized scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Statistic = Callable[..., Array]
"""Maps one or more samples (..., n) to one value each (...), along the last axis."""

RESAMPLES = 2000


class Summary(NamedTuple):
    """A sample of n scores; ``ci95`` is the bootstrap interval of the mean."""

    mean: float
    iqm: float
    ci95: tuple[float, float]
    std: float
    n: int


def mean(values: ArrayLike) -> Array:
    """The mean along the last axis."""
    return np.asarray(values, dtype=np.float64).mean(-1)


def interquartile_mean(values: ArrayLike) -> Array:
    """The mean of the middle half along the last axis (Agarwal et al. 2021, arXiv 2108.13264).

    A quarter of the n values, rounded down, is left out at either end.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64), axis=-1)
    cut = ordered.shape[-1] // 4
    return ordered[..., cut : ordered.shape[-1] - cut].mean(-1)


def mean_difference(values: ArrayLike, reference: ArrayLike) -> Array:
    """The mean of ``values`` less the mean of ``reference``."""
    return mean(values) - mean(reference)


def mean_ratio(values: ArrayLike, reference: ArrayLike) -> Array:
    """The mean of ``values`` over the mean of ``reference``; NaN where the latter is not positive."""
    bottom = mean(reference)
    return np.divide(mean(values), bottom, out=np.full_like(bottom, np.nan), where=bottom > 0)


def ratio_difference(values: ArrayLike, unit: ArrayLike, reference: ArrayLike, reference_unit: ArrayLike) -> Array:
    """The `mean_ratio` of ``values`` to ``unit`` less that of ``reference`` to its own unit."""
    return mean_ratio(values, unit) - mean_ratio(reference, reference_unit)


def bootstrap_interval(
    statistic: Statistic,
    *samples: ArrayLike,
    draw_rows: bool = False,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile-bootstrap interval of ``statistic``.

    Several samples are paired: element i of each comes from the same episode, and they are drawn
    together. Samples of shape (seeds, episodes) are resampled within each row (stratified, Agarwal et
    al. 2021), which leaves the rows' weights as they are, and then pooled. With ``draw_rows`` rows and columns are
    drawn, each with replacement (Owen 2007, arXiv 0712.1111): the interval then speaks of other seeds too, where all
    seeds play the same episodes. If these were drawn for each row apart, as in a hierarchical bootstrap, more seeds
    would pass for more episodes.

    Raises:
        ValueError: if the samples' shapes differ, or they are empty.
    """
    arrays = [np.atleast_2d(np.asarray(sample, dtype=np.float64)) for sample in samples]
    if not arrays or arrays[0].size == 0 or any(a.shape != arrays[0].shape or a.ndim > 2 for a in arrays):
        raise ValueError(f"samples must share one shape (n,) or (seeds, n), got {[a.shape for a in arrays]}")
    rows, n = arrays[0].shape
    indices = np.random.default_rng(seed).integers(n, size=(resamples, 1 if draw_rows else rows, n))
    strata = np.arange(rows)[:, None]
    if draw_rows:
        strata = np.random.default_rng([seed, 1]).integers(rows, size=(resamples, rows, 1))
    values = statistic(*(array[strata, indices].reshape(resamples, rows * n) for array in arrays))
    tail = 50 * (1 - confidence)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def summarize(values: ArrayLike) -> Summary:
    """Summarizes scores (n,) or (seeds, n); the deviation is the sample's (n - 1), and 0 for one score."""
    scores = np.asarray(values, dtype=np.float64)
    return Summary(
        mean=float(mean(scores.ravel())),
        iqm=float(interquartile_mean(scores.ravel())),
        ci95=bootstrap_interval(mean, scores),
        std=float(scores.std(ddof=1)) if scores.size > 1 else 0.0,
        n=scores.size,
    )


def normalized(values: ArrayLike, bounds: tuple[float, float]) -> Array:
    """The normalized score 100·(r - low)/(high - low) (D4RL, arXiv 2004.07219), element by element."""
    low, high = bounds
    return 100.0 * (np.asarray(values, dtype=np.float64) - low) / (high - low)
