"""Numbers as distributions over bins, against sums by hand."""

from __future__ import annotations

import math

import pytest
import torch

from trajgen.nn.histogram import Histogram


def test_the_loss_is_the_cross_entropy_to_the_two_bins_beside_a_number() -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    values = torch.tensor([-3.0, -2.0, -1.9, 0.5, 1.75, 2.5])
    beside = [{0: 1.0}, {0: 1.0}, {0: 0.9, 1: 0.1}, {2: 0.5, 3: 0.5}, {3: 0.25, 4: 0.75}, {4: 1.0}]
    loss = Histogram(5, 2.0).loss(logits, values)
    for i, shares in enumerate(beside):
        total = math.log(sum(math.exp(float(each)) for each in logits[i]))
        expected = sum(share * (total - float(logits[i, bin])) for bin, share in shares.items())
        assert float(loss[i]) == pytest.approx(expected, abs=1e-5)


def test_the_mean_is_that_of_the_distribution() -> None:
    logits = torch.tensor([0.2, 0.3, 0.5, 0.0]).log()
    assert float(Histogram(4, 3.0).mean(logits)) == pytest.approx(-3 * 0.2 - 1 * 0.3 + 1 * 0.5, abs=1e-6)


def test_draws_are_the_bins_where_the_cumulated_probabilities_pass_the_shares() -> None:
    logits = torch.tensor([0.2, 0.3, 0.5, 0.0]).log().expand(7, -1)
    shares = torch.tensor([0.0, 0.1, 0.19, 0.21, 0.49, 0.51, 1.0])
    drawn = Histogram(4, 3.0).draw(logits, shares)
    assert drawn.tolist() == [-3.0, -3.0, -3.0, -1.0, -1.0, 1.0, 1.0]


@pytest.mark.parametrize("value", [-2.0, -1.3, 0.0, 0.77, 2.0])
def test_what_it_learns_of_one_number_is_that_number(value: float) -> None:
    told = Histogram(9, 2.0)
    logits = torch.zeros(1, 9, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        told.loss(logits, torch.tensor([value])).sum().backward()
        optimizer.step()
    assert float(told.mean(logits.detach())[0]) == pytest.approx(value, abs=0.02)
