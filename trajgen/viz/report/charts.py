"""The charts of a page, as SVG that takes its colors from the page: light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trajgen.viz.figure import GRID, INK, LINES, SOFT, log_scale, new_figure
from trajgen.viz.report.facts import Facts
from trajgen.viz.training import curves

WIDTH, HEIGHT = 4.1, 2.5  # inches: as wide as a telephone, so that type is not shrunk there
MOST_POINTS = 200
"""Points of a curve; of more, these are picked evenly."""
MOST_CHARTS = 40
DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)))
"""For the second and the third run of a color."""


@dataclass(frozen=True)
class Chart:
    """A learning curve of every run that has this loss."""

    stage: str
    loss: str
    svg: str


def learning_charts(runs: Sequence[Facts]) -> list[Chart]:
    """A chart for each loss of each stage, a line for each run; those of the total losses come first."""
    lines: dict[tuple[str, str], dict[int, list[tuple[float, float]]]] = {}
    for index, run in enumerate(runs):
        for stage, losses in curves(run.metrics).items():
            for loss, points in losses.items():
                lines.setdefault((stage, loss), {})[index] = points
    names = sorted(lines, key=lambda name: name[1] != "total")[:MOST_CHARTS]
    return [Chart(*name, _chart(lines[name], f"c{i}")) for i, name in enumerate(names)]


def _chart(lines: Mapping[int, Sequence[tuple[float, float]]], prefix: str) -> str:
    """Learning curves by the index of their run, as an SVG element whose identifiers begin with ``prefix``."""
    from matplotlib import rc_context

    text = io.StringIO()
    with new_figure(WIDTH, HEIGHT) as figure:
        ax = figure.subplots()
        for index, points in lines.items():
            steps, values = zip(*points[:: max(1, len(points) // MOST_POINTS)], strict=True)
            dash = DASHES[index // len(LINES) % len(DASHES)]
            mark = "o" if len(steps) == 1 else None
            ax.plot(steps, values, color=LINES[index % len(LINES)], lw=1.6, ls=dash, marker=mark)
        log_scale(ax)
        ax.set_xlabel("step")
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix, "savefig.transparent": True}):
            figure.savefig(text, format="svg", metadata=metadata)
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<svg([^>]*?) width="[^"]*"', r'<svg role="img"\1', svg, count=1)  # as wide as its place
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{prefix}-", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    variables = {INK: "ink", SOFT: "soft", GRID: "grid"} | {color: f"line-{i}" for i, color in enumerate(LINES)}
    for color, name in variables.items():
        svg = svg.replace(color, f"var(--{name})")
    return svg
