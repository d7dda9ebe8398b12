"""Who attends to whom: how much the tokens of each scale look at those of every other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Cond, Plan
from trajgen.evaluation.figures import INK, saved_figure
from trajgen.nn.attention import AdaptiveBlock, block_causal_mask
from trajgen.viz.overheard import overheard
from trajgen.viz.plans import first_observations
from trajgen.viz.run import Run

PANEL = 2.7  # inches
MOST_NUMBERS = 8
"""Scales up to which every share is written into its square."""
MOST_NAMES = 12
"""Scales up to which each is named on the axes."""


def draw_attention(path: Path, run: Run, seeds: range) -> bool:
    """Draws the attention between scales while plans for the first states of some episodes are read again.

    Args:
        path: of the picture.
        run: whose plans they are.
        seeds: of the episodes.

    Returns:
        Whether the run has a prior of adaptive blocks over several scales.
    """
    named = dict(levels(run.policy.planner))
    if not named:
        return False
    observations = first_observations(run.eval_env, seeds)
    shares = {}
    for name, level in named.items():
        with overheard(level) as heard:
            run.policy.preview(observations)
        shares[name] = between_scales(level, *heard[0])
    attention_figure(path, shares, {name: level.tokenizer.schedule for name, level in named.items()})
    return True


def levels(planner: Any) -> Iterator[tuple[str, Any]]:
    """The planners within a planner, itself among them, whose prior attends from scale to scale."""
    for name, module in planner.named_modules():
        prior, tokenizer = getattr(module, "prior", None), getattr(module, "tokenizer", None)
        blocks = getattr(prior, "blocks", ())
        stepwise = hasattr(prior, "logits") and len(blocks) and all(isinstance(b, AdaptiveBlock) for b in blocks)
        if stepwise and tokenizer is not None and hasattr(module, "plan") and tokenizer.schedule.scales > 1:
            yield name, module


@torch.inference_mode()
def between_scales(level: Any, cond: Cond, plan: Plan) -> NDArray[np.float64]:
    """The share (K, K) of its attention that each scale gives to each, over layers, heads and plans.

    Args:
        level: a planner with a tokenizer and an autoregressive prior.
        cond: B conditions.
        plan: the plans made for them.

    Returns:
        Rows are the scales that look, columns those looked at; a row sums to 1.
    """
    inputs = level.tokenizer.layout.inputs(level.tokenizer.vectors(plan.codes))
    every = attention_weights(level.prior.blocks, lambda: level.prior.logits(inputs, cond), level.tokenizer.schedule)
    return by_scale(every, level.tokenizer.schedule)


def attention_weights(blocks: Sequence[AdaptiveBlock], forward: Any, schedule: ScaleSchedule) -> Tensor:
    """The attention (L, L) of all tokens to all, averaged over plans, layers and heads.

    The weights are computed from the blocks' own projections, so that nothing is added to where models are trained.

    Args:
        blocks: of the prior.
        forward: lets the prior predict all tokens at once.
        schedule: of the tokens, which says who may look at whom.
    """
    seen: list[Tensor] = []
    hooks = [block.qkv.register_forward_hook(lambda *call: seen.append(call[2])) for block in blocks]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    mask = block_causal_mask(schedule).to(seen[0].device)
    layers = []
    for block, projected in zip(blocks, seen, strict=True):
        q, k, _ = projected.float().unflatten(-1, (3, block.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        layers.append(scores.masked_fill(~mask, -torch.inf).softmax(-1).mean((0, 1)))
    return torch.stack(layers).mean(0)


def by_scale(weights: Tensor, schedule: ScaleSchedule) -> NDArray[np.float64]:
    """Attention (L, L) between tokens as attention (K, K) between scales: summed over those seen, averaged over those
    that look."""
    rows = [[weights[own, other].sum(1).mean() for other in schedule.spans] for own in schedule.spans]
    return np.array([[float(value) for value in row] for row in rows])


def even(schedule: ScaleSchedule) -> NDArray[np.float64]:
    """What `by_scale` would be if every token looked at all that it may see alike."""
    mask = block_causal_mask(schedule).float()
    return by_scale(mask / mask.sum(1, keepdim=True), schedule)


def attention_figure(path: Path, shares: dict[str, NDArray[np.float64]], schedules: dict[str, ScaleSchedule]) -> None:
    """Draws attention between scales, a row of panels a level: the share, and the share against even attention.

    Args:
        path: of the picture.
        shares: (K, K) by level.
        schedules: of the levels.
    """
    from matplotlib.colors import TwoSlopeNorm

    with saved_figure(path, 2 * PANEL + 1.5, (PANEL + 0.35) * len(shares)) as figure:
        panels = figure.subplots(len(shares), 2, squeeze=False)
        for (left, right), (name, matrix) in zip(panels, shares.items(), strict=True):
            base = even(schedules[name])
            ratio = np.divide(matrix, base, out=np.full_like(matrix, np.nan), where=base > 0)
            allowed = np.where(base > 0, matrix, np.nan)
            image = left.imshow(allowed, cmap="Blues", vmin=0, vmax=1)
            figure.colorbar(image, ax=left, fraction=0.05, label="share of the attention")
            most = max(2.0, float(np.nanmax(ratio)))
            image = right.imshow(ratio, cmap="PuOr_r", norm=TwoSlopeNorm(1.0, 0.0, most))
            figure.colorbar(image, ax=right, fraction=0.05, label="times even attention")
            _numbers(left, allowed, lambda v: v > 0.55)
            _numbers(right, ratio, lambda v, most=most: v > 1 + 0.7 * (most - 1) or v < 0.25)
            left.set_title(f"{name}: attention" if name else "attention between scales", loc="left", parse_math=False)
            right.set_title("more or less than even", loc="left")
            for ax in (left, right):
                _axes(ax, schedules[name])
            left.set_ylabel("scale that looks (its tokens)")


def _axes(ax: Any, schedule: ScaleSchedule) -> None:
    names = [f"{k + 1} ({n})" for k, n in enumerate(schedule.lengths)]
    if len(names) <= MOST_NAMES:
        turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if len(names) > 5 else {}
        ax.set_xticks(range(len(names)), names, **turned)
        ax.set_yticks(range(len(names)), names)
    ax.set_xlabel("scale looked at")
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)


def _numbers(ax: Any, matrix: NDArray[np.float64], dark: Any) -> None:
    if len(matrix) > MOST_NUMBERS:
        return
    for (row, column), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            color = "white" if dark(value) else INK
            size = 8 if len(matrix) <= 5 else 6.5
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=size, color=color)
