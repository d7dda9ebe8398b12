"""The charts of a page, as SVG that takes its colors from the page: light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trajgen.evaluation.figures import INK, LINES, SOFT, STYLE, drawn_figure
from trajgen.experiments.run_folder import NOT_LOSSES
from trajgen.viz.report.facts import Facts

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

    @property
    def main(self) -> bool:
        """Whether it is what a stage minimizes."""
        return self.loss == "total"


def color_of(index: int) -> int:
    """The number of a run's color."""
    return index % len(LINES)


def learning_charts(runs: Sequence[Facts]) -> list[Chart]:
    """A chart for each loss of each stage, a line for each run."""
    curves: dict[tuple[str, str], dict[int, list[tuple[float, float]]]] = {}
    for number, run in enumerate(runs):
        for row in run.metrics:
            for key, value in row.items():
                if key not in NOT_LOSSES and "/" not in key and isinstance(value, int | float) and value > 0:
                    lines = curves.setdefault((str(row["stage"]), key), {})
                    lines.setdefault(number, []).append((float(row["step"]), float(value)))
    ordered = sorted(curves, key=lambda name: name[1] != "total")[:MOST_CHARTS]
    return [Chart(*name, _chart(curves[name], f"c{i}")) for i, name in enumerate(ordered)]


def _chart(lines: Mapping[int, Sequence[tuple[float, float]]], prefix: str) -> str:
    with drawn_figure(WIDTH, HEIGHT) as figure:
        ax = figure.subplots()
        for number, points in lines.items():
            every = max(1, len(points) // MOST_POINTS)
            steps, values = zip(*points[::every], strict=True)
            dash = DASHES[number // len(LINES) % len(DASHES)]
            ax.plot(steps, values, color=LINES[color_of(number)], lw=1.6, ls=dash)
        ax.set_yscale("log")
        ax.set_xlabel("step")
        ax.grid(True, which="major", axis="y")
        return _svg(figure, prefix)


def _svg(figure: Any, prefix: str) -> str:
    """A figure as an SVG element: as wide as its place, its identifiers its own, its colors the page's."""
    from matplotlib import rc_context

    text = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix, "savefig.transparent": True}):
        figure.savefig(text, format="svg", metadata=nothing)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{prefix}-", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    named = {INK: "ink", SOFT: "soft", STYLE["grid.color"]: "grid"}
    named |= {line: f"line-{number}" for number, line in enumerate(LINES)}
    for color, name in named.items():
        svg = svg.replace(color, f"var(--{name})")
    return svg.replace("<svg", '<svg role="img"', 1)


def interval_bar(mean: float | None, ends: tuple[float, float] | None, low: float, high: float) -> str:
    """A mean and its interval on an axis from ``low`` to ``high``, as an SVG element; empty where there is no mean."""
    if mean is None:
        return ""
    span = max(high - low, 1e-9)

    def place(value: float) -> float:
        return 4 + 192 * (min(max(value, low), high) - low) / span

    whisker = ""
    if ends is not None:
        whisker = f'<line x1="{place(ends[0]):.1f}" x2="{place(ends[1]):.1f}" y1="8" y2="8" class="whisker"/>'
    return (
        '<svg class="bar" viewBox="0 0 200 16" role="img" aria-label="mean and its 95 % interval">'
        f'<line x1="4" x2="196" y1="8" y2="8" class="axis"/>{whisker}'
        f'<circle cx="{place(mean):.1f}" cy="8" r="4.5" class="mean"/></svg>'
    )
