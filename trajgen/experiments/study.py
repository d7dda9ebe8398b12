"""Running a study: finished cells are kept, failed ones are tried again, and a table compares the variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajgen.config import Config
from trajgen.core.errors import CheckpointError, ConfigError, TrajgenError
from trajgen.core.files import file_lock, read_json, write_json
from trajgen.core.options import differing
from trajgen.core.tables import duration
from trajgen.experiments.cells import BY_TIME, PER_CELL, Cell, Row, dry_run_rows, make_data, make_rows
from trajgen.experiments.definition import Study, slug
from trajgen.experiments.equal_time import equal_steps, measure_cell, read_costs
from trajgen.experiments.executors import InlineExecutor, JobExecutor, LokyExecutor, make_executor
from trajgen.experiments.jobs import Job, run_jobs
from trajgen.experiments.outlook import SHORTEST, estimate_cell, stage_steps, steps_text
from trajgen.experiments.preparation import build_planner, small_space
from trajgen.experiments.results import gather
from trajgen.experiments.run_folder import STUDY_LOCK, contents, refuse_links
from trajgen.experiments.table import Look, print_results, write_results

if TYPE_CHECKING:
    from rich.console import Console

ROOT = Path("studies")
PROBE = 50
"""Steps of each stage that are timed where variants are compared at equal time."""


def run_study(
    study: Study,
    console: Console,
    *,
    folder: Path | None = None,
    executor: str | None = None,
    workers: int | None = None,
    executor_options: Mapping[str, Any] | None = None,
    probe: int = PROBE,
    command: str | None = None,
    look: Look | None = None,
) -> dict[str, Any]:
    """Trains and evaluates every cell that is not finished, writes table and plot, and returns the results.

    Args:
        study: its definition.
        console: for the table.
        folder: of the study; None for ``studies/NAME``.
        executor: inline, loky, submitit or ray; None for what fits this machine.
        workers: cells at a time; None for as many as fit this machine.
        executor_options: of submitit or Ray.
        probe: steps that are timed for equal time.
        command: to be written beside the table.
        look: of the picture.

    Raises:
        ConfigError: if a variant does not compose, or the folder is that of another study.
        TrainingError: if another process runs a study in the folder.
        TrajgenError: in the end, if cells failed; the table names them.
        KeyboardInterrupt: after Ctrl-C, when checkpoints have been written.
    """
    folder = folder or ROOT / study.name
    cache: dict[tuple[str, ...], Config] = {}
    rows = make_rows(replace(study, equal=("steps",)), cache=cache)
    composed = {row.name: {**_definition(row.config), "evaluate": row.overrides} for row in rows}
    check_folder(folder, study, composed)
    failed = dry_run_rows(rows)
    device = rows[0].config.device
    options = executor_options or {}
    with (
        make_executor(executor, workers, options, device=device, folder=folder / "jobs") as pool,
        file_lock(folder / STUDY_LOCK),
    ):
        write_json(folder / "study.json", {**study.to_plain(), "composed": composed, "command": command})
        if "time" in study.equal:
            working = [row for row in rows if row.name not in failed]
            steps, unmeasured = find_steps(folder, study, working, pool, probe, console)
            failed |= {name + BY_TIME: reason for name, reason in (failed | unmeasured).items()}
            rows = make_rows(study, steps, cache)
        cells = [Cell(row, seed, folder) for row in rows for seed in study.seeds]
        failed |= run_cells(study.name, cells, failed, pool, console)
        reasons = {cell.name: _reason(cell, failed) for cell in cells}
        # Variants whose cost could not be measured have no row of equal time.
        absent = {k: failed[k] for k in failed if k.endswith(BY_TIME) and k not in {row.name for row in rows}}
        failed = {**{k: v for k, v in reasons.items() if v is not None}, **absent}
        results = gather(study, cells, failed) | {"command": command}
        report(results, cells, console, look=look)
    return results


def run_cells(
    name: str, cells: Sequence[Cell], failed: Mapping[str, str], executor: JobExecutor, console: Console
) -> dict[str, str]:
    """Trains and evaluates the cells that are not finished; returns why rows, runs or evaluations failed, by name."""
    failed = dict(failed)
    trainings: dict[str, Cell] = {}
    for cell in cells:
        try:
            if cell.row.name not in failed and not cell.is_trained():
                trainings.setdefault(cell.run.name, cell)
        except TrajgenError as error:
            failed[cell.run.name] = str(error)
    text = f"{name}: {len(cells)} cells, {len(trainings)} trainings to do, {executor.description}"
    console.print(text, markup=False, highlight=False)
    make_data((cell.row.config for cell in trainings.values()), console)
    logs = cells[0].folder / "jobs"
    if trainings:
        print_outlook(next(iter(trainings.values())), len(trainings), executor, console)
    outcomes = run_jobs([cell.training_job() for cell in trainings.values()], executor, logs)
    failed |= {name: outcome.message for name, outcome in outcomes.items() if outcome.failed}
    waiting = [cell for cell in cells if _reason(cell, failed) is None and not cell.is_finished()]
    outcomes = run_jobs([cell.evaluation_job() for cell in waiting], executor, logs)
    return failed | {name: outcome.message for name, outcome in outcomes.items() if outcome.failed}


def print_outlook(cell: Cell, trainings: int, executor: JobExecutor, console: Console) -> None:
    """Prints the steps of one of several trainings and, where they run here, about how long all of them take."""
    config = cell.config
    steps = stage_steps(config, build_planner(config, small_space(config)))
    console.print(f"To train, each: {steps_text(steps)}", markup=False, highlight=False)
    if trainings > 1 and sum(steps.values()) >= SHORTEST and isinstance(executor, InlineExecutor | LokyExecutor):
        job = Job(f"estimate-{slug(cell.row.name)}", estimate_cell, {"config": config.to_plain()})
        if seconds := run_jobs([job], executor, cell.folder / "jobs")[job.name].value:
            text = f"{trainings} trainings like that, {executor.description}: "
            text += f"{duration(seconds * -(-trainings // executor.workers))}, plus evaluations"
            console.print(text, markup=False, highlight=False)


def _reason(cell: Cell, failed: Mapping[str, str]) -> str | None:
    """Why a cell failed: its variant was refused, its training failed, or its evaluation did."""
    names = (cell.row.name, cell.run.name, cell.evaluation_job().name)
    return next((failed[name] for name in names if name in failed), None)


def report(
    results: Mapping[str, Any],
    cells: Sequence[Cell],
    console: Console,
    epilogue: Sequence[str] = (),
    look: Look | None = None,
) -> None:
    """Writes and prints results, and lines of text below them.

    Raises:
        TrajgenError: if cells failed.
    """
    folder = cells[0].folder
    write_results(folder, results, [cell.commands(f"repeat/{folder.name}") for cell in cells], look)
    print_results(results, console)
    for line in epilogue:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{folder / 'table.md'}", style="bold", markup=False)
    if failed := results["failed"]:
        count = len(failed) + sum(len(row["seeds"]) for row in results["rows"])
        raise TrajgenError(
            f"{len(failed)} of {count} cells failed; the table has the others.",
            got=", ".join(failed),
            fix=f"{folder / 'table.md'} has the reasons; the same command tries them again and keeps the others",
        )


def _definition(config: Config) -> dict[str, Any]:
    """A configuration without what differs between the cells of a variant."""
    return {k: v for k, v in config.to_plain().items() if k not in PER_CELL}


def require_empty(folder: Path, file: str) -> None:
    """Raises a `ConfigError` if a folder without ``file`` holds anything."""
    if names := contents(folder):
        raise ConfigError(
            f"A study's folder is new, or has the {file} of the same study.",
            got=f"{folder} holds {', '.join(names[:4])}",
            fix="out=ANOTHER",
        )


def check_folder(folder: Path, study: Study, composed: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses a folder of another study; seeds may be added to the same one.

    Args:
        folder: of the study; it need not exist.
        study: its definition.
        composed: the configuration of each variant, as study.json has it.

    Raises:
        ConfigError: which names what differs.
        CheckpointError: if study.json is damaged.
    """
    refuse_links(folder)
    path = folder / "study.json"
    if not path.exists():
        return require_empty(folder, path.name)
    plain, existing = study.to_plain(), read_json(path)
    seeds, variants = existing.get("seeds"), existing.get("composed", {})
    if (
        not isinstance(seeds, list)
        or not all(type(seed) is int for seed in seeds)
        or not isinstance(variants, dict)
        or not all(isinstance(variant, dict) for variant in variants.values())
    ):
        raise CheckpointError(
            f"{path} is not as 'trajgen study' wrote it.", got="seeds or variants of other types", fix="out=ANOTHER"
        )
    before = {name: _with_new_options(variant) for name, variant in variants.items()}
    changes = [key for key in ("reference", "equal") if existing.get(key) != plain[key]]
    changes += [f"seeds: {seeds} became {plain['seeds']}"] if {*seeds} - {*plain["seeds"]} else []
    changes += [f"variant '{n}', which is {'new' if n in composed else 'gone'}" for n in before.keys() ^ composed]
    for name in before.keys() & composed:
        changes += [f"{line} in variant '{name}'" for line in differing(before[name], composed[name])]
    if changes:
        raise ConfigError(
            "A study's folder belongs to one definition, to which only seeds can be added.",
            expected=f"the definition in {path}",
            got="; ".join(changes),
            fix="out=ANOTHER, or the options that the folder was made with",
        )
    return None


def _with_new_options(definition: Mapping[str, Any]) -> dict[str, Any]:
    """A variant's definition as it was written; an option that is newer has its default there."""
    try:
        config = Config.from_plain({key: value for key, value in definition.items() if key != "evaluate"})
    except TrajgenError:  # an option does not exist any more: the comparison will name it
        return dict(definition)
    return {**_definition(config), "evaluate": definition.get("evaluate", {})}


def find_steps(
    folder: Path, study: Study, rows: Sequence[Row], executor: JobExecutor, probe: int, console: Console
) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    """For each variant the steps that take the reference's time: read from steps.json, or measured now.

    Returns:
        The steps by variant, and why variants could not be measured.

    Raises:
        CheckpointError: if steps.json is damaged.
        TrajgenError: if the reference could not be measured.
    """
    path = folder / "steps.json"
    costs = read_costs(path)
    jobs: dict[str, Job] = {}
    for row in rows:
        if row.name not in costs:
            config = replace(row.config, seed=study.seeds[0], run_dir=None).to_plain()
            jobs.setdefault(row.run, Job(f"probe-{slug(row.run)}", measure_cell, {"config": config, "steps": probe}))
    make_data((row.config for row in rows if jobs), console)
    if isinstance(executor, LokyExecutor):  # one at a time, so that all are measured under the same load
        executor = LokyExecutor(1, executor.threads)
    outcomes = run_jobs(list(jobs.values()), executor, folder / "jobs")
    unmeasured = {}
    for row in rows:
        if row.name in costs:
            continue
        outcome = outcomes[jobs[row.run].name]
        if outcome.failed:
            unmeasured[row.name] = f"the cost of its steps could not be measured: {outcome.message}"
        else:
            costs[row.name] = outcome.value
    if study.reference not in costs:
        raise TrajgenError(
            "The training time of a study's reference could not be measured.",
            got=unmeasured.get(study.reference, f"variant '{study.reference}' was refused"),
            fix="reference=ANOTHER, or equal=[steps]",
        )
    steps = {name: equal_steps(cost, costs[study.reference]) for name, cost in costs.items()}
    write_json(path, {"costs": {name: asdict(cost) for name, cost in costs.items()}, "steps": steps})
    return steps, unmeasured
