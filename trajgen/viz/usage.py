"""How the codes of a codebook came to be used, scale by scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trajgen.evaluation.figures import INK, SOFT, saved_figure, shades

WIDTH, HEIGHT = 7.6, 2.6  # inches of a row
WHOLE = "all"
"""What the tokenizers call all scales together."""

Curves = dict[str, list[tuple[int, float]]]
"""For each scale, steps and figures."""


def usage_of(rows: Sequence[Mapping[str, Any]], figure: str) -> dict[str, Curves]:
    """The lines ``figure/SCALE`` of metrics: for each stage that has them, the curve of each scale."""
    found: dict[str, Curves] = {}
    for row in rows:
        for key, value in row.items():
            group, _, scale = key.partition("/")
            if group == figure and isinstance(value, int | float) and np.isfinite(value):
                curves = found.setdefault(str(row.get("stage")), {})
                curves.setdefault(scale, []).append((int(row.get("step", 0)), float(value)))
    return found


def usage_figure(path: Path, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Draws the share of codes in use and the perplexity, a line a scale, a row of panels a stage.

    Args:
        path: of the picture.
        rows: of metrics, with keys ``usage/SCALE`` and ``perplexity/SCALE``.

    Returns:
        Whether there was anything to draw.
    """
    used, perplexity = usage_of(rows, "usage"), usage_of(rows, "perplexity")
    if not used:
        return False
    with saved_figure(path, WIDTH, HEIGHT * len(used) + 0.2) as figure:
        panels = figure.subplots(len(used), 2, squeeze=False)
        for (left, right), (stage, shares) in zip(panels, used.items(), strict=True):
            _curves(left, {k: [(step, 100 * v) for step, v in line] for k, line in shares.items()})
            left.set_ylim(0, 104)
            left.set_ylabel("share of the codebook, %")
            left.set_title(f"{_spaced(stage)}: codes in use", loc="left", parse_math=False)
            _curves(right, perplexity.get(stage, {}))
            right.set_ylim(bottom=0)
            right.set_ylabel("codes, if all were used alike")
            right.set_title(f"{_spaced(stage)}: perplexity", loc="left", parse_math=False)
            for ax in (left, right):
                ax.set_xlabel("step")
                ax.grid(True, axis="y")
            handles, labels = left.get_legend_handles_labels()
            right.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return True


def _curves(ax: Any, curves: Curves) -> None:
    scales = [name for name in curves if name != WHOLE]
    colors = dict(zip(scales, shades(len(scales)), strict=True))
    for name, line in curves.items():
        steps, values = zip(*line, strict=True)
        whole = name == WHOLE and len(scales) > 1
        style = (0, (3, 2)) if whole else "-"
        color = INK if whole else colors.get(name, SOFT)
        ax.plot(steps, values, color=color, lw=1.5, ls=style, label=_spaced(name))


def _spaced(name: str) -> str:
    return name.replace("_", " ")
