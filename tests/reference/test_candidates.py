"""The candidates that continue a plan: the likeliest joint choices, and draws that differ."""

from __future__ import annotations

import itertools

import pytest
import torch

from trajgen.samplers.beam import is_repeated, likeliest, sample_candidates


def test_the_likeliest_joint_choices_are_exact() -> None:
    logits = torch.randn(5, 3, 4)
    combinations = torch.tensor(list(itertools.product(range(4), repeat=3)))
    sums = logits[:, torch.arange(3), combinations].sum(-1)  # (5, 64)
    for count in (1, 2, 7, 64):
        assert torch.equal(likeliest(logits, count), combinations[sums.topk(count, dim=1).indices])
    assert likeliest(logits, 100).shape == (5, 64, 3)


def test_draws_of_a_token_differ_and_hold_the_likeliest() -> None:
    logits = torch.randn(500, 1, 6)
    ids = sample_candidates(logits, 3, torch.Generator().manual_seed(0))[..., 0]
    assert all(len(set(row)) == 3 for row in ids.tolist())
    assert torch.equal(ids[:, 0], logits[:, 0].argmax(-1))
    assert sample_candidates(logits, 9, None).shape == (500, 6, 1)


@pytest.mark.parametrize("tokens", [1, 2])
def test_a_single_draw_is_distributed_as_softmax(tokens: int) -> None:
    logits = torch.tensor([1.5, 0.0, -1.0, 0.5]).expand(40_000, tokens, 4)
    ids = sample_candidates(logits, 1, torch.Generator().manual_seed(0))
    shares = torch.bincount(ids[:, 0, -1], minlength=4) / 40_000
    assert ids.shape == (40_000, 1, tokens)
    assert (shares - logits[0, 0].softmax(0)).abs().max() < 0.01  # 4 standard errors


def test_joint_draws_hold_the_likeliest_and_others() -> None:
    logits = torch.randn(50, 3, 4)
    ids = sample_candidates(logits, 6, torch.Generator().manual_seed(0))
    assert ids.shape == (50, 6, 3) and torch.equal(ids[:, 0], logits.argmax(-1))
    assert (ids[:, 1:] != ids[:, :1]).any(-1).float().mean() > 0.5


def test_a_candidate_that_came_before_is_no_choice() -> None:
    ids = torch.tensor([[[1, 2], [2, 1], [1, 2], [1, 2]], [[0, 0], [0, 0], [0, 1], [0, 2]]])
    assert is_repeated(ids).tolist() == [[False, False, True, True], [False, True, False, False]]
