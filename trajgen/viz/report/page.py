"""The page itself: facts and comparisons laid out by a template that escapes everything it is given."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trajgen import __version__
from trajgen.core.errors import ConfigError
from trajgen.core.files import write_file
from trajgen.viz.report.charts import color_of, interval_bar, learning_charts
from trajgen.viz.report.compare import option_differences, paired_differences, version_differences
from trajgen.viz.report.facts import Facts, read_facts

HERE = Path(__file__).parent
NOTHING = "–"
MOST_ACROSS = 8
"""Runs up to which each has a column of its own where options are compared."""


def write_report(path: Path, folders: Sequence[Path], *, title: str = "Runs compared") -> list[Facts]:
    """Writes one HTML page that compares runs and needs no other file.

    Args:
        path: of the page; it must not exist.
        folders: of the runs, the first of which the others are compared to, or of studies.
        title: of the page.

    Returns:
        What is known of each run.

    Raises:
        ConfigError: if the page exists.
        CheckpointError: if a folder holds no run, or leads out of itself.
    """
    if path.exists():
        raise ConfigError(
            "No file is overwritten unasked.",
            expected="a new file",
            got=f"{path} exists",
            fix="out=ANOTHER, or remove that file first",
        )
    runs = read_facts(folders)
    text = page(runs, title=title, command=shlex.join(["trajgen", "report", *map(str, folders)]))
    write_file(path, text)
    return runs


def page(runs: Sequence[Facts], *, title: str, command: str) -> str:
    """The page as text."""
    from jinja2 import Environment
    from markupsafe import Markup

    environment = Environment(autoescape=True, keep_trailing_newline=True)
    filters: dict[str, Callable[..., str]] = {
        "figure": figure,
        "ends": ends,
        "signed": signed,
        "share": share,
        "spaced": lambda text: str(text).replace("_", " "),
        "quoted": shlex.quote,
        "machine": machine,
    }
    labels = [run.label for run in runs]
    environment.filters["grouped"] = lambda values: grouped(values, labels)
    environment.filters.update(filters)
    low, high = _reach(runs)
    same, differing = version_differences(runs)
    differing_options, missing_options = option_differences(runs)
    bars = {run.label: interval_bar(*_mean(run), low, high) for run in runs}
    return environment.from_string((HERE / "page.html").read_text(encoding="utf-8")).render(
        title=title,
        command=command,
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        date=datetime.date.today().isoformat(),
        version=__version__,
        runs=runs,
        most_across=MOST_ACROSS,
        color={run.label: color_of(number) for number, run in enumerate(runs)},
        low=low,
        high=high,
        bars={label: Markup(bar) for label, bar in bars.items()},
        protocols=_protocols(runs),
        differences=paired_differences(runs),
        options=differing_options,
        missing=missing_options,
        charts=learning_charts(runs),
        same=same,
        differing=differing,
    )


def figure(value: Any, digits: int = 1) -> str:
    """A number with so many decimals and its thousands apart, or a dash."""
    return NOTHING if value is None else f"{value:,.{digits}f}".replace("-", "−")


def ends(value: tuple[float, float] | None, digits: int = 1) -> str:
    """An interval as "[low, high]", or nothing."""
    return "" if value is None else f"[{figure(value[0], digits)}, {figure(value[1], digits)}]"


def signed(value: float) -> str:
    """A difference with its sign."""
    return ("+" if value > 0 else "") + figure(value)


def share(value: float | None) -> str:
    """A share in per cent, or a dash."""
    return NOTHING if value is None else f"{value:.0%}"


def grouped(values: Sequence[str], labels: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each value once, with the labels of the runs that have it."""
    found: dict[str, list[str]] = {}
    for value, label in zip(values, labels, strict=True):
        found.setdefault(value, []).append(label)
    return list(found.items())


def machine(evaluation: Mapping[str, Any]) -> str:
    """What an evaluation was measured on, and when."""
    hardware = evaluation.get("hardware")
    known = hardware if isinstance(hardware, Mapping) else {}
    threads = known.get("threads")
    parts = [known.get("cuda"), known.get("cpu"), threads and f"{threads} thread" + "s" * (threads != 1)]
    return ", ".join(str(part) for part in (*parts, evaluation.get("date")) if part) or NOTHING


def _mean(run: Facts) -> tuple[float | None, tuple[float, float] | None]:
    return run.number("return", "mean"), run.interval("return", "ci95")


def _reach(runs: Sequence[Facts]) -> tuple[float, float]:
    """From where to where the axis of returns goes: zero, all means and all intervals lie on it."""
    values = [0.0]
    for run in runs:
        mean, interval = _mean(run)
        values += [*(interval or ()), *([] if mean is None else [mean])]
    return min(values), max(values)


def _protocols(runs: Sequence[Facts]) -> list[tuple[str, list[str]]]:
    found: dict[str, list[str]] = {}
    for run in runs:
        if isinstance(protocol := run.evaluation.get("protocol"), str):
            found.setdefault(protocol, []).append(run.label)
    return list(found.items())
