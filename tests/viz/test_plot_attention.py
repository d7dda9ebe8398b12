"""Attention between scales: the weights are those that the prior computes, and their sums are right by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F

from trajgen.core.schedule import ScaleSchedule
from trajgen.nn import attention as own
from trajgen.viz.attention import attention_figure, attention_weights, between_scales, by_scale, even, levels


@pytest.fixture
def planner() -> Any:
    return tiny.shake(tiny.planner(prior={"depth": 2})).eval()


def test_sums_over_scales_by_hand() -> None:
    schedule = ScaleSchedule((1, 2))
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.3, 0.5], [0.4, 0.6, 0.0]])
    np.testing.assert_allclose(by_scale(weights, schedule), [[1.0, 0.0], [0.3, 0.7]], rtol=1e-6)
    np.testing.assert_allclose(even(schedule), [[1.0, 0.0], [1 / 3, 2 / 3]], rtol=1e-6)


def test_the_weights_are_those_that_the_prior_attends_with(planner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against torch's own kernel: with values that say which token is which, it gives the weights themselves."""
    cond, tokenizer, prior = tiny.cond(3), planner.tokenizer, planner.prior
    tokens = tokenizer.schedule.tokens
    codes = torch.randint(12, (3, tokens))
    inputs = tokenizer.inputs(tokenizer.vectors(codes))
    seen = []

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        which = torch.eye(tokens).expand(*q.shape[:2], tokens, tokens)
        seen.append(F.scaled_dot_product_attention(q, k, which, attn_mask=mask))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    monkeypatch.setattr(own, "attend", attend)
    with torch.no_grad():
        found = attention_weights(prior.blocks, lambda: prior.logits(inputs, cond), tokenizer.schedule)
    expected = torch.stack(seen).mean((0, 1, 2))
    assert len(seen) == 2
    torch.testing.assert_close(found, expected)
    assert not any(block.qkv._forward_hooks for block in prior.blocks)


def test_no_scale_looks_at_a_finer_one(planner: Any) -> None:
    cond = tiny.cond(4)
    shares = between_scales(planner, cond, planner.plan(cond))
    np.testing.assert_allclose(shares.sum(1), 1.0, rtol=1e-5)
    assert (shares[np.triu_indices(len(shares), 1)] == 0).all() and (np.diag(shares) > 0).all()
    assert np.abs(shares - even(planner.tokenizer.schedule)).max() > 1e-3


@pytest.mark.parametrize(
    ("recipe", "words", "expected"),
    [
        ("mage", [], [""]),
        ("hierarchy", ["data.horizon=32"], ["high", "low"]),
        ("flat", [], []),  # one scale
        ("dt", [], []),  # another kind of block
        ("diffuser", [], []),
        ("bc", [], []),
    ],
)
def test_levels_that_attend_from_scale_to_scale(
    recipe: str, words: list[str], expected: list[str], fresh_run: Callable[..., Path]
) -> None:
    from trajgen.experiments import load_policy

    policy = load_policy(fresh_run(recipe, *words), device="cpu")
    assert [name for name, _ in levels(policy.planner)] == expected


@pytest.mark.parametrize("lengths", [(1, 2, 4), (1,) * 20, (3, 9)])
def test_the_figure_takes_any_schedule(lengths: tuple[int, ...], tmp_path: Path) -> None:
    schedule = ScaleSchedule(lengths)
    path = tmp_path / "attention.png"
    attention_figure(path, {"": even(schedule), "low": even(schedule)}, {"": schedule, "low": schedule})
    assert path.stat().st_size > 4000
