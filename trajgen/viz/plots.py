"""Pictures of plans, training and returns, as PNG files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from trajgen.core.files import read_metrics
from trajgen.evaluation.figures import GOAL, INK, LINES, SOFT, WALL, saved_figure, time_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

Walls = Sequence[tuple[float, float, float, float]]
"""Rectangles (x, y, width, height), where (x, y) is the lower left corner, in the world's units."""

PANEL = 2.5  # inches
LEAST_WIDTH = 5.0  # inches; what the keys below the panels need
MOST_IN_A_ROW = 5
MOST_STAGES = 3
"""Panels of learning curves in a row."""


def draw_maze(ax: Axes, walls: Walls) -> None:
    """Draws wall rectangles, true to scale, without axes; most of the outer wall is cut off."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    patches = [Rectangle((x, y), width, height) for x, y, width, height in walls]
    ax.add_collection(PatchCollection(patches, facecolor=WALL, edgecolor=WALL, linewidth=0.5, zorder=0))
    left, bottom, right, top = _view(walls)
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    ax.axis("off")


def _view(walls: Walls) -> tuple[float, float, float, float]:
    """Left, bottom, right and top of what is shown of a maze."""
    rectangles = np.asarray(walls, dtype=float).reshape(-1, 4)
    inset = 0.7 * rectangles[:, 2:].min()
    left, bottom = rectangles[:, :2].min(0) + inset
    right, top = (rectangles[:, :2] + rectangles[:, 2:]).max(0) - inset
    return float(left), float(bottom), float(right), float(top)


def _draw_ends(ax: Axes, start: ArrayLike, goal: ArrayLike | None) -> None:
    ax.plot(*np.asarray(start), "o", color="white", mec=INK, mew=1.3, ms=6.5, zorder=5, label="start")
    if goal is not None:
        ax.plot(*np.asarray(goal), "*", color=GOAL, mec="white", mew=0.8, ms=14, zorder=5, label="goal")


def _draw_path(ax: Axes, points: np.ndarray, colors: Colormap, width: float, dots: float) -> None:
    """One path (T, 2), colored along time, as a line and, where ``dots`` > 0, its points."""
    from matplotlib.collections import LineCollection

    time = np.linspace(0, 1, len(points))
    line = LineCollection(
        list(pairwise(points)), cmap=colors, array=time[:-1], linewidths=width, capstyle="round", zorder=3
    )
    ax.add_collection(line)
    if dots:
        ax.scatter(points[:, 0], points[:, 1], c=time, cmap=colors, s=dots, linewidths=0, zorder=4)


def plan_figure(
    path: str | Path,
    walls: Walls,
    scales: ArrayLike,
    start: ArrayLike,
    goal: ArrayLike | None,
    executed: ArrayLike | None,
    titles: Sequence[str],
) -> None:
    """Draws plans over the maze, one panel a scale from coarse to fine, and the executed path last.

    Args:
        scales: positions (K, n, T, 2) of n plans, decoded after each of the K scales.
        start, goal: positions (2,).
        executed: positions (m, 2) that were visited.
        titles: of the K panels.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.lines import Line2D

    plans, colors = np.asarray(scales, dtype=float), time_colours()
    walked = None if executed is None else np.asarray(executed, dtype=float)
    panels = len(plans) + (walked is not None)
    rows = -(-panels // MOST_IN_A_ROW)
    columns = -(-panels // rows)
    left, bottom, right, top = _view(walls)
    side = max(PANEL, LEAST_WIDTH / columns)
    height = side * (top - bottom) / (right - left)
    with saved_figure(path, side * columns, rows * (height + 0.25) + 0.45, "compressed") as figure:
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax in axes[panels:]:
            ax.axis("off")
        for k, (ax, candidates) in enumerate(zip(axes, plans, strict=False)):
            draw_maze(ax, walls)
            for points in candidates:
                _draw_path(ax, points, colors, 1.3, 11)
            _draw_ends(ax, start, goal)
            ax.set_title(titles[k])
        if walked is not None:
            ax = axes[panels - 1]
            draw_maze(ax, walls)
            for points in plans[-1]:
                ax.plot(*points.T, color=SOFT, lw=1.0, ls=(0, (2, 1.6)), zorder=2)
            _draw_path(ax, walked, colors, 2.4, 0)
            _draw_ends(ax, start, goal)
            ax.set_title(f"executed ({len(walked) - 1} steps)")
        marks = axes[0].get_legend_handles_labels()[0]
        if walked is not None:
            marks.append(Line2D([], [], color=SOFT, lw=1.0, ls=(0, (2, 1.6)), label="plan"))
        bar = figure.colorbar(
            ScalarMappable(cmap=colors), ax=axes.tolist(), orientation="horizontal",
            fraction=0.035, aspect=35, shrink=0.25, pad=0.02, ticks=[0, 1], anchor=(0.03, 0.5),
        )  # fmt: skip
        bar.ax.set_xticklabels(["first step", "last step"])
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
        figure.legend(handles=marks, loc="lower right", ncols=len(marks), handletextpad=0.4)


def curves_figure(
    path: str | Path,
    scales: ArrayLike,
    titles: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    executed: ArrayLike | None = None,
    limits: tuple[ArrayLike, ArrayLike] | None = None,
    most: int = 6,
) -> None:
    """Draws planned states over time where there is no map: a row a feature, a column a scale.

    Args:
        scales: states (K, n, T, S) of n plans, decoded after each scale.
        titles: of the K columns.
        names: of the S features.
        executed: states (T, S) that followed, at the plan's points in time.
        limits: the lowest and the highest usual states (S,) of the data, drawn as a band.
        most: features drawn; those that vary most in the final plan.
    """
    plans = np.asarray(scales, dtype=float)
    scales_count, _, points, features = plans.shape
    names = names or [f"state {i}" for i in range(features)]
    shown = np.sort(np.argsort(-plans[-1].std(axis=(0, 1)), kind="stable")[:most])
    with saved_figure(path, max(4.0, 2.1 * scales_count + 0.6), 1.25 * len(shown) + 0.9) as figure:
        axes = figure.subplots(len(shown), scales_count, squeeze=False, sharex=True, sharey="row")
        for row, feature in zip(axes, shown, strict=True):
            for k, ax in enumerate(row):
                if limits is not None:
                    low, high = (np.asarray(end, dtype=float)[feature] for end in limits)
                    ax.axhspan(low, high, color=SOFT, alpha=0.15, lw=0, zorder=0, label="98 % of the data")
                lines = ax.plot(plans[k, :, :, feature].T, color=LINES[0], lw=1.2, alpha=0.75)
                lines[0].set_label("plan" if len(lines) == 1 else "plans")
                if executed is not None:
                    followed = np.asarray(executed, dtype=float)[:points, feature]
                    ax.plot(followed, color=LINES[1], lw=1.4, ls="--", label="executed")
                ax.grid(True, axis="y")
            row[0].set_ylabel(names[feature])
        for k, ax in enumerate(axes[0]):
            ax.set_title(titles[k])
        for ax in axes[-1]:
            ax.set_xlabel("point of the plan")
        if executed is not None or limits is not None:
            figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower right", ncols=3, fontsize=8)


def training_figure(path: str | Path, metrics: str | Path, *, losses: Sequence[str] | None = None) -> None:
    """Draws the losses over steps, a panel a stage, on a logarithmic axis.

    Args:
        metrics: a JSON-lines file whose rows hold ``stage``, ``step`` and figures.
        losses: the keys to draw; by default "total" and those that begin or end with "loss".
    """
    stages: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in read_metrics(metrics):
        for key, value in row.items():
            if "stage" in row and "step" in row and _is_loss(key, losses) and _positive(value):
                stages[str(row["stage"])][key].append((row["step"], value))
    count = max(1, len(stages))
    columns = min(count, MOST_STAGES)
    rows = -(-count // columns)
    with saved_figure(path, 4.6 * columns, 3.7 * rows) as figure:
        axes = figure.subplots(rows, columns, squeeze=False)
        for ax in axes.ravel()[count:]:
            ax.axis("off")
        for ax, (stage, curves) in zip(axes.ravel(), stages.items(), strict=False):
            for color, (key, points) in zip(_repeat(LINES, len(curves)), curves.items(), strict=False):
                heavy = _bare(key) == "total"
                steps, values = zip(*points, strict=True)
                shade, width = (INK, 2.4) if heavy else (color, 1.3)
                ax.plot(steps, values, color=shade, lw=width, label=_bare(key))
            ax.set_yscale("log")
            ax.grid(True, which="major", axis="y")
            ax.set_title(stage.replace("_", " "), loc="left", fontweight="bold", parse_math=False)
            ax.set_xlabel("step")
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=8, ncols=3, columnspacing=1.2)
        for ax in axes[:, 0]:
            ax.set_ylabel("loss")
        if not stages:
            axes[0, 0].text(0.5, 0.5, "no losses were logged", ha="center", transform=axes[0, 0].transAxes)


def _is_loss(key: str, wanted: Sequence[str] | None) -> bool:
    if wanted is not None:
        return key in wanted
    folder, _, name = key.rpartition("/")
    return name == "total" or folder in ("loss", "losses") or name.startswith("loss") or name.endswith("loss")


def _bare(key: str) -> str:
    return key.rpartition("/")[2].removeprefix("loss_").replace("_", " ")


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and np.isfinite(value) and value > 0


def _repeat(colors: Sequence[str], count: int) -> list[str]:
    return [colors[i % len(colors)] for i in range(count)]


def returns_figure(
    path: str | Path,
    returns: ArrayLike,
    reference: ArrayLike,
    *,
    labels: tuple[str, str] = ("policy", "controller"),
) -> None:
    """Draws each episode's return against the reference's return on the same episode.

    Args:
        returns, reference: (n,), in the order of the same seeds; NaN where an episode failed.
        labels: names of the two.
    """
    own, other = np.asarray(returns, dtype=float), np.asarray(reference, dtype=float)
    both = np.isfinite(own) & np.isfinite(other)
    own, other = own[both], other[both]
    everything = np.concatenate([own, other, [0.0]])
    margin = 0.05 * max(float(np.ptp(everything)), 1e-6)
    ends = [float(everything.min()) - margin, float(everything.max()) + margin]
    with saved_figure(path, 4.4, 4.4) as figure:
        ax = figure.subplots()
        ax.plot(ends, ends, color=SOFT, lw=1, ls=(0, (4, 3)), zorder=1)
        ax.scatter(other, own, s=34, color=LINES[0], alpha=0.7, edgecolors="white", linewidths=0.6, zorder=3)
        ax.set(xlim=ends, ylim=ends, aspect="equal")
        ax.set_xlabel(f"return of the {labels[1]}")
        ax.set_ylabel(f"return of the {labels[0]}")
        ax.grid(True)
        ax.set_axisbelow(True)
        if own.size:
            words = f"{own.size} episodes\nmean {own.mean():.1f} against {other.mean():.1f}"
            ax.text(0.04, 0.96, words, transform=ax.transAxes, va="top")
