"""Statistics against figures worked out by hand and against naive loops."""

from __future__ import annotations

import numpy as np
import pytest

from trajgen.evaluation.statistics import (
    bootstrap_interval,
    interquartile_mean,
    mean,
    mean_difference,
    mean_ratio,
    normalized,
    summarize,
)


def test_interquartile_mean_by_hand() -> None:
    assert interquartile_mean([100, 1, 2, 3, 4, 5, 6, -50]) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert interquartile_mean([0, 0, 1, 5, 90]) == pytest.approx((0 + 1 + 5) / 3)  # one of five is cut at each end
    assert interquartile_mean([1, 2, 9]) == pytest.approx(4)  # nothing to cut
    rows = np.array([[4.0, 1.0, 2.0, 3.0], [8.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(interquartile_mean(rows), [2.5, 0.0])


def test_bootstrap_is_the_naive_loop() -> None:
    scores = np.random.default_rng(1).normal(5, 2, 17)
    generator = np.random.default_rng(3)
    naive = []
    for _ in range(200):
        resampled = [scores[generator.integers(17)] for _ in range(17)]
        naive.append(sum(sorted(resampled)[4:13]) / 9)
    naive.sort()
    low, high = bootstrap_interval(interquartile_mean, scores, resamples=200, seed=3)
    assert naive[3] <= low <= naive[6]
    assert naive[193] <= high <= naive[196]


def test_bootstrap_covers_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    trials = [bootstrap_interval(mean, generator.normal(0, 1, 48), resamples=400, seed=i) for i in range(200)]
    assert 0.88 <= np.mean([low <= 0 <= high for low, high in trials]) <= 0.99


def test_strata_are_not_mixed() -> None:
    scores = np.array([[0.0] * 10, [100.0] * 10])
    assert bootstrap_interval(mean, scores) == (50.0, 50.0)
    low, high = bootstrap_interval(mean, scores.ravel())
    assert low < 40 and high > 60


def test_pairs_are_drawn_together() -> None:
    base = np.random.default_rng(0).normal(100, 50, 48)
    assert bootstrap_interval(mean_difference, base + 3, base) == pytest.approx((3, 3))
    assert bootstrap_interval(mean_ratio, 0.9 * base, base) == pytest.approx((0.9, 0.9))


def test_bootstrap_is_seeded_and_refuses_unequal_samples() -> None:
    scores = np.arange(10.0)
    assert bootstrap_interval(mean, scores, seed=1) == bootstrap_interval(mean, scores, seed=1)
    assert bootstrap_interval(mean, scores, seed=1) != bootstrap_interval(mean, scores, seed=2)
    with pytest.raises(ValueError, match="one shape"):
        bootstrap_interval(mean_difference, scores, scores[:5])
    with pytest.raises(ValueError, match="one shape"):
        bootstrap_interval(mean, [])


def test_summary_by_hand() -> None:
    summary = summarize([1.0, 2.0, 3.0, 6.0])
    assert (summary.mean, summary.iqm, summary.n) == (3.0, 2.5, 4)
    assert summary.std == pytest.approx(np.sqrt((4 + 1 + 0 + 9) / 3))
    assert summary.ci95[0] < 3 < summary.ci95[1]
    assert summarize([4.0]).std == 0.0


def test_normalized_by_hand() -> None:
    np.testing.assert_allclose(normalized([23.85, 161.86, 92.855], (23.85, 161.86)), [0, 100, 50])
