"""The codebook's one step of running averages by hand, revival, and how its use is counted."""

from __future__ import annotations

import math

import pytest
import torch
from test_pyramid import fill

from trajgen.core.schedule import ScaleSchedule
from trajgen.tokenizers.codebook import Codebook
from trajgen.tokenizers.usage import Usage


def test_one_step_of_the_running_averages() -> None:
    made = Codebook(3, 2, decay=0.9, dead_code_threshold=0.0, commitment=0.25)
    table = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    fill(made, table)
    x = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [9.0, 1.0]]])  # two near code 0, one near code 1, none near 2
    made.train()
    loss = made.learn(x)
    torch.testing.assert_close(made.table, table)
    made.after_step()
    counts = [0.9 + 0.1 * n for n in (2, 1, 0)]
    averages = [
        [0.1 * 1, 0.1 * 2],
        [0.9 * 10 + 0.1 * 9, 0.1 * 1],
        [0.0, 0.9 * 10],
    ]
    expected = torch.tensor([[v / n for v in row] for row, n in zip(averages, counts, strict=True)])
    torch.testing.assert_close(made.table, expected, atol=1e-3, rtol=1e-4)  # but for the library's smoothing
    squares = (1 + 4 + 1 + 1) / 6  # over 3 vectors of 2 numbers
    assert float(loss.detach()) == pytest.approx(0.25 * squares, rel=1e-4)


def test_codes_out_of_use_are_revived_with_vectors_of_the_batch() -> None:
    made = Codebook(4, 2, decay=0.5, dead_code_threshold=0.4)
    fill(made, torch.tensor([[0.0, 0.0], [50.0, 50.0], [60.0, 60.0], [70.0, 70.0]]))
    made.train()
    x = torch.randn(1, 64, 2)
    for _ in range(3):
        made.learn(x)
        made.after_step()
    assert (torch.cdist(made.table, x[0]).min(1).values < 1.0).all()
    assert len(made.nearest(x).unique()) == 4


def test_the_first_codes_are_centres_of_the_data() -> None:
    torch.manual_seed(0)
    made = Codebook(2, 2).train()
    x = torch.cat([torch.randn(1, 50, 2) * 0.1 + 5, torch.randn(1, 50, 2) * 0.1 - 5], 1)
    made.learn(x)
    assert sorted(made.table[:, 0].round().tolist()) == [-5, 5]


def test_nothing_moves_in_evaluation() -> None:
    made = Codebook(3, 2).train()
    made.learn(torch.randn(1, 30, 2))
    before = made.table.clone()
    made.eval().learn(torch.randn(1, 30, 2) + 3)
    made.after_step()
    assert torch.equal(made.table, before)


def test_nearest_is_the_smallest_distance() -> None:
    made = Codebook(30, 3)
    fill(made, torch.randn(30, 3))
    x = torch.randn(4, 5, 3)
    naive = [[min(range(30), key=lambda v: float((made.table[v] - p).square().sum())) for p in row] for row in x]
    assert made.nearest(x).tolist() == naive


def test_use_by_hand() -> None:
    counter = Usage(ScaleSchedule((1, 2)), 4)
    counter.add(torch.tensor([[0, 1, 1], [0, 2, 1]]))
    found = counter.take()
    assert found["usage/scale_1"] == pytest.approx(1 / 4) and found["usage/scale_2"] == pytest.approx(2 / 4)
    assert found["usage/all"] == pytest.approx(3 / 4)
    assert found["perplexity/scale_1"] == pytest.approx(1)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found["perplexity/scale_2"] == pytest.approx(math.exp(entropy))
    assert counter.take()["usage/all"] == 0
