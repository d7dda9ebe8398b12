"""The table of a study on the screen and in Markdown, its plot, and the commands of its cells."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajgen.core.files import write_file, write_json
from trajgen.core.tables import NOTHING, Table, interval, number, percent, return_digits
from trajgen.experiments.results import ACTION_ERROR, RATIO, RETURN
from trajgen.viz.options import Look
from trajgen.viz.study import drawn_over

if TYPE_CHECKING:
    from rich.console import Console

HEADS = {RATIO: "ratio", RETURN: "return", ACTION_ERROR: "action error"}
"""Heads of the column of what is compared."""
UNITS = {
    RATIO: "mean return / controller's",
    RETURN: "mean return",
    ACTION_ERROR: "difference from the recorded actions",
}
"""What the axis of the picture is."""
COSTS = ("score", "success", "state error", "return error", "minutes", "decision ms", "parameters", "seeds")
"""Columns of the second of the two tables on the screen, which would be too wide as one."""


def columns(results: Mapping[str, Any]) -> dict[str, list[str]]:
    """The columns of the table by their heads, a text for each row; those without any figure are left out."""
    rows: list[Mapping[str, Any]] = results["rows"]
    digits = return_digits(row["mean"] for row in rows) if results["unit"] == RETURN else 3
    seeds = len(results["seeds"])
    table = {
        "variant": [row["name"] for row in rows],
        HEADS[results["unit"]]: [number(row["mean"], digits) for row in rows],
        "95 % interval": [interval(row["ci95"], digits) for row in rows],
        "IQM": [number(row["iqm"], digits) for row in rows],
        "difference": [_difference(row, digits) for row in rows],
        "its 95 % interval": [interval(row["difference_ci95"], digits) for row in rows],
        "score": [number(row["normalized"]) for row in rows],
        "success": [percent(row["success"]) for row in rows],
        "state error": [number(row["condition_state"], 3) for row in rows],
        "return error": [number(row["condition_return"], 3) for row in rows],
        "minutes": [number(row["minutes"]) for row in rows],
        "decision ms": [number(row["decision_ms"]) for row in rows],
        "parameters": [number(row["parameters"], 0) for row in rows],
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
    """The sources of published means, and how their protocols differ; each once."""
    means: list[Mapping[str, Any]] = results.get("published") or []
    if not means:
        return []
    notes = [f"Published: {mean['source']}." for mean in means]
    notes += [f"What differs from it: {mean['differs']}" for mean in means if mean["differs"]]
    return [*dict.fromkeys(notes), f"Here: mean normalized scores, training seeds {_seeds(results)}."]


def _seeds(results: Mapping[str, Any]) -> str:
    return ", ".join(map(str, results["seeds"]))


def _by_reason(failed: Mapping[str, str]) -> dict[str, str]:
    """The names of cells that failed for the same reason, by reason."""
    return {reason: ", ".join(name for name, other in failed.items() if other == reason) for reason in failed.values()}


def print_results(results: Mapping[str, Any], console: Console) -> None:
    """Prints the table in two halves, scores and costs, and the failed cells."""
    cells = columns(results)
    title = f"{results['study']}: {results['question']}".removesuffix(": ")
    first = Table.of({head: cells[head] for head in cells if head not in COSTS})
    console.print(first.rich(title, edges=False), "")
    console.print(Table.of({head: cells[head] for head in cells if head in ("variant", *COSTS)}).rich(edges=False), "")
    if means := published_columns(results):
        console.print(Table.of(means).rich(edges=False), "")
    for note in published_notes(results):
        console.print(note, markup=False, highlight=False)
    for reason, names in _by_reason(results["failed"]).items():
        console.print(f"{names} failed: {reason}", style="red", markup=False, highlight=False)


def markdown(results: Mapping[str, Any]) -> str:
    """The results as one page."""
    lines = [f"# {results['study']}", ""]
    lines += [results["question"], ""] if results["question"] else []
    lines += [Table.of(columns(results)).markdown()]
    if means := published_columns(results):
        lines += ["", Table.of(means).markdown(), "", *(f"- {note}" for note in published_notes(results))]
    lines += ["", f"![means and 95 % intervals of {results['study']}](plot.png)", ""]
    if any(row["curve"] for row in results["rows"]):
        lines += ["![the same against the minutes of training](curve.png)", ""]
    unit = {
        RATIO: "Mean return over the controller's on the same episodes",
        RETURN: "Mean return",
        ACTION_ERROR: "Mean difference from the recorded actions (less is better)",
    }[results["unit"]]
    reference = "." if results.get("published") else f"; reference: {results['reference']}."
    hardware = results["hardware"]
    machine = hardware["cuda"] or f"{hardware['cpu']}, {hardware['cores']} cores"
    facts = [
        f"{unit}, training seeds {_seeds(results)}{reference}",
        f"Intervals: bootstrap over {drawn_over(results['rows'])}; a difference draws the same ones for both.",
        "Differences are over the seeds that both variants have." if results["failed"] else "",
        f"Score: normalized by {results['normalized']}." if results["normalized"] else "",
        f"Episodes: {results['protocol']}." if results["protocol"] else "",
        "Errors of state and return: of the first planned point, in standard deviations of the data.",
        f"{results['date']}, {machine}, trajgen {results['versions']['trajgen']}, "
        f"torch {results['versions']['torch']}.",
    ]
    lines += [f"- {fact}" for fact in facts if fact]
    if any(row["equal"] == "time" for row in results["rows"]):
        steps = [", ".join(f"{k} {n}" for k, n in row["steps"].items()) for row in results["rows"]]
        names = [row["name"] for row in results["rows"]]
        steps_table = Table(("variant", "steps of each stage"), list(zip(names, steps, strict=True)), numeric=False)
        lines += ["", "## Steps", "", steps_table.markdown()]
    if results["failed"]:
        lines += ["", "## Failed", ""]
        lines += [f"- {names}: {' '.join(reason.split())}" for reason, names in _by_reason(results["failed"]).items()]
    if results.get("command"):
        lines += ["", "## To repeat it", "", "```", results["command"], "```"]
    return "\n".join(lines) + "\n"


def write_results(
    folder: Path, results: Mapping[str, Any], commands: Iterable[tuple[str, str | None]], look: Look | None = None
) -> None:
    """Writes results.json, table.md, table.csv, plot.png, perhaps curve.png, and commands.sh into a study's folder."""
    from trajgen.viz.figure import captions
    from trajgen.viz.study import draw_curves, draw_study

    look = look or Look()
    write_json(folder / "results.json", results)
    write_file(folder / "table.md", markdown(results))
    write_file(folder / "table.csv", Table.of(columns(results)).csv())
    unit = UNITS[results["unit"]]
    title, reference = results["study"], results["reference"]
    for suffix in dict.fromkeys(("png", look.format)):
        with captions(look.title, look.labels):
            draw_study(folder / f"plot.{suffix}", results["rows"], title=title, reference=reference, unit=unit)
            draw_curves(folder / f"curve.{suffix}", results["rows"], title=title, unit=unit)
    pairs = list(commands)
    lines = [
        "#!/bin/sh",
        f"# Each cell of the study '{results['study']}' again, in new folders; any line can be run alone,",
        "# an evaluation after the training of its run.",
        "set -e",
        *dict.fromkeys(train for train, _ in pairs),
        *(evaluate for _, evaluate in pairs if evaluate),
    ]
    write_file(folder / "commands.sh", "\n".join(lines) + "\n")
    os.chmod(folder / "commands.sh", 0o755)
