"""A search: Optuna proposes options, trainings score them on tuning episodes, and a table shows the best first.

A proposal depends on its number and the scores before it alone, which are read from the folder, so that a search that
was stopped ends as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajgen.config import Config, compose
from trajgen.core.errors import CheckpointError, ConfigError, TrajgenError
from trajgen.core.files import file_lock, read_json, write_json
from trajgen.evaluation.evaluate import EvaluationOptions
from trajgen.experiments.cells import Cell, Row, dry_run_rows, make_data
from trajgen.experiments.definition import Study, Variant
from trajgen.experiments.executors import JobExecutor, make_executor
from trajgen.experiments.jobs import Countdown, Job, run_jobs
from trajgen.experiments.results import gather, score
from trajgen.experiments.run_folder import STUDY_LOCK, refuse_links
from trajgen.experiments.search_space import TUNING, Search, Span
from trajgen.experiments.study import ROOT, print_outlook, report, require_empty
from trajgen.experiments.table import Look

if TYPE_CHECKING:
    from rich.console import Console

STARTUP = 8
"""Trials, the base among them, before one is proposed from the scores of others; until then they are drawn evenly."""
FILE = "search.json"


@dataclass
class Trial:
    """One choice of options, and its result; trial 0 is the base without any."""

    number: int
    params: dict[str, Any]
    row: Row | None = None
    score: float | None = None
    failed: str | None = None

    @property
    def name(self) -> str:
        """Of its run folders."""
        return f"trial-{self.number:03d}" if self.number else "as-it-is"

    @property
    def label(self) -> str:
        """In the table."""
        values = (f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in self.params.items())
        return f"{self.number}: " + ", ".join(values) if self.number else "as it is"


def run_search(
    search: Search,
    console: Console,
    *,
    folder: Path | None = None,
    executor: str | None = None,
    workers: int | None = None,
    executor_options: Mapping[str, Any] | None = None,
    command: str | None = None,
    look: Look | None = None,
) -> dict[str, Any]:
    """Trains and scores what Optuna proposes, writes a table with the best first, and returns the results.

    Arguments and errors are those of `run_study`; ``workers`` is the number of trainings at a time.

    Raises:
        ConfigError: also if Optuna is missing.
    """
    _require_optuna()
    folder = folder or ROOT / search.name
    base = _row(search, Trial(0, {}), {})
    require_tuning(base.config)
    dry_run_rows([base])
    trials = [Trial(0, search.params_of(base.config)), *load_trials(folder, search)]
    options, device = executor_options or {}, base.config.device
    with (
        make_executor(executor, workers, options, device=device, folder=folder / "jobs") as pool,
        file_lock(folder / STUDY_LOCK),
    ):
        make_data([base.config], console)
        require_other_replays(base.config)
        text = f"{search.name}: {search.trials} trials and the base as it is, {pool.description}"
        console.print(text, markup=False, highlight=False)
        count = Countdown(search.trials + 1)
        if not (folder / FILE).exists():
            trainings = len(search.seeds) * count.total
            print_outlook(Cell(base, search.seeds[0], folder), trainings, pool, console)
        while waiting := _next_trials(search, trials, max(1, pool.workers // len(search.seeds))):
            proposed = [trial.params for trial in trials if trial.number]
            write_json(folder / FILE, {**search.to_plain(), "proposed": proposed, "command": command})
            _run_trials(search, waiting, base.config.components, folder, pool, console, count)
        return _report(search, trials, folder, console, command, look)


def _require_optuna() -> None:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("A search needs Optuna.", got=str(error), fix="pip install 'trajgen[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def require_tuning(config: Config) -> None:
    """Raises a `ConfigError` if a search would choose by episodes whose scores are reported."""
    reported = reported_episodes(config)
    if config.evaluation.seed < reported:
        raise ConfigError(
            "A search chooses by other episodes than those that are reported, or its score is biased upwards.",
            expected=f"evaluation.seed >= {reported}",
            got=f"evaluation.seed={config.evaluation.seed}",
            fix=f"{TUNING}, or leave it out",
        )


def reported_episodes(config: Config) -> int:
    """How many episodes are reported, from seed 0 on: as many as a search chooses by, and as usual at least."""
    return max(EvaluationOptions.episodes, config.evaluation.episodes)


def require_other_replays(config: Config) -> None:
    """Raises a `ConfigError` if recorded episodes, which seeds count round, are both tuned on and reported."""
    from trajgen.data import store
    from trajgen.envs.replay import env_of_run

    if not store.folder(config.data.id).is_dir():
        return
    count, tuning = env_of_run(config.data, None).replayed_episodes, config.evaluation
    tuned = {seed % count for seed in range(tuning.seed, tuning.seed + min(tuning.episodes, count))} if count else set()
    shown = {*range(min(reported_episodes(config), count))}
    if tuned & shown:
        usual = EvaluationOptions.episodes
        most = min(usual, count - usual)
        fix = f"evaluation.seed={usual} evaluation.episodes={most}"
        raise ConfigError(
            "A search on recorded episodes chooses by others than those that are reported.",
            got=f"{count} episodes, of which seeds from {config.evaluation.seed} on pick {len(tuned & shown)} of those",
            fix=fix if most > 0 else f"more than {usual} episodes, or data.env_id=ID of an environment",
        )


def propose(search: Search, number: int, trials: Iterable[Trial]) -> dict[str, Any]:
    """The options of a trial: a function of its number and of the other trials, some of which may be running.

    Args:
        search: with the space.
        number: of the trial, from 1 on.
        trials: all others; those without score and failure are running.
    """
    import warnings

    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.trial import TrialState, create_trial

    space: dict[str, BaseDistribution] = {}
    for key, choices in search.space.items():
        if not isinstance(choices, Span):
            space[key] = CategoricalDistribution(choices)
        elif choices.is_integer:
            space[key] = IntDistribution(int(choices.low), int(choices.high), log=choices.log)
        else:
            space[key] = FloatDistribution(choices.low, choices.high, log=choices.log)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=number, n_startup_trials=STARTUP, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for trial in trials:
        if trial.params:
            state = TrialState.FAIL if trial.failed is not None else TrialState.RUNNING
            state = state if trial.score is None else TrialState.COMPLETE
            study.add_trial(create_trial(state=state, value=trial.score, params=trial.params, distributions=space))
    return dict(study.ask(space).params)


def load_trials(folder: Path, search: Search) -> list[Trial]:
    """The trials of a folder, without their scores.

    Raises:
        ConfigError: if the folder is that of another search, or of something else.
        CheckpointError: if search.json is damaged.
    """
    refuse_links(folder)
    path = folder / FILE
    if not path.exists():
        require_empty(folder, FILE)
        return []
    existing, plain = read_json(path), search.to_plain()
    if differing := [key for key in ("base", "space", "seeds") if existing.get(key) != plain[key]]:
        raise ConfigError(
            "A search's folder belongs to one definition, to which only trials can be added.",
            expected=f"the definition in {path}",
            got=f"another {', '.join(differing)}",
            fix="out=ANOTHER, or the options that the folder was made with",
        )
    proposed = existing.get("proposed")
    if not isinstance(proposed, list) or not all(_is_in_space(search, params) for params in proposed):
        raise CheckpointError(
            f"{path} is not as 'trajgen search' wrote it: trials are outside of the space.",
            got=str(proposed)[:200],
            fix="out=ANOTHER, to search anew",
        )
    if len(proposed) > search.trials:
        raise ConfigError(
            "Trials are added to a search, not taken away.",
            expected=f"trials of at least {len(proposed)}, as {path} has",
            got=f"trials={search.trials}",
            fix=f"trials={len(proposed)}, or out=ANOTHER",
        )
    return [Trial(number, dict(params)) for number, params in enumerate(proposed, 1)]


def _is_in_space(search: Search, params: object) -> bool:
    return (
        isinstance(params, Mapping)
        and params.keys() == search.space.keys()
        and all(isinstance(v, str | int | float) and v in search.space[k] for k, v in params.items())
    )


def _next_trials(search: Search, trials: list[Trial], count: int) -> list[Trial]:
    """The trials that are to be trained next; new ones are proposed until there are ``count``."""
    waiting = [trial for trial in trials if trial.score is None and trial.failed is None]
    while len(waiting) < count and len(trials) <= search.trials:
        trials.append(Trial(len(trials), propose(search, len(trials), trials)))
        waiting.append(trials[-1])
    return waiting


def _row(search: Search, trial: Trial, components: Mapping[str, Any]) -> Row:
    words = search.overrides(trial.params if trial.number else {}, components)
    return Row(trial.name, trial.name, words, compose(words), {}, trial.name)


def _run_trials(
    search: Search,
    trials: Sequence[Trial],
    components: Mapping[str, Any],
    folder: Path,
    executor: JobExecutor,
    console: Console,
    count: Countdown,
) -> None:
    """Trains and scores trials; one that cannot be composed, built or trained has failed."""
    cells: dict[str, list[Cell]] = {}
    jobs: list[Job] = []
    for trial in trials:
        try:
            trial.row = _row(search, trial, components)
            require_tuning(trial.row.config)
            dry_run_rows([trial.row])
            trial_cells = [Cell(trial.row, seed, folder) for seed in search.seeds]
            jobs += [cell.training_job() for cell in trial_cells if not cell.is_trained()]
            cells[trial.name] = trial_cells
        except TrajgenError as error:
            trial.failed = str(error)
    outcomes = run_jobs(jobs, executor, folder / "jobs")
    for trial in trials:
        reasons = [o.message for cell in cells.get(trial.name, []) if (o := outcomes.get(cell.name)) and o.failed]
        trial.failed = trial.failed or (reasons[0] if reasons else None)
        if trial.failed is None:
            try:
                values = [score(cell.run) for cell in cells[trial.name]]
                trial.score = math.fsum(values) / len(values)
            except TrajgenError as error:
                trial.failed = str(error)
        result = f"failed: {trial.failed}" if trial.score is None else f"{trial.score:.3f}"
        console.print(f"{trial.label}: {result} ({count.next()})", markup=False, highlight=False, soft_wrap=True)


def _report(
    search: Search, trials: Sequence[Trial], folder: Path, console: Console, command: str | None, look: Look | None
) -> dict[str, Any]:
    """The table of a study whose variants were proposed: the best first, each compared to the base."""
    ranked = sorted(trials, key=lambda trial: -math.inf if trial.score is None else trial.score, reverse=True)
    cells = [Cell(trial.row, seed, folder) for trial in ranked if trial.row is not None for seed in search.seeds]
    failed = {cell.name: t.failed for t in trials if t.failed for cell in cells if cell.row is t.row}
    failed |= {trial.name: trial.failed for trial in trials if trial.failed and trial.row is None}
    variants = {trial.name: Variant() for trial in trials}
    study = Study(name=search.name, question=search.question, variants=variants, seeds=search.seeds)
    results = gather(study, cells, failed)
    labels = {trial.name: trial.label for trial in trials}
    for row in results["rows"]:
        row["name"] = labels[row["name"]]
    best = ranked[0]
    results |= {"command": command, "reference": trials[0].label, "best": None}
    epilogue: list[str] = []
    if best.row is not None and best.score is not None:
        results["best"] = {"name": best.label, "score": best.score, "words": list(best.row.words)}
        run = Cell(best.row, search.seeds[0], folder).run
        epilogue = [
            f"Best: {best.label}. On the episodes that are reported:",
            f"  trajgen evaluate run={run} evaluation.seed=0",
        ]
    report(results, cells, console, epilogue, look)
    return results
