"""The evaluation in words: a one-page summary for a run folder and a table for the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Row = tuple[str, str, str]
NOTHING = "–"


def number(value: Any, digits: int = 1) -> str:
    """``value`` with so many decimals, or a dash if there is none."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def interval(ends: Sequence[float | None] | None, digits: int = 1) -> str:
    """An interval as "[low, high]", or a dash if there is none."""
    if not ends or None in ends:
        return NOTHING
    return "[" + ", ".join(number(end, digits) for end in ends) + "]"


def score_rows(evaluation: Mapping[str, Any]) -> list[Row]:
    """The rows (what, value, 95 % interval) of an evaluation; absent figures are left out."""
    own, normal = evaluation["return"], evaluation.get("normalized") or {}
    rows = [
        ("return, mean", number(own["mean"]), interval(own["ci95"])),
        ("return, IQM", number(own["iqm"]), ""),
    ]
    for name in ("controller", "random"):
        if other := evaluation.get(name):
            rows.append((f"return of {_WORDS[name]}", number(other["mean"]), interval(other.get("ci95"))))
    if (ratio := evaluation.get("ratio_to_controller")) is not None:
        rows.append(
            (
                "ratio to the controller",
                number(ratio, 3),
                interval(evaluation.get("ratio_to_controller_ci95"), 3),
            )
        )
    for name, score in normal.items():
        if isinstance(score, Mapping):
            bounds = " to ".join(f"{bound:.4g}" for bound in score["bounds"])
            rows.append((f"normalized by {name} ({bounds})", number(score["mean"]), interval(score["ci95"])))
    if (success := evaluation.get("success")) is not None:
        rows.append(("success", f"{success:.0%}", ""))
    rows += [(f"condition error, {name}", number(value, 3), "") for name, value in _condition_error(evaluation)]
    for size, times in (evaluation.get("decision_ms") or {}).items():
        words = f"decision that plans, {size.replace('_', ' ')}"
        rows.append((words, f"{number(times['median'])} ms", f"p95 {number(times['p95'])} ms"))
    if (rate := evaluation.get("decisions_per_second")) is not None:
        rows.append(("decisions per second", f"{rate:,.0f}", ""))
    rows += _protocol_rows(evaluation)
    return rows


def _protocol_rows(evaluation: Mapping[str, Any]) -> list[Row]:
    """By which protocol an evaluation was made, on how many episodes of which seeds."""
    seeds = evaluation.get("seeds") or []
    which = f"seeds {seeds[0]} to {seeds[-1]}, " if seeds else ""
    rows = [("episodes", str(evaluation["episodes"]), f"{which}{len(evaluation.get('errors', []))} failed")]
    if name := evaluation.get("protocol_name"):
        goals = evaluation.get("goals")
        rows.append(("protocol", name.replace("_", " "), f"{goals} goals" if goals else ""))
    return rows


_WORDS = {"controller": "the noise-free controller", "random": "random actions"}


def _condition_error(evaluation: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    error = evaluation.get("condition_error")
    if isinstance(error, Mapping):
        return [(name, value) for name, value in error.items() if isinstance(value, int | float)]
    return [] if error is None else [("mean", error)]


def print_evaluation(evaluation: Mapping[str, Any], console: Console) -> None:
    """Prints an evaluation as a table, and what failed below it."""
    from rich.table import Table

    table = Table(title=evaluation["env"], caption=evaluation.get("protocol"), title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right", style="bold")
    table.add_column("95 % interval", justify="right")
    for row in score_rows(evaluation):
        table.add_row(*row)
    console.print(table)
    for failed in evaluation.get("errors", []):
        console.print(
            f"episode with seed {failed['seed']} failed at step {failed['step']}: {failed['error']}",
            style="red",
            markup=False,
        )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; all columns but the first are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def summary_markdown(
    config: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    stages: Sequence[Mapping[str, Any]],
    plots: Sequence[str],
    *,
    versions: Mapping[str, str] | None = None,
    command: str | None = None,
) -> str:
    """A run on one page: scores, what was run, training, pictures, and the command that repeats it.

    Args:
        config: the resolved configuration; ``recipe``, ``seed`` and ``data.id`` are named where present.
        evaluation: figures as of `evaluate`.
        stages: for each, ``name``, ``steps``, ``minutes``, ``parts`` (of a step, to minutes), ``losses`` (name to last
            value), and, where it has a codebook, ``usage`` (scale or name to the share of codes in use, 0 to 1).
        plots: paths of pictures, relative to the page.
        versions: of the packages, by name; ``config["versions"]`` if not given.
        command: that repeats the run; put together from the configuration if not given.
    """
    versions = versions or config.get("versions") or {}
    recipe, seed = config.get("recipe"), config.get("seed")
    data = config.get("data")
    data = data.get("id") if isinstance(data, Mapping) else data
    lines = [f"# {recipe or 'run'} on {evaluation['env']}", ""]
    lines += _table(("score", "value", "95 % interval"), score_rows(evaluation))
    lines += ["", f"Protocol: {evaluation.get('protocol', NOTHING)}.", ""]
    lines += [f"- seed {failed['seed']} failed: {failed['error']}" for failed in evaluation.get("errors", [])]
    lines += ["## What was run", ""]
    facts = {"recipe": recipe, "data": data, "seed": seed, "date": evaluation.get("date")}
    facts["hardware"] = _hardware(evaluation.get("hardware") or {})
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines += [f"- {name}: {value}" for name, value in facts.items() if value not in (None, "")]
    if stages:
        lines += ["", "## Training", ""]
        lines += _table(("stage", "steps", "minutes", "spent on", "last losses"), map(_stage_row, stages))
    for stage in stages:
        if usage := stage.get("usage"):
            shares = enumerate(usage, 1) if isinstance(usage, Sequence) else usage.items()
            lines += ["", f"Share of the codebook in use ({stage['name']}):", ""]
            lines += _table(("scale", "used"), ((str(name), f"{share:.0%}") for name, share in shares))
    if plots:
        lines += ["", "## Pictures", ""]
        lines += [f"![{_caption(plot)}]({plot})\n" for plot in plots]
    repeat = command or _command(config)
    lines += ["", "## To repeat it", "", "```", repeat, "```"]
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def _stage_row(stage: Mapping[str, Any]) -> tuple[str, ...]:
    losses = ", ".join(f"{name} {value:.3g}" for name, value in (stage.get("losses") or {}).items())
    parts = {name: value / stage["minutes"] for name, value in (stage.get("parts") or {}).items() if stage["minutes"]}
    spent = ", ".join(f"{name} {share:.0%}" for name, share in sorted(parts.items(), key=lambda part: -part[1]))
    steps, minutes = str(stage.get("steps", NOTHING)), number(stage.get("minutes"))
    return stage["name"], steps, minutes, spent or NOTHING, losses or NOTHING


def _hardware(hardware: Mapping[str, Any]) -> str:
    parts = [
        hardware.get("cpu"),
        hardware.get("threads") and f"{hardware['threads']} threads",
        hardware.get("cuda"),
    ]
    return ", ".join(str(part) for part in parts if part)


def _caption(plot: str) -> str:
    return plot.rpartition("/")[2].rpartition(".")[0].replace("_", " ")


def _command(config: Mapping[str, Any]) -> str:
    words = [f"{key}={config[key]}" for key in ("recipe", "seed") if isinstance(config.get(key), str | int)]
    return shlex.join(["trajgen", "train", *words])
