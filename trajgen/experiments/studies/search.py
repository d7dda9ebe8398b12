"""A search: Optuna proposes options, trainings score them on tuning episodes, and a table shows the best first.

Optuna is asked directly: each proposal is a function of its number and of the scores known by then, which lie in the
folder, so that a search that is stopped goes on as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajgen.config import Config, compose
from trajgen.core.errors import CheckpointError, ConfigError, TrajgenError
from trajgen.experiments.run_folder import read_json, write_json
from trajgen.experiments.studies.cells import Cell, Row
from trajgen.experiments.studies.definition import Study, Variant
from trajgen.experiments.studies.jobs import Launcher, launch
from trajgen.experiments.studies.run import ROOT, choose_launcher, dry_run, make_data
from trajgen.experiments.studies.space import Search, Span, require_tuning

if TYPE_CHECKING:
    from rich.console import Console

STARTUP = 8
"""Trials that are drawn evenly before any is proposed from the scores of others."""
FILE = "search.json"


@dataclass
class Trial:
    """One choice of options, and what came of it."""

    number: int
    chosen: dict[str, Any]
    row: Row | None = None
    score: float | None = None
    failed: str | None = None

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"trial-{self.number:03d}" if self.number else "as-it-is"


def run(
    search: Search,
    console: Console,
    *,
    folder: Path | None = None,
    workers: int | None = None,
    words: Sequence[str] = (),
    command: str | None = None,
) -> dict[str, Any]:
    """Trains and scores what Optuna proposes, writes a table with the best first, and returns the results.

    Args:
        search: what is asked.
        console: where the table is shown.
        folder: where everything is kept; None for ``studies/NAME``.
        workers: trials at a time; None for as many as make sense here.
        words: overrides of Hydra that choose and set a launcher.
        command: that asked for it, to be written beside the table.

    Raises:
        ConfigError: if the base does not compose, Optuna is missing, or the folder is that of another search.
        TrajgenError: in the end, if trials failed; the table says which and why.
        KeyboardInterrupt: after Ctrl-C, when checkpoints have been written.
    """
    _require_optuna()
    folder = folder or ROOT / search.name
    first = _row(search, Trial(0, {}))
    require_tuning(first.trained)
    dry_run([first])
    trials = [Trial(0, {}), *kept(folder, search)]
    launcher = choose_launcher(workers, words, first.trained.device)
    folder.mkdir(parents=True, exist_ok=True)
    make_data([first.trained], console)
    console.print(f"[bold]{search.name}[/]: {search.trials} trials and the base as it is, {launcher}")
    while waiting := _next(search, trials, launcher, first.trained):
        write_json(folder / FILE, _plain(search, trials, command))
        _play(search, waiting, folder, launcher, console)
    results = _report(search, trials, folder, console, command)
    if results["failed"]:
        raise TrajgenError(
            f"{len(results['failed'])} trainings of the search failed; the table has the others.",
            got=", ".join(results["failed"]),
            fix=f"{folder / 'table.md'} says why each failed; the same command tries them again and keeps the others",
        )
    return results


def _require_optuna() -> None:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            "A search is proposed by Optuna.", expected="optuna", got=str(error), fix="pip install 'trajgen[sweep]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def propose(search: Search, number: int, trials: Iterable[Trial]) -> dict[str, Any]:
    """What a trial tries: a function of its number and of what is known of the others, which may be under way.

    Args:
        search: its space.
        number: of the trial, from 1 on.
        trials: all others; those without score and failure are under way.
    """
    import warnings

    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.trial import TrialState, create_trial

    space: dict[str, BaseDistribution] = {}
    for key, choices in search.space.items():
        if not isinstance(choices, Span):
            space[key] = CategoricalDistribution(choices)
        elif choices.whole:
            space[key] = IntDistribution(int(choices.low), int(choices.high), log=choices.log)
        else:
            space[key] = FloatDistribution(choices.low, choices.high, log=choices.log)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=number, n_startup_trials=STARTUP, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for trial in trials:
        if trial.chosen:
            state = TrialState.FAIL if trial.failed is not None else TrialState.RUNNING
            state = state if trial.score is None else TrialState.COMPLETE
            study.add_trial(create_trial(state=state, value=trial.score, params=trial.chosen, distributions=space))
    return dict(study.ask(space).params)


def kept(folder: Path, search: Search) -> list[Trial]:
    """The trials that a folder holds, without their scores.

    Raises:
        ConfigError: if the folder is that of another search, or of something else.
        CheckpointError: if its file was not written by a search.
    """
    path = folder / FILE
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(
                "A search's folder is new, or that of the same search.",
                expected=f"an empty folder, or one with {FILE}",
                got=f"{folder} holds {', '.join(sorted(p.name for p in folder.iterdir())[:4])}",
                fix="out=ANOTHER",
            )
        return []
    found, asked = read_json(path), search.to_plain()
    if differing := [key for key in ("base", "space", "seeds") if found.get(key) != asked[key]]:
        raise ConfigError(
            "A search's folder belongs to one definition, to which only trials can be added.",
            expected=f"the definition in {path}",
            got=f"another {', '.join(differing)}",
            fix="out=ANOTHER, or the options that the folder was made with",
        )
    chosen = found.get("proposed")
    if not isinstance(chosen, list) or not all(_proposed(search, each) for each in chosen):
        raise CheckpointError(
            "The trials of a search lie in its space.",
            expected=f"{path}, as 'trajgen search' wrote it",
            got=str(chosen)[:200],
            fix="out=ANOTHER, to search anew",
        )
    return [Trial(number, dict(each)) for number, each in enumerate(chosen[: search.trials], 1)]


def _proposed(search: Search, chosen: object) -> bool:
    return (
        isinstance(chosen, Mapping)
        and chosen.keys() == search.space.keys()
        and all(isinstance(v, str | int | float) and v in search.space[k] for k, v in chosen.items())
    )


def _plain(search: Search, trials: Iterable[Trial], command: str | None) -> dict[str, Any]:
    return {**search.to_plain(), "proposed": [trial.chosen for trial in trials if trial.number], "command": command}


def _next(search: Search, trials: list[Trial], launcher: Launcher, base: Config) -> list[Trial]:
    """The trials that are to be trained next; as many new ones are proposed as are trained at a time."""
    waiting = [trial for trial in trials if trial.score is None and trial.failed is None]
    if base_values := search.inside(base):
        trials[0].chosen = base_values
    room = max(1, launcher.workers // len(search.seeds))
    while len(waiting) < room and len(trials) <= search.trials:
        trials.append(Trial(len(trials), propose(search, len(trials), trials)))
        waiting.append(trials[-1])
    return waiting


def _row(search: Search, trial: Trial) -> Row:
    words = search.words(trial.chosen if trial.number else {})
    return Row(trial.name, trial.name, words, compose(words), {}, trial.name)


def _play(search: Search, waiting: Sequence[Trial], folder: Path, launcher: Launcher, console: Console) -> None:
    """Trains and scores trials; one that cannot be composed, built or trained has failed."""
    from trajgen.experiments.studies.results import score

    cells: dict[str, list[Cell]] = {}
    jobs = {}
    for trial in waiting:
        try:
            trial.row = _row(search, trial)
            require_tuning(trial.row.trained)
            dry_run([trial.row])
            cells[trial.name] = [Cell(trial.row, seed, folder) for seed in search.seeds]
            for cell in cells[trial.name]:
                if not cell.trained():
                    repeat = cell.commands(f"repeat/{folder.name}")[0]
                    jobs[cell.name] = {"kind": "train", "config": cell.config.to_plain(), "command": repeat}
        except TrajgenError as error:
            trial.failed = str(error)
    failed = launch(folder / "jobs", jobs, launcher)
    for trial in waiting:
        reasons = [failed[cell.name] for cell in cells.get(trial.name, []) if cell.name in failed]
        if trial.failed is None and not reasons:
            values = [score(cell.run) for cell in cells[trial.name]]
            trial.score = math.fsum(values) / len(values)
        trial.failed = trial.failed or (reasons[0] if reasons else None)
        said = f"failed: {trial.failed}" if trial.score is None else f"{trial.score:.3f}"
        console.print(f"{_label(trial)}: {said}", markup=False, highlight=False, soft_wrap=True)


def _label(trial: Trial) -> str:
    if not trial.number:
        return "as it is"
    return f"{trial.number}: " + ", ".join(f"{k}={_short(v)}" for k, v in trial.chosen.items())


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _report(
    search: Search, trials: Sequence[Trial], folder: Path, console: Console, command: str | None
) -> dict[str, Any]:
    """The table of a study whose variants were proposed: the best first, each compared to the base as it is."""
    from trajgen.experiments.studies.results import gather
    from trajgen.experiments.studies.table import print_results, write_results

    ranked = sorted(trials, key=lambda trial: -math.inf if trial.score is None else trial.score, reverse=True)
    cells = [Cell(trial.row, seed, folder) for trial in ranked if trial.row is not None for seed in search.seeds]
    failed = {cell.name: t.failed for t in trials if t.failed for cell in cells if cell.row is t.row}
    failed |= {trial.name: trial.failed for trial in trials if trial.failed and trial.row is None}
    variants = {trial.name: Variant() for trial in trials}
    study = Study(name=search.name, question=search.question, variants=variants, seeds=search.seeds)
    results = gather(study, cells, failed)
    labels = {trial.name: _label(trial) for trial in trials}
    for row in results["rows"]:
        row["name"] = labels[row["name"]]
    best = ranked[0]
    results |= {"command": command, "reference": labels["as-it-is"], "best": None}
    if best.row is not None and best.score is not None:
        results["best"] = {"name": _label(best), "score": best.score, "words": list(best.row.words)}
    write_results(folder, results, [cell.commands(f"repeat/{folder.name}") for cell in cells])
    print_results(results, console)
    if best.row is not None and best.score is not None:
        place = Cell(best.row, search.seeds[0], folder).run
        console.print(f"Best: {_label(best)}. On the episodes that are reported:", markup=False, highlight=False)
        console.print(
            f"  trajgen evaluate run={place} evaluation.seed=0", markup=False, highlight=False, soft_wrap=True
        )
    console.print(f"{folder / 'table.md'}", style="bold")
    return results
