"""A study from its definition to its table: what is there already is kept, what fails is said, and the rest goes on."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajgen.config import Config
from trajgen.core.errors import CheckpointError, ConfigError, TrajgenError
from trajgen.core.files import read_json, write_json
from trajgen.core.types import Space
from trajgen.experiments.studies.cells import ASIDE, BY_TIME, Cell, Row, check_evaluation, rows_of
from trajgen.experiments.studies.cost import Cost, equal_steps
from trajgen.experiments.studies.definition import Study, slug
from trajgen.experiments.studies.jobs import Launcher, launch

if TYPE_CHECKING:
    from rich.console import Console

ROOT = Path("studies")
PROBE = 50
"""Steps of each stage that are timed where variants are compared at equal time."""


def run(
    study: Study,
    console: Console,
    *,
    folder: Path | None = None,
    workers: int | None = None,
    probe: int = PROBE,
    words: Sequence[str] = (),
    command: str | None = None,
) -> dict[str, Any]:
    """Trains and evaluates every cell that is not finished, writes table and plot, and returns the results.

    Args:
        study: what is asked.
        console: where the table is shown.
        folder: where everything is kept; None for ``studies/NAME``.
        workers: cells at a time; None for as many as make sense here.
        probe: steps that are timed for equal time.
        words: overrides of Hydra that choose and set a launcher.
        command: that asked for it, to be written beside the table.

    Raises:
        ConfigError: if a variant does not compose, or the folder is that of another study.
        TrajgenError: in the end, if cells failed; the table says which and why.
        KeyboardInterrupt: after Ctrl-C, when checkpoints have been written.
    """
    from trajgen.experiments.studies.results import gather
    from trajgen.experiments.studies.table import print_results, write_results

    folder = folder or ROOT / study.name
    known: dict[tuple[str, ...], Config] = {}
    rows = rows_of(replace(study, equal=("steps",)), known=known)
    composed = {row.name: _described(row) for row in rows}
    check_folder(folder, study, composed)
    failed = dry_run(rows)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "study.json", {**study.to_plain(), "composed": composed, "command": command})
    launcher = choose_launcher(workers, words, rows[0].trained.device)
    if "time" in study.equal:
        working = [row for row in rows if row.name not in failed]
        steps, unmeasured = find_steps(folder, study, working, launcher, probe, console)
        failed |= {name + BY_TIME: reason for name, reason in (failed | unmeasured).items()}
        rows = rows_of(study, steps, known)
    cells = [Cell(row, seed, folder) for row in rows for seed in study.seeds]
    repeat = f"repeat/{folder.name}"
    trainings = {}
    for cell in cells:
        try:
            if cell.row.name not in failed and not cell.trained():
                trainings[cell.run.name] = _training(cell, repeat)
        except TrajgenError as error:
            failed[cell.run.name] = str(error)
    console.print(f"[bold]{study.name}[/]: {len(cells)} cells, {len(trainings)} trainings to do, {launcher}")
    make_data((cell.row.trained for cell in cells if cell.run.name in trainings), console)
    failed |= launch(folder / "jobs", trainings, launcher)
    waiting = [cell for cell in cells if _reason(cell, failed) is None and not cell.finished()]
    failed |= launch(folder / "jobs", {_evaluation(cell): _asked(cell) for cell in waiting}, launcher)

    reasons = {cell.name: _reason(cell, failed) for cell in cells}
    absent = {name: failed[name] for name in failed if name.endswith(BY_TIME) and name not in {r.name for r in rows}}
    results = gather(study, cells, {**{k: v for k, v in reasons.items() if v is not None}, **absent})
    results["command"] = command
    write_results(folder, results, [cell.commands(repeat) for cell in cells])
    print_results(results, console)
    console.print(f"{folder / 'table.md'}", style="bold")
    if results["failed"]:
        raise TrajgenError(
            f"{len(results['failed'])} of {len(cells) + len(absent)} cells failed; the table has the others.",
            got=", ".join(results["failed"]),
            fix=f"{folder / 'table.md'} says why each failed; the same command tries them again and keeps the others",
        )
    return results


def _training(cell: Cell, repeat: str) -> dict[str, Any]:
    return {"kind": "train", "config": cell.config.to_plain(), "command": cell.commands(repeat)[0]}


def _evaluation(cell: Cell) -> str:
    return f"{cell.name}.evaluation"


def _asked(cell: Cell) -> dict[str, Any]:
    return {
        "kind": "evaluate",
        "run": str(cell.run),
        "out": str(cell.out),
        "overrides": cell.row.overrides,
        "device": cell.row.trained.device,
        "imports": list(cell.row.trained.imports),
    }


def _reason(cell: Cell, failed: Mapping[str, str]) -> str | None:
    """Why a cell failed: its variant was refused, its training failed, or its evaluation did."""
    names = (cell.row.name, cell.run.name, _evaluation(cell))
    return next((failed[name] for name in names if name in failed), None)


def _described(row: Row) -> dict[str, Any]:
    """What a row is, all seeds aside."""
    plain = {k: v for k, v in row.trained.to_plain().items() if k not in ASIDE}
    return {**plain, "evaluate": row.overrides}


def check_folder(folder: Path, study: Study, composed: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses a folder of another study; seeds may be added to the same one.

    Raises:
        ConfigError: which names what differs.
    """
    if not (folder / "study.json").exists():
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(
                "A study's folder is new, or that of the same study.",
                expected="an empty folder, or one with study.json",
                got=f"{folder} holds {', '.join(sorted(path.name for path in folder.iterdir())[:4])}",
                fix="out=ANOTHER",
            )
        return
    asked = study.to_plain()
    found = read_json(folder / "study.json")
    seeds, composed_then = found.get("seeds"), found.get("composed", {})
    if (
        not isinstance(seeds, list)
        or not all(type(seed) is int for seed in seeds)
        or not isinstance(composed_then, dict)
        or not all(isinstance(variant, dict) for variant in composed_then.values())
    ):
        raise CheckpointError(
            "A study's folder holds its definition.",
            expected=f"{folder / 'study.json'}, as 'trajgen study' wrote it",
            got="seeds or variants that no study has",
            fix="out=ANOTHER",
        )
    old = {name: _as_now(variant) for name, variant in composed_then.items()}
    differing = [key for key in ("reference", "equal") if found.get(key) != asked[key]]
    differing += [f"seeds: {seeds} became {asked['seeds']}"] if {*seeds} - {*asked["seeds"]} else []
    differing += [
        f"variant '{name}', which is {'new' if name in composed else 'gone'}" for name in old.keys() ^ composed
    ]
    differing += [
        f"{', '.join(sorted(k for k in {*old[name], *new} if old[name].get(k) != new.get(k)))} of variant '{name}'"
        for name, new in composed.items()
        if name in old and old[name] != new
    ]
    if differing:
        raise ConfigError(
            "A study's folder belongs to one definition, to which only seeds can be added.",
            expected=f"the definition in {folder / 'study.json'}",
            got="; ".join(differing),
            fix="out=ANOTHER, or the options that the folder was made with",
        )


def _as_now(described: Mapping[str, Any]) -> dict[str, Any]:
    """A row as it was described once; an option that has come since has its default there."""
    try:
        config = Config.from_plain({key: value for key, value in described.items() if key != "evaluate"})
    except TrajgenError:  # an option has gone since: what is different will be said
        return dict(described)
    plain = {key: value for key, value in config.to_plain().items() if key not in ASIDE}
    return {**plain, "evaluate": described.get("evaluate", {})}


def dry_run(rows: Sequence[Row]) -> dict[str, str]:
    """Builds every composition at made-up dimensions; returns why rows that cannot work are refused.

    Raises:
        TrajgenError: if none can work.
    """
    from trajgen import experiments

    space = Space(state_dim=4, action_dim=2, goal_dim=2)
    refused: dict[str, str] = {}
    error: TrajgenError | None = None
    for row in rows:
        try:
            experiments.dry_run(row.trained)
            if row.overrides:
                check_evaluation(row, lambda config: experiments.build_planner(config, space))
        except TrajgenError as caught:
            error, refused[row.name] = caught, str(caught)
    if error is not None and len(refused) == len(rows):
        raise error
    return refused


def make_data(configs: Iterable[Config], console: Console) -> None:
    """Makes the data sets that are missing and can be made, before several processes ask for them at once."""
    from trajgen.data import store
    from trajgen.envs import makers
    from trajgen.experiments import load_episodes

    for config in configs:
        maker = makers.MAKERS.get(config.data.maker or "")
        if maker and maker.id == config.data.id and not store.folder(config.data.id).is_dir():
            load_episodes(config, console)


def find_steps(
    folder: Path, study: Study, rows: Sequence[Row], launcher: Launcher, probe: int, console: Console
) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    """For each variant the steps that take the reference's time: those found before, or measured now.

    Returns:
        The steps by variant, and why variants were not measured.

    Raises:
        TrajgenError: if the reference could not be measured.
    """
    known: dict[str, Any] = read_json(folder / "steps.json") if (folder / "steps.json").exists() else {}
    known.setdefault("costs", {})
    jobs, places = {}, {}
    for row in rows:
        name = f"probe-{slug(row.run)}"
        places[row.name] = folder / "jobs" / f"{name}-cost.json"
        if row.name not in known["costs"]:
            config = replace(row.trained, seed=study.seeds[0], run_dir=None)
            jobs[name] = {
                "kind": "probe",
                "config": config.to_plain(),
                "steps": probe,
                "threads": launcher.threads if launcher.workers > 1 else None,
                "out": str(places[row.name]),
            }
    make_data((row.trained for row in rows if jobs), console)
    # One at a time, so that all find the machine alike; it is for ratios.
    failed = launch(folder / "jobs", jobs, launcher if launcher.named else Launcher())
    unmeasured = {}
    for row in rows:
        if (reason := failed.get(f"probe-{slug(row.run)}")) is not None:
            unmeasured[row.name] = f"the cost of its steps could not be measured: {reason}"
        elif row.name not in known["costs"]:
            known["costs"][row.name] = read_json(places[row.name])
    if study.reference not in known["costs"]:
        raise TrajgenError(
            "The training time of a study's reference can be measured.",
            expected=f"variant '{study.reference}' to train for {probe} steps",
            got=unmeasured.get(study.reference, "it was refused"),
            fix="reference=ANOTHER, or equal=[steps]",
        )
    costs = {name: Cost(**cost) for name, cost in known["costs"].items()}
    known["steps"] = {name: equal_steps(cost, costs[study.reference]) for name, cost in costs.items()}
    write_json(folder / "steps.json", known)
    return known["steps"], unmeasured


def choose_launcher(workers: int | None, words: Sequence[str], device: str) -> Launcher:
    """How cells are run: as many at a time as there are cores, one at a time where there is a GPU.

    Raises:
        ConfigError: if several are asked for and Hydra's joblib launcher is not installed.
    """
    if Launcher(words=tuple(words)).named not in (None, "joblib"):
        return Launcher(workers or 1, 1, tuple(words))
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(given) if given.isdecimal() and int(given) else None
    plugins = importlib.util.find_spec("hydra_plugins")  # without any there is not even the room for them
    there = plugins is not None and importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is not None
    if workers is None:
        on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
        workers = 1 if on_gpu else max(1, cores // (threads or 1))
        if workers > 1 and not there:
            return Launcher(said="one at a time (pip install 'trajgen[sweep]' for several)")
    if workers > 1 and not there:
        raise ConfigError(
            "Several cells at a time are run by Hydra's joblib launcher.",
            expected="the package hydra-joblib-launcher",
            got=f"workers={workers}",
            fix="pip install 'trajgen[sweep]', or workers=1",
        )
    return Launcher(workers, threads or max(1, cores // workers), tuple(words))
