"""Attention between scales: how much the tokens of each scale attend to those of every other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trajgen.core.protocols import Autoregressive
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Cond, Plan
from trajgen.evaluation.rollout import require_first_observations
from trajgen.nn.attention import AdaptiveBlock, block_causal_mask
from trajgen.viz.figure import INK, new_figure
from trajgen.viz.record_plans import record_plans
from trajgen.viz.run import Run

PANEL = 2.7  # inches
MOST_NUMBERS = 8
"""Scales up to which every share is written into its square."""
MOST_NAMES = 12
"""Scales up to which each is named on the axes."""


def draw_attention(path: Path, run: Run, seeds: range) -> bool:
    """Draws the attention between scales, read from plans for the first states of some episodes.

    Returns whether the run has a prior of adaptive blocks over several scales.
    """
    planners = dict(scale_planners(run.policy.planner))
    if not planners:
        return False
    observations = require_first_observations(run.eval_env, seeds)
    shares = {}
    for name, planner in planners.items():
        with record_plans(planner) as plans:
            run.policy.preview(observations)
        shares[name] = attention_between_scales(planner, plans[0].cond, plans[0].plan)
    attention_figure(path, shares, {name: planner.tokenizer.schedule for name, planner in planners.items()})
    return True


def scale_planners(planner: Any) -> Iterator[tuple[str, Any]]:
    """By name, the planners within a planner (itself among them) whose prior attends from scale to scale."""
    for name, module in planner.named_modules():
        prior, tokenizer = getattr(module, "prior", None), getattr(module, "tokenizer", None)
        blocks = getattr(prior, "blocks", ())
        adaptive = (
            isinstance(prior, Autoregressive) and len(blocks) and all(isinstance(b, AdaptiveBlock) for b in blocks)
        )
        if adaptive and tokenizer is not None and hasattr(module, "plan") and tokenizer.schedule.scales > 1:
            yield name, module


@torch.inference_mode()
def attention_between_scales(planner: Any, cond: Cond, plan: Plan) -> NDArray[np.float64]:
    """The share (K, K) of its attention that each scale (row) gives to each (column), over layers, heads and plans."""
    tokenizer, prior = planner.tokenizer, planner.prior
    inputs = tokenizer.layout.inputs(tokenizer.vectors(plan.codes))
    weights = attention_weights(prior.blocks, lambda: prior.logits(inputs, cond), prior.mask)
    return by_scale(weights, tokenizer.schedule)


def attention_weights(blocks: Sequence[AdaptiveBlock], forward: Callable[[], object], mask: Tensor) -> Tensor:
    """The attention (L, L) of all tokens to all, averaged over plans, layers and heads.

    The weights are computed from the blocks' own projections while ``forward`` predicts all tokens at once, so that
    the models need no code for it; ``mask`` (L, L) is true where a token attends.
    """
    projections: list[Tensor] = []
    hooks = [block.qkv.register_forward_hook(lambda *call: projections.append(call[2])) for block in blocks]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    layers = []
    for block, qkv in zip(blocks, projections, strict=True):
        q, k, _ = qkv.float().unflatten(-1, (3, block.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        layers.append(scores.masked_fill(~mask, -torch.inf).softmax(-1).mean((0, 1)))
    return torch.stack(layers).mean(0)


def by_scale(weights: Tensor, schedule: ScaleSchedule) -> NDArray[np.float64]:
    """Attention (L, L) between tokens as attention (K, K) between scales: summed over keys, averaged over queries."""
    rows = [[weights[queries, keys].sum(1).mean() for keys in schedule.spans] for queries in schedule.spans]
    return np.array([[float(value) for value in row] for row in rows])


def even_attention(schedule: ScaleSchedule) -> NDArray[np.float64]:
    """What `by_scale` would be if every token attended alike to all that it may."""
    mask = block_causal_mask(schedule).float()
    return by_scale(mask / mask.sum(1, keepdim=True), schedule)


def attention_figure(path: Path, shares: dict[str, NDArray[np.float64]], schedules: dict[str, ScaleSchedule]) -> None:
    """Draws attention (K, K) by planner, a row of panels each: the share, and its ratio to even attention."""
    from matplotlib.colors import TwoSlopeNorm

    with new_figure(2 * PANEL + 1.5, (PANEL + 0.35) * len(shares), path) as figure:
        panels = figure.subplots(len(shares), 2, squeeze=False)
        for (left, right), (name, matrix) in zip(panels, shares.items(), strict=True):
            even = even_attention(schedules[name])
            ratio = np.divide(matrix, even, out=np.full_like(matrix, np.nan), where=even > 0)
            share = np.where(even > 0, matrix, np.nan)
            top = max(2.0, float(np.nanmax(ratio)))
            for ax, values, dark, label, image in (
                (left, share, share > 0.55, "share of the attention", {"cmap": "Blues", "vmin": 0, "vmax": 1}),
                (right, ratio, (ratio > 0.3 + 0.7 * top) | (ratio < 0.25), "times even attention",
                 {"cmap": "PuOr_r", "norm": TwoSlopeNorm(1.0, 0.0, top)}),
            ):  # fmt: skip
                figure.colorbar(ax.imshow(values, **image), ax=ax, fraction=0.05, label=label)
                _label_scales(ax, schedules[name], values, dark)
            left.set_title(f"{name}: attention" if name else "attention between scales", loc="left")
            right.set_title("more or less than even", loc="left")
            left.set_ylabel("scale that attends (its tokens)")


def _label_scales(ax: Any, schedule: ScaleSchedule, values: NDArray[np.float64], dark: NDArray[np.bool_]) -> None:
    """Names the scales on the axes and writes the values into their squares, where there is room."""
    names = [f"{k + 1} ({n})" for k, n in enumerate(schedule.lengths)]
    if len(names) <= MOST_NAMES:
        rotation: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if len(names) > 5 else {}
        ax.set_xticks(range(len(names)), names, **rotation)
        ax.set_yticks(range(len(names)), names)
    ax.set_xlabel("scale attended to")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if len(names) <= MOST_NUMBERS:
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8 if len(names) <= 5 else 6.5}
        for row, column in zip(*np.nonzero(np.isfinite(values)), strict=True):
            color = "white" if dark[row, column] else INK
            ax.text(column, row, f"{values[row, column]:.2f}", color=color, **style)
