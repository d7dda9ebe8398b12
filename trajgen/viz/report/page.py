"""The page itself: facts and comparisons laid out by a template that escapes everything it is given."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajgen import __version__
from trajgen.core.tables import NOTHING, Table, interval, number, percent, return_digits
from trajgen.viz.figure import LINES
from trajgen.viz.report.charts import learning_charts
from trajgen.viz.report.compare import Values, option_differences, paired_difference, version_differences
from trajgen.viz.report.facts import Facts
from trajgen.viz.summary import NOTE

if TYPE_CHECKING:
    from markupsafe import Markup

HERE = Path(__file__).parent
MOST_COLUMNS = 8
"""Runs up to which each has a column of its own where options are compared."""


def page(runs: Sequence[Facts], *, title: str, command: str) -> str:
    """The page as text."""
    from jinja2 import Environment, FileSystemLoader

    templates = Environment(loader=FileSystemLoader(HERE), autoescape=True, keep_trailing_newline=True)
    templates.filters["quoted"] = shlex.quote
    names = {run.label: _name(index, run.label) for index, run in enumerate(runs)}
    protocols = [p if isinstance(p := run.evaluation.get("protocol"), str) else "" for run in runs]
    options, missing = option_differences(runs)
    same, versions = version_differences(runs)
    return templates.get_template("page.html").render(
        title=title,
        command=command,
        date=datetime.date.today().isoformat(),
        version=__version__,
        runs=runs,
        names=names,
        scores=_scores(runs, names),
        protocols=[(protocol, labels) for protocol, labels in _grouped(protocols, runs) if protocol],
        differences=_differences(runs, names),
        options=_compared("option", options, runs, names),
        missing=_compared("option", missing, runs, names),
        charts=learning_charts(runs),
        costs=_costs(runs, names),
        versions=_compared("package", versions, runs, names),
        same=", ".join(f"{package} {number}" for package, number in same.items()),
        figures=lambda run: Table(("figure", "value", NOTE), run.scores),
    )


def _html(template: str, *values: Any) -> Markup:
    """HTML with values filled in, which are escaped."""
    from markupsafe import Markup

    return Markup(template).format(*values)


def _name(index: int, label: str) -> Markup:
    return _html('<span class="run of-{}">{}</span>', index % len(LINES), label)


def _scores(runs: Sequence[Facts], names: dict[str, Markup]) -> Table:
    returns = [(run.number("return", "mean"), run.interval("return", "ci95")) for run in runs]
    values = [0.0, *(value for mean, ends in returns for value in (mean, *(ends or ())) if value is not None)]
    low, high, digits = min(values), max(values), return_digits(mean for mean, _ in returns)
    scale = f"{number(low, digits)} to {number(high, digits)}"
    columns = ("run", "environment", "mean return, 95 % interval", scale)
    rows = [
        (
            names[run.label],
            str(run.evaluation.get("env", NOTHING)),
            _with_interval(mean, ends, digits),
            interval_bar(index, mean, ends, low, high),
            _with_interval(run.number("ratio_to_controller"), run.interval("ratio_to_controller_ci95"), 3),
            percent(run.number("success")),
            number(run.number("episodes"), 0),
        )
        for index, (run, (mean, ends)) in enumerate(zip(runs, returns, strict=True))
    ]
    return Table((*columns, "over the controller's", "success", "episodes"), rows)


def _with_interval(value: float | None, ends: tuple[float, float] | None, digits: int) -> str:
    return number(value, digits) + (f" {interval(ends, digits)}" if ends else "")


def interval_bar(index: int, mean: float | None, ends: Sequence[float] | None, low: float, high: float) -> str:
    """A mean and its interval on an axis from ``low`` to ``high``, as an SVG element; empty where there is no mean."""
    if mean is None:
        return ""
    x, start, stop = (4 + 192 * (value - low) / max(high - low, 1e-9) for value in (mean, *(ends or (mean, mean))))
    return _html(
        '<svg class="bar of-{}" viewBox="0 0 200 16" role="img" aria-label="mean and its 95 % interval">'
        '<line x1="4" x2="196" y1="8" y2="8" class="axis"/>'
        '<line x1="{:.1f}" x2="{:.1f}" y1="8" y2="8" class="whisker"/>'
        '<circle cx="{:.1f}" cy="8" r="4.5" class="mean"/></svg>',
        index % len(LINES), start, stop, x,
    )  # fmt: skip


def _differences(runs: Sequence[Facts], names: dict[str, Markup]) -> Table:
    rows, digits = [], return_digits(run.number("return", "mean") for run in runs)
    for run in runs[1:]:
        paired = paired_difference(run, runs[0])
        text: str = f"none: {paired.reason}" if paired.difference is None else f"{paired.difference:+,.{digits}f}"
        if paired.clear:
            text = _html('<span class="clear">{}</span>', text)
        ends = interval(paired.ci95, digits) if paired.ci95 else ""
        rows.append((names[run.label], text, ends, str(paired.episodes)))
    return Table(("run", "difference", "95 % interval", "episodes shared"), rows)


def _compared(corner: str, values: Values, runs: Sequence[Facts], names: dict[str, Markup]) -> Table:
    """A column for each run; of many runs, each value once with the labels of the runs that have it."""
    if len(runs) <= MOST_COLUMNS:
        return Table((corner, *names.values()), [(key, *row) for key, row in values.items()])
    rows = []
    for key, row in values.items():
        groups = [_html('<div>{} <span class="note">{}</span></div>', v, ", ".join(g)) for v, g in _grouped(row, runs)]
        rows.append((key, _html("<div>{}</div>", _html("{}" * len(groups), *groups))))
    return Table((corner, "values, and the runs that have them"), rows)


def _grouped(values: Iterable[str], runs: Sequence[Facts]) -> list[tuple[str, list[str]]]:
    """Each value once, with the labels of the runs that have it."""
    groups: dict[str, list[str]] = {}
    for value, run in zip(values, runs, strict=True):
        groups.setdefault(value, []).append(run.label)
    return list(groups.items())


def _costs(runs: Sequence[Facts], names: dict[str, Markup]) -> Table:
    rows = []
    for run in runs:
        minutes = number(run.total("minutes"))
        if len(run.stages) > 1:
            parts = ", ".join(f"{stage['name'].replace('_', ' ')} {number(stage['minutes'])}" for stage in run.stages)
            minutes = _html('{} <span class="note">{}</span>', minutes, parts)
        decisions = [number(run.number("decision_ms", f"batch_{size}", "median")) for size in (1, 64)]
        hardware = run.evaluation.get("hardware")
        hardware = hardware if isinstance(hardware, dict) else {}
        threads = hardware.get("threads") and f"{hardware['threads']} thread" + "s" * (hardware["threads"] != 1)
        machine = (hardware.get("cuda"), hardware.get("cpu"), threads, run.evaluation.get("date"))
        rows.append(
            (
                names[run.label],
                minutes,
                number(run.total("steps"), 0),
                number(run.weights, 0),
                "{} ({})".format(*decisions),
                number(run.number("decisions_per_second"), 0),
                ", ".join(str(part) for part in machine if part) or NOTHING,
            )
        )
    columns = ("run", "training, minutes", "steps", "weights", "a decision that plans, ms (64 at once)")
    return Table((*columns, "decisions per second", "measured on"), rows)
