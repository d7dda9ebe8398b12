"""The picture of a study: a mean with its interval for each variant, and a line for the reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trajgen.evaluation.figures import INK, LINES, SOFT, saved_figure
from trajgen.experiments.results import RATIO

MARKS = {"steps": ("o", LINES[0]), "time": ("D", LINES[1])}


def draw_results(path: Path, results: Mapping[str, Any]) -> None:
    """Draws each variant's mean and 95 % interval over seeds and episodes, and small marks for single seeds."""
    rows = [row for row in results["rows"] if row["mean"] is not None]
    variants = list(dict.fromkeys(row["variant"] for row in results["rows"]))
    kinds = [kind for kind in MARKS if any(row["equal"] == kind for row in rows)]
    shift = {kind: 0.0 if len(kinds) == 1 else (-0.14, 0.14)[number] for number, kind in enumerate(kinds)}
    widest = max((len(name) for name in variants), default=0)
    with saved_figure(path, 5.6 + 0.07 * widest, 1.25 + 0.42 * max(1, len(variants))) as figure:
        ax = figure.subplots()
        reference = next((row for row in rows if row["reference"]), None)
        if reference is not None:
            if None not in reference["ci95"]:
                ax.axvspan(*reference["ci95"], color=SOFT, alpha=0.15, lw=0, zorder=0)
            ax.axvline(reference["mean"], color=SOFT, lw=1, ls=(0, (4, 3)), zorder=1)
        for row in rows:
            mark, color = MARKS[row["equal"]]
            y = variants.index(row["variant"]) + shift[row["equal"]]
            seeds = [value for value in row["by_seed"].values() if value is not None]
            ax.plot(seeds, [y] * len(seeds), "|", color=color, ms=7, mew=1.2, alpha=0.55, zorder=2)
            if None not in row["ci95"]:
                ax.plot(row["ci95"], [y, y], color=color, lw=2, solid_capstyle="round", zorder=3)
            ax.plot(row["mean"], y, mark, color=color, mec="white", mew=0.9, ms=7.5, zorder=4)
        ax.set_yticks(range(len(variants)), variants)
        for label, name in zip(ax.get_yticklabels(), variants, strict=True):
            label.set_fontweight("bold" if name == results["reference"] else "normal")
        ax.set_ylim(len(variants) - 0.5, -0.5)
        ax.grid(True, axis="x")
        ax.set_axisbelow(True)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        what = "mean return / controller's" if results["unit"] == RATIO else "mean return"
        ax.set_xlabel(f"{what}, 95 % over seeds and episodes")
        ax.set_title(results["study"], loc="left", fontweight="bold", color=INK)
        if len(kinds) > 1:
            for kind in kinds:
                mark, color = MARKS[kind]
                ax.plot([], [], mark, color=color, mec="white", ms=7.5, label=f"equal {kind}")
            figure.legend(loc="outside upper right", ncols=2, handletextpad=0.2)
        if not rows:
            ax.text(0.5, 0.5, "no cell is finished", ha="center", transform=ax.transAxes)
