"""The pictures of a study: a mean with its interval for each variant, and its score against the time of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trajgen.viz.figure import DASHED, INK, LINES, SOFT, log_scale, new_figure

MARKS = {"steps": ("o", LINES[0], -0.14), "time": ("D", LINES[1], 0.14)}
"""Marker, color and offset of what variants have equal to the reference."""


def drawn_over(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the intervals of a study are over: a single seed is none."""
    return "seeds and episodes" if any(len(row["by_seed"]) > 1 for row in rows) else "the episodes of one seed"


def draw_study(path: Path, rows: Sequence[Mapping[str, Any]], *, title: str, reference: str, unit: str) -> None:
    """Draws each variant's mean and 95 % interval over seeds and episodes, and small marks for single seeds.

    ``rows`` have ``variant``, ``equal`` ("steps" or "time"), ``reference`` (a boolean), ``mean`` or None, ``ci95`` and
    ``by_seed``; the variant called ``reference`` is printed in bold.
    """
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    rows = [row for row in rows if row["mean"] is not None]
    kinds = [kind for kind in MARKS if any(row["equal"] == kind for row in rows)]
    width = 5.6 + 0.07 * max(map(len, variants), default=0)
    with new_figure(width, 1.25 + 0.42 * max(1, len(variants)), path) as figure:
        ax = figure.subplots()
        for row in [row for row in rows if row["reference"]][:1]:
            if None not in row["ci95"]:
                ax.axvspan(*row["ci95"], color=SOFT, alpha=0.15, lw=0, zorder=0)
            ax.axvline(row["mean"], color=SOFT, lw=1, ls=DASHED, zorder=1)
        for row in rows:
            marker, color, offset = MARKS[row["equal"]]
            y = variants.index(row["variant"]) + offset * (len(kinds) > 1)
            seeds = [value for value in row["by_seed"].values() if value is not None]
            ax.plot(seeds, [y] * len(seeds), "|", color=color, ms=7, mew=1.2, alpha=0.55, zorder=2)
            if None not in row["ci95"]:
                ax.plot(row["ci95"], [y, y], color=color, lw=2, solid_capstyle="round", zorder=3)
            ax.plot(row["mean"], y, marker, color=color, mec="white", mew=0.9, ms=7.5, zorder=4)
        ax.set_yticks(range(len(variants)), variants)
        for label, name in zip(ax.get_yticklabels(), variants, strict=True):
            label.set_fontweight("bold" if name == reference else "normal")
        ax.set_ylim(len(variants) - 0.5, -0.5)
        ax.grid(True, axis="x")
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.set_xlabel(f"{unit}, 95 % over {drawn_over(rows)}")
        ax.set_title(title, loc="left", fontweight="bold", color=INK)
        if len(kinds) > 1:
            for kind in kinds:
                ax.plot([], [], MARKS[kind][0], color=MARKS[kind][1], mec="white", ms=7.5, label=f"equal {kind}")
            figure.legend(loc="outside upper right", ncols=2, handletextpad=0.2, fontsize=9)
        if not rows:
            ax.text(0.5, 0.5, "no cell is finished", ha="center", transform=ax.transAxes)


def draw_curves(path: Path, rows: Sequence[Mapping[str, Any]], *, title: str, unit: str) -> bool:
    """Draws the means and intervals of variants whose budgets alone differ over minutes of training; says if any do.

    ``rows`` are those of `draw_study`, with ``curve``, the name of the curve that they are points of, and ``minutes``.
    """
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row.get("curve") and row["mean"] is not None and row["minutes"]:
            curves.setdefault(row["curve"], []).append(row)
    if not curves:
        return False
    with new_figure(7.6, max(4.0, 1.0 + 0.22 * len(curves)), path) as figure:
        ax = figure.subplots()
        for index, (name, points) in enumerate(curves.items()):
            points.sort(key=lambda row: row["minutes"])
            color, style = LINES[index % len(LINES)], ("-", "--", ":")[index // len(LINES) % 3]
            minutes, means = ([row[key] for row in points] for key in ("minutes", "mean"))
            ax.plot(minutes, means, marker="o", ls=style, color=color, mec="white", ms=6, label=name)
            for row in points:
                if None not in row["ci95"]:
                    ax.plot([row["minutes"]] * 2, row["ci95"], color=color, lw=1.5, alpha=0.6)
        log_scale(ax, "x")
        ax.grid(True, axis="y")
        ax.set_xlabel("minutes of training")
        ax.set_ylabel(f"{unit}, 95 % over {drawn_over(rows)}")
        ax.set_title(title, loc="left", fontweight="bold", color=INK)
        figure.legend(loc="outside right upper", fontsize=9)
    return True
