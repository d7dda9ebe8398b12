"""An evaluation as a table for the terminal, and a run on one page of Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from trajgen.core.tables import NOTHING, Table, interval, number, percent, return_digits, share

if TYPE_CHECKING:
    from rich.console import Console

Row = tuple[str, str, str]
NOTE = "95 % interval, or note"
"""Head of the column beside the values of an evaluation."""
REFERENCES = {"controller": "the noise-free controller", "random": "random actions"}


def score_rows(evaluation: Mapping[str, Any]) -> list[Row]:
    """The rows (what, value, `NOTE`) of an evaluation; absent figures are left out."""
    rows: list[Row] = []
    players = ("return", "data_returns", *REFERENCES)
    digits = return_digits(evaluation[name]["mean"] for name in players if evaluation.get(name))
    if returns := evaluation.get("return"):
        rows.append(("return, mean", number(returns["mean"], digits), interval(returns["ci95"], digits)))
        rows.append(("return, IQM", number(returns["iqm"], digits), ""))
    if error := evaluation.get("action_error"):
        rows.append(("action error", number(error["mean"], 3), interval(error["ci95"], 3)))
    for name, words in REFERENCES.items():
        if other := evaluation.get(name):
            rows.append((f"return of {words}", number(other["mean"], digits), interval(other.get("ci95"), digits)))
    if data := evaluation.get("data_returns"):
        best = f"best tenth {number(data['best_tenth'], digits)}, of {number(data['median_steps'], 0)} steps"
        rows.append(("return of the data's episodes", number(data["mean"], digits), best))
    if (ratio := evaluation.get("ratio_to_controller")) is not None:
        ends = interval(evaluation.get("ratio_to_controller_ci95"), 3)
        rows.append(("ratio to the controller", number(ratio, 3), ends))
    for name, score in (evaluation.get("normalized") or {}).items():
        if isinstance(score, Mapping):
            bounds = " to ".join(f"{bound:.4g}" for bound in score["bounds"])
            rows.append((f"normalized by {name} ({bounds})", number(score["mean"]), interval(score["ci95"])))
    if (success := evaluation.get("success")) is not None:
        rows.append(("success", percent(success), ""))
    errors = evaluation.get("condition_error")
    rows += _condition_rows(errors if isinstance(errors, Mapping) else {"mean": errors})
    for size, ms in (evaluation.get("decision_ms") or {}).items():
        name = f"decision that plans, {size.replace('_', ' ')}"
        rows.append((name, f"{number(ms['median'])} ms", f"p95 {number(ms['p95'])} ms"))
    if (rate := evaluation.get("decisions_per_second")) is not None:
        rows.append(("decisions per second", number(rate, 0), ""))
    seeds = evaluation.get("seeds") or []
    of_seeds = f"seeds {seeds[0]} to {seeds[-1]}, " if seeds else ""
    rows.append(("episodes", str(evaluation["episodes"]), f"{of_seeds}{len(evaluation.get('errors', []))} failed"))
    if protocol := evaluation.get("protocol_name"):
        goals = evaluation.get("goals")
        rows.append(("protocol", protocol.replace("_", " "), f"{goals} goals" if goals else ""))
    return rows


def _condition_rows(errors: Mapping[str, Any]) -> list[Row]:
    """The condition error of state, position and return, with what else was measured of each in words."""
    numbers = {name: value for name, value in errors.items() if isinstance(value, int | float)}
    words = {"_units": "in its units", "_other_latent": "with another plan's latent", "_zero_latent": "with zeros"}
    rows = []
    for name in [name for name in numbers if not name.endswith(tuple(words))]:
        parts = [f"{numbers[name + end]:.3g} {text}" for end, text in words.items() if name + end in numbers]
        rows.append((f"condition error, {name}", number(numbers[name], 3), ", ".join(parts)))
    return rows


def print_evaluation(evaluation: Mapping[str, Any], console: Console) -> None:
    """Prints an evaluation as a table, and the failed episodes below it."""
    table = Table(("figure", "value", NOTE), score_rows(evaluation))
    console.print(table.rich(evaluation["env"], evaluation.get("protocol") or ""))
    for error in evaluation.get("errors", []):
        text = f"episode with seed {error['seed']} failed at step {error['step']}: {error['error']}"
        console.print(text, style="red", markup=False)


def summary_markdown(
    config: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    stages: Sequence[Mapping[str, Any]],
    plots: Sequence[str],
    *,
    versions: Mapping[str, str] | None = None,
    scales: Sequence[int] = (),
    command: str | None = None,
    run: str | None = None,
) -> str:
    """A run on one page: scores, what was run, training, pictures, and the command that repeats it.

    Args:
        stages: ``name``, ``steps``, ``minutes``, ``parts`` (of a step, to minutes), ``losses`` (name to last value),
            and, where there is a codebook, ``usage`` (scale to the share of codes in use, 0 to 1) of each.
        plots: paths of pictures, relative to the page.
        run: path of the run folder, to be named in the commands of what can be done next.
        scales: lengths of the scales, if they were chosen from the data.
        command: that repeats the run; put together from the configuration if not given.
    """
    recipe, data, hardware = config.get("recipe"), config.get("data"), evaluation.get("hardware") or {}
    sections = [f"# {recipe or 'run'} on {evaluation['env']}"]
    sections.append(Table(("score", "value", NOTE), score_rows(evaluation)).markdown())
    protocol = str(evaluation.get("protocol", NOTHING))
    sections.append(f"{protocol[:1].upper()}{protocol[1:]}.")
    sections.append("\n".join(f"- seed {e['seed']} failed: {e['error']}" for e in evaluation.get("errors", [])))
    threads = hardware.get("threads") and f"{hardware['threads']} thread{'' if hardware['threads'] == 1 else 's'}"
    facts = {
        "recipe": recipe,
        "data": data.get("id") if isinstance(data, Mapping) else data,
        "scales": f"{', '.join(map(str, scales))} tokens, chosen from the data" if scales else "",
        "seed": config.get("seed"),
        "starts from": config.get("init"),
        "weights trained": evaluation.get("trained_weights") and share(*evaluation["trained_weights"]),
        "date": evaluation.get("date"),
        "hardware": ", ".join(str(part) for part in (hardware.get("cpu"), threads, hardware.get("cuda")) if part),
        "versions": ", ".join(f"{name} {version}" for name, version in (versions or {}).items()),
    }
    lines = [f"- {name}: {value}" for name, value in facts.items() if value not in (None, "")]
    sections += ["## What was run", "\n".join(lines)]
    if stages:
        table = Table(
            ("stage", "steps", "minutes", "precision", "spent on", "last losses"), [_stage_row(s) for s in stages]
        )
        sections += ["## Training", table.markdown()]
    for stage in stages:
        if usage := stage.get("usage"):
            table = Table(("scale", "used"), [(str(name), percent(share)) for name, share in usage.items()])
            sections += [f"Share of the codebook in use ({stage['name']}):", table.markdown()]
    if plots:
        captions = {plot: plot.rpartition("/")[2].rpartition(".")[0].replace("_", " ") for plot in plots}
        sections += ["## Pictures", *(f"![{caption}]({plot})" for plot, caption in captions.items())]
    words = [f"{key}={config[key]}" for key in ("recipe", "seed") if isinstance(config.get(key), str | int)]
    command = command or shlex.join(["trajgen", "train", *words])
    if run is not None:
        with suppress(ValueError):  # a stranger's command may be none
            words = shlex.split(command)[2:]
        steps = next_steps(run, words, has_env="return" in evaluation)
        sections += ["## What to do next", f"```\n{steps}\n```"]
    sections += ["## To repeat it", f"```\n{command}\n```"]
    return "\n\n".join(section for section in sections if section) + "\n"


def next_steps(run: str, words: Sequence[str], *, has_env: bool = True) -> str:
    """Commands for what one would do next with a run that these words trained, each with what it is for."""
    words = [word for word in words if word.partition("=")[0] not in ("seed", "run_dir", "resume")]
    run, data = shlex.quote(run), "".join(f" {shlex.quote(w)}" for w in words if w.startswith("data="))
    commands = {f"trajgen video run={run}": "an episode as a film"} if has_env else {}
    commands |= {
        f"trajgen plot run={run}": "codes, plans, target and achieved return" if has_env else "codes and plans",
        f"trajgen evaluate run={run} evaluation.seed=100": "other episodes; also sampler=, policy.replan_interval=",
        f"trajgen train -m {shlex.join(words)} seed=0,1,2": "does it hold over seeds?",
        f"trajgen study study=num_scales{data}": "which part matters? ('trajgen list studies')",
        f"trajgen report {run}": "one page; several runs or evaluations are compared",
    }
    return "\n".join(f"{command}  # {purpose}" for command, purpose in commands.items())


def _stage_row(stage: Mapping[str, Any]) -> tuple[str, ...]:
    minutes = stage.get("minutes")
    losses = ", ".join(f"{name} {value:.3g}" for name, value in (stage.get("losses") or {}).items())
    parts = dict(stage.get("parts") or {}) if minutes else {}
    if parts.get("backward") == 0:  # a captured step has one graph for both
        parts["forward and backward"] = parts.pop("forward", 0.0) + parts.pop("backward")
    spent = ", ".join(f"{n} {part / minutes:.0%}" for n, part in sorted(parts.items(), key=lambda part: -part[1]))
    steps, precision = str(stage.get("steps", NOTHING)), stage.get("precision") or NOTHING
    digits = 2 if minutes and minutes < 1 else 1
    return stage["name"], steps, number(minutes, digits), precision, spent or NOTHING, losses or NOTHING
