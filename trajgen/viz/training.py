"""How a training went: losses, and how many codes of a codebook are used, scale by scale."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sized
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trajgen.core.files import NOT_LOSSES
from trajgen.viz.figure import DASHED, INK, LINES, log_scale, new_figure, time_colors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ALL_SCALES = "all"
"""What the tokenizers call all scales together."""
MOST_COLUMNS = 3
MOST_STAGES = 48
"""Stages that are drawn: a picture of hundreds is higher than matplotlib can make one."""

Curves = dict[str, list[tuple[float, float]]]
"""By name, points (step, value)."""


def curves(rows: Iterable[Mapping[str, Any]], group: str = "") -> dict[str, Curves]:
    """For each stage the curves of its losses, or those of a group of figures: ``group/NAME``.

    Losses that are not positive are left out, since they are drawn on a logarithmic axis.
    """
    stages: dict[str, Curves] = {}
    for row in rows:
        for key, value in row.items():
            prefix, _, name = key.rpartition("/")
            is_figure = prefix == group and key not in NOT_LOSSES and isinstance(value, int | float)
            if is_figure and math.isfinite(value) and (group or value > 0):
                stages.setdefault(str(row["stage"]), {}).setdefault(name, []).append((row["step"], value))
    return stages


def draw_losses(path: Path, rows: Iterable[Mapping[str, Any]]) -> bool:
    """Draws all losses over steps, a panel for each of the first stages; returns whether there were any."""
    all_stages = curves(rows)
    stages = _first(all_stages)
    if not stages:
        return False
    lines = -(-len(stages) // MOST_COLUMNS)
    columns = -(-len(stages) // lines)
    with new_figure(4.6 * columns, 3.7 * lines, path) as figure:
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for ax in axes[len(stages) :]:
            ax.axis("off")
        for ax, (stage, losses) in zip(axes, stages.items(), strict=False):
            styles = {name: {"color": LINES[i % len(LINES)], "lw": 1.3} for i, name in enumerate(losses)}
            _panel(ax, stage, losses, styles | {"total": {"color": INK, "lw": 2.4}})
            log_scale(ax)
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, columnspacing=1.2)
        for ax in axes[::columns]:
            ax.set_ylabel("loss")
        _tell_omitted(figure, stages, all_stages)
    return True


def draw_usage(path: Path, rows: list[dict[str, Any]]) -> bool:
    """Draws the share of codes in use and the perplexity, a line a scale, a row a stage of the first; False if none."""
    all_used, perplexity = curves(rows, "usage"), curves(rows, "perplexity")
    used = _first(all_used)
    if not used:
        return False
    with new_figure(7.6, 2.6 * len(used) + 0.2, path) as figure:
        panels = figure.subplots(len(used), 2, squeeze=False)
        for (left, right), (stage, shares) in zip(panels, used.items(), strict=True):
            scales = [name for name in shares if name != ALL_SCALES]
            colors = time_colors()(np.linspace(0, 1, len(scales)))
            styles: dict[str, dict[str, Any]] = {s: {"color": c} for s, c in zip(scales, colors, strict=True)}
            styles[ALL_SCALES] = {"color": INK, "ls": DASHED if len(scales) > 1 else "-"}
            in_percent = {name: [(step, 100 * value) for step, value in line] for name, line in shares.items()}
            _panel(left, f"{stage}: codes in use", in_percent, styles)
            _panel(right, f"{stage}: perplexity", perplexity.get(stage, {}), styles)
            left.set(ylim=(0, 104), ylabel="share of the codebook, %")
            right.set_ylim(bottom=0)
            right.set_ylabel("codes, if all were used alike")
            for ax in (left, right):
                ax.grid(True, axis="y")
            right.legend(*left.get_legend_handles_labels(), loc="center left", bbox_to_anchor=(1.0, 0.5))
        _tell_omitted(figure, used, all_used)
    return True


def _first(stages: Mapping[str, Curves]) -> dict[str, Curves]:
    return dict(islice(stages.items(), MOST_STAGES))


def _tell_omitted(figure: Figure, shown: Sized, stages: Sized) -> None:
    if len(shown) < len(stages):
        figure.suptitle(f"the first {len(shown)} of {len(stages)} stages", x=0.02, ha="left")


def _panel(ax: Axes, title: str, lines: Curves, styles: Mapping[str, Mapping[str, Any]]) -> None:
    from matplotlib.ticker import MaxNLocator

    for name, points in lines.items():
        mark = {"marker": "o"} if len(points) == 1 else {}  # a line of one point is none
        style = {"lw": 1.5, **mark, **styles.get(name, {})}
        ax.plot(*zip(*points, strict=True), label=name.replace("_", " "), **style)
    ax.set_title(title.replace("_", " "), loc="left", fontweight="bold")
    ax.set_xlabel("step")
    ax.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
