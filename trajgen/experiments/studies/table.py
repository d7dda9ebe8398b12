"""The results of a study to read: a table on the screen and in Markdown, the commands of each cell, and a plot."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajgen.core.files import write_file, write_json
from trajgen.experiments.studies.results import RATIO
from trajgen.viz.summary import NOTHING, interval, number

if TYPE_CHECKING:
    from rich.console import Console

COSTS = ("score", "success", "state error", "return error", "minutes", "decision ms", "parameters", "seeds")
"""Columns of the second of the two tables on the screen, which would be too wide as one."""


def columns(results: Mapping[str, Any]) -> dict[str, list[str]]:
    """The columns of the table by their heads, a text for each row; those without any figure are left out."""
    rows: list[Mapping[str, Any]] = results["rows"]
    digits = 3 if results["unit"] == RATIO else 1
    seeds = len(results["seeds"])
    table = {
        "variant": [row["name"] for row in rows],
        "ratio" if results["unit"] == RATIO else "return": [number(row["mean"], digits) for row in rows],
        "95 % interval": [interval(row["ci95"], digits) for row in rows],
        "IQM": [number(row["iqm"], digits) for row in rows],
        "difference": [_difference(row, digits) for row in rows],
        "its 95 % interval": [interval(row["difference_ci95"], digits) for row in rows],
        "score": [number(row["normalized"]) for row in rows],
        "success": [NOTHING if row["success"] is None else f"{row['success']:.0%}" for row in rows],
        "state error": [number(row["condition_state"], 3) for row in rows],
        "return error": [number(row["condition_return"], 3) for row in rows],
        "minutes": [number(row["minutes"]) for row in rows],
        "decision ms": [number(row["decision_ms"]) for row in rows],
        "parameters": [NOTHING if row["parameters"] is None else f"{row['parameters']:,}" for row in rows],
    }
    if any(len(row["seeds"]) < seeds for row in rows):
        table["seeds"] = [f"{len(row['seeds'])} of {seeds}" for row in rows]
    return {head: cells for head, cells in table.items() if head == "variant" or any(c != NOTHING for c in cells)}


def _difference(row: Mapping[str, Any], digits: int) -> str:
    if row["reference"]:
        return "reference"
    return NOTHING if row["difference"] is None else f"{row['difference']:+.{digits}f}"


def published_columns(results: Mapping[str, Any]) -> dict[str, list[str]]:
    """The columns of the published means by their heads: each method's, then ours and how many tasks it is over."""
    means: list[Mapping[str, Any]] = results.get("published") or []
    methods = dict.fromkeys(name for mean in means for name in mean["figures"])
    table = {"published mean": [mean["name"] for mean in means]}
    table |= {name: [number(mean["figures"].get(name)) for mean in means] for name in methods}
    table["here"] = [number(mean["ours"]) for mean in means]
    table["tasks"] = [f"{mean['tasks']} of {mean['of']}" for mean in means]
    return table if means else {}


def published_notes(results: Mapping[str, Any]) -> list[str]:
    """Where published figures stand, and what differs from their protocol; each once."""
    means: list[Mapping[str, Any]] = results.get("published") or []
    if not means:
        return []
    notes = [f"Published: {mean['source']}." for mean in means]
    notes += [f"What differs from it: {mean['differs']}" for mean in means if mean["differs"]]
    seeds = ", ".join(map(str, results["seeds"]))
    return [*dict.fromkeys(notes), f"Here: mean normalized scores, training seeds {seeds}."]


def _by_reason(failed: Mapping[str, str]) -> dict[str, str]:
    """The names of cells that failed for the same reason, by it."""
    return {reason: ", ".join(name for name, other in failed.items() if other == reason) for reason in failed.values()}


def print_results(results: Mapping[str, Any], console: Console) -> None:
    """Prints the table in two halves, scores and costs, and what failed below them."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    title = f"{results['study']}: {results['question']}".removesuffix(": ")
    cells = columns(results)
    halves = [head for head in cells if head not in COSTS], ["variant", *(head for head in COSTS if head in cells)]
    for heads in halves:
        table = Table(
            show_edge=False,
            title=Text(title) if title else None,
            title_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        for head in heads:
            table.add_column(head, justify="left" if head == "variant" else "right")
        for line in zip(*(cells[head] for head in heads), strict=True):
            table.add_row(*map(Text, line))
        console.print(table, "")
        title = ""
    if means := published_columns(results):
        table = Table(show_edge=False, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for head in means:
            table.add_column(head, justify="left" if head == "published mean" else "right")
        for line in zip(*means.values(), strict=True):
            table.add_row(*map(Text, line))
        console.print(table, "")
        for note in published_notes(results):
            console.print(note, markup=False, highlight=False)
    for reason, name in _by_reason(results["failed"]).items():
        console.print(f"{name} failed: {reason}", style="red", markup=False, highlight=False)


def markdown(results: Mapping[str, Any]) -> str:
    """The results as one page."""
    cells = columns(results)
    seeds = ", ".join(map(str, results["seeds"]))
    lines = [f"# {results['study']}", ""]
    lines += [results["question"], ""] if results["question"] else []
    lines += _table(cells, zip(*cells.values(), strict=True))
    if means := published_columns(results):
        lines += ["", *_table(means, zip(*means.values(), strict=True)), ""]
        lines += [f"- {note}" for note in published_notes(results)]
    lines += ["", f"![means and 95 % intervals of {results['study']}](plot.png)", ""]
    unit = "mean return over the controller's on the same episodes" if results["unit"] == RATIO else "mean return"
    facts = [
        f"{unit[0].upper()}{unit[1:]}, training seeds {seeds}"
        + ("." if results.get("published") else f"; reference: {results['reference']}."),
        "Intervals: hierarchical bootstrap over seeds and episodes; a difference draws the same ones for both.",
        f"Score: normalized by {results['normalized']}." if results["normalized"] else "",
        f"Episodes: {results['protocol']}." if results["protocol"] else "",
        "Errors of state and return: of the first planned point, in standard deviations of the data.",
        f"{results['date']}, {_hardware(results['hardware'])}, trajgen {results['versions']['trajgen']}, "
        f"torch {results['versions']['torch']}.",
    ]
    lines += [f"- {fact}" for fact in facts if fact]
    if len({row["equal"] for row in results["rows"]}) > 1 or any(row["equal"] == "time" for row in results["rows"]):
        lines += ["", "## Steps", ""]
        lines += _table(
            ("variant", "steps of each stage"),
            ((row["name"], ", ".join(f"{k} {n}" for k, n in row["steps"].items())) for row in results["rows"]),
        )
    if results["failed"]:
        lines += ["", "## Failed", ""]
        lines += [f"- {name}: {' '.join(reason.split())}" for reason, name in _by_reason(results["failed"]).items()]
    if results.get("command"):
        lines += ["", "## To repeat it", "", "```", results["command"], "```"]
    return "\n".join(lines) + "\n"


def _table(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [[*heads], *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    lines.insert(1, ["---", *["---:"] * (len(lines[0]) - 1)])
    return ["| " + " | ".join(line) + " |" for line in lines]


def _hardware(hardware: Mapping[str, Any]) -> str:
    return hardware["cuda"] or f"{hardware['cpu']}, {hardware['cores']} cores"


def write_results(folder: Path, results: Mapping[str, Any], commands: Iterable[tuple[str, str | None]]) -> None:
    """Writes results.json, table.md, plot.png and commands.sh into a study's folder."""
    from trajgen.viz.study import draw_results

    write_json(folder / "results.json", results)
    write_file(folder / "table.md", markdown(results))
    draw_results(folder / "plot.png", results)
    pairs = list(commands)
    each = list(dict.fromkeys([train for train, _ in pairs]))
    each += [evaluate for _, evaluate in pairs if evaluate]
    head = [
        "#!/bin/sh",
        f"# Each cell of the study '{results['study']}' again, in new folders; any line can be run alone,",
    ]
    head += ["# an evaluation after the training of its run."]
    path = folder / "commands.sh"
    path.write_text("\n".join([*head, "set -e", *each]) + "\n", encoding="utf-8")
    os.chmod(path, 0o755)
