"""Distributions over bins against hand-computed sums."""

from __future__ import annotations

import math

import pytest
import torch

from trajgen.nn.layers import Histogram

LOGITS = torch.tensor([0.2, 0.3, 0.5, 0.0]).log()


def test_the_loss_is_the_cross_entropy_to_the_two_bins_next_to_a_number() -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    values = torch.tensor([-3.0, -2.0, -1.9, 0.5, 1.75, 2.5])
    targets = [{0: 1.0}, {0: 1.0}, {0: 0.9, 1: 0.1}, {2: 0.5, 3: 0.5}, {3: 0.25, 4: 0.75}, {4: 1.0}]
    loss = Histogram(5, -2.0, 2.0).loss(logits, values)
    for i, target in enumerate(targets):
        log_total = math.log(sum(math.exp(float(logit)) for logit in logits[i]))
        expected = sum(weight * (log_total - float(logits[i, k])) for k, weight in target.items())
        assert float(loss[i]) == pytest.approx(expected, abs=1e-5)


def test_mean_and_samples_by_hand() -> None:
    assert float(Histogram(4, -3.0, 3.0).mean(LOGITS)) == pytest.approx(-3 * 0.2 - 1 * 0.3 + 1 * 0.5, abs=1e-6)
    uniform = torch.tensor([0.0, 0.1, 0.19, 0.21, 0.49, 0.51, 1.0])
    samples = Histogram(4, -3.0, 3.0).sample(LOGITS.expand(7, -1), uniform)
    assert samples.tolist() == [-3.0, -3.0, -3.0, -1.0, -1.0, 1.0, 1.0]


def test_a_range_by_hand() -> None:
    histogram = Histogram(4, -5.0, 1.0)  # centers at -5, -3, -1 and 1
    assert float(histogram.mean(LOGITS)) == pytest.approx(-5 * 0.2 - 3 * 0.3 - 1 * 0.5, abs=1e-6)
    assert float(histogram.quantile(LOGITS, 0.35)) == pytest.approx(-3.0, abs=1e-4)
    losses = histogram.loss(LOGITS.clamp(min=-9).expand(3, -1), torch.tensor([-7.0, -4.0, 2.0]))
    assert losses.tolist() == pytest.approx([-math.log(0.2), -(math.log(0.2) + math.log(0.3)) / 2, 9.0], abs=1e-3)


def test_quantiles_by_hand() -> None:
    histogram = Histogram(4, -3.0, 3.0)  # bins as wide as 2
    quantiles = [float(histogram.quantile(LOGITS, level)) for level in (0.1, 0.2, 0.35, 0.75, 0.99)]
    assert quantiles == pytest.approx([-3.0, -2.0, -1.0, 1.0, 1.96], abs=1e-4)


@pytest.mark.parametrize("value", [-2.0, -1.3, 0.0, 0.77, 2.0])
def test_trained_on_one_number_the_mean_is_that_number(value: float) -> None:
    histogram, logits = Histogram(9, -2.0, 2.0), torch.zeros(1, 9, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        histogram.loss(logits, torch.tensor([value])).sum().backward()
        optimizer.step()
    assert float(histogram.mean(logits.detach())[0]) == pytest.approx(value, abs=0.02)
