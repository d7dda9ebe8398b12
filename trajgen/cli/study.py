"""``trajgen study`` and ``trajgen search``: many trainings, scored and compared."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from trajgen.cli.app import Words, command
from trajgen.cli.overrides import COMPOSITION, read
from trajgen.core.checks import check_range
from trajgen.core.errors import ConfigError, unknown_name
from trajgen.viz.options import Look

ConfigDir = Annotated[
    Path | None, typer.Option("--config-dir", metavar="DIR", help="Folder of recipes and data of your own.")
]


@dataclass(frozen=True, kw_only=True)
class ManyOptions(Look):
    """Options of the commands that train many runs."""

    seeds: tuple[int, ...] | None = None
    """Seeds of the trainings, as [0,1,2]."""
    out: Path | None = None
    """Folder of everything; by default studies/NAME."""
    workers: int | None = None
    """Trainings at a time; by default one a core, and one on a GPU."""
    executor: Annotated[str | None, "inline", "loky", "submitit", "ray"] = None
    """inline, loky (processes), submitit (SLURM) or ray; executor.KEY=VALUE sets an option of the last two."""

    def __post_init__(self) -> None:
        check_range("workers", self.workers, 1, usual=1)


@dataclass(frozen=True, kw_only=True)
class StudyOptions(ManyOptions):
    """Options of ``trajgen study``."""

    study: str | None = None
    """Shipped study, or a FILE.yaml; see 'trajgen list studies'."""
    task: str | None = None
    """Task of a study of several: study=paper_table task=adroit."""
    axis: str | None = None
    """Values of an option, 'axis=[prior.depth=2,4]', or overrides, with a blank between those of one variant:
    'axis=[schedule=unit, schedule=linear schedule.scales=3]'. Several make a grid."""
    evaluate: str | None = None
    """Axis of evaluations, which need no training: 'evaluate=[sampler=greedy,sampler.temperature=1.0]'."""
    reference: str | None = None
    """Variant that the others are compared to; by default the first."""
    equal: Annotated[tuple[str, ...] | None, "steps", "time"] = None
    """Compare at equal steps, at equal time of training, or both."""
    probe: int | None = None
    """Steps of each stage that are timed for equal time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("probe", self.probe, 1, usual=1)


@dataclass(frozen=True, kw_only=True)
class SearchOptions(ManyOptions):
    """Options of ``trajgen search``."""

    search: str | None = None
    """Shipped search, or a FILE.yaml; see 'trajgen list searches'."""
    trials: int | None = None
    """Number of trials; more can be added to a finished search."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("trials", self.trials, 1, usual=1)


@command("study", StudyOptions, "study study=num_scales 'seeds=[0,1]' engine.budget=0.1", groups=COMPOSITION)
def study(words: Words, config_dir: ConfigDir = None) -> None:
    """Train and compare variants over seeds.

    The same command continues where it was stopped: finished cells are kept, failed ones are tried again. The folder
    holds table.md, table.csv, plot.png, results.json, commands.sh, study.json, cells/ (a run folder each) and jobs/
    (output). Finished, it draws its picture anew, as with format=pdf.
    """
    words = _with_folder(words, config_dir)
    options, settings, built = read_study_words(words)
    from trajgen import experiments
    from trajgen.core.terminal import Terminal
    from trajgen.experiments.study import PROBE

    with _resumable("study"):
        experiments.run_study(
            built,
            Terminal(),
            folder=options.out,
            workers=options.workers,
            probe=options.probe or PROBE,
            executor=options.executor,
            executor_options=settings,
            command=shlex.join(["trajgen", "study", *words]),
            look=options,
        )


@command("search", SearchOptions, "search search=mage trials=20 engine.budget=0.1", groups=COMPOSITION)
def search(words: Words, config_dir: ConfigDir = None) -> None:
    """Train and compare what Optuna proposes.

    The objective is the ratio to the controller, or the return where there is none, on tuning episodes, which are never
    those that are reported (evaluation.seed=10000 by default). The first trial is the base itself. The same command
    continues where it was stopped.
    """
    words = _with_folder(words, config_dir)
    options, rest = read(words, SearchOptions)
    path = _file("search", options.search)
    from trajgen import experiments
    from trajgen.core.terminal import Terminal
    from trajgen.experiments.executors import check_executor, read_executor_words
    from trajgen.experiments.search_space import read_search

    check_executor(options.executor)
    settings, base = read_executor_words(rest)
    changes: dict[str, Any] = {"trials": options.trials, "seeds": options.seeds}
    with _resumable("search"):
        experiments.run_search(
            replace(
                read_search(path).with_overrides(base),
                **{key: value for key, value in changes.items() if value is not None},
            ),
            Terminal(),
            folder=options.out,
            workers=options.workers,
            executor=options.executor,
            executor_options=settings,
            command=shlex.join(["trajgen", "search", *words]),
            look=options,
        )


def read_study_words(words: Sequence[str]) -> tuple[StudyOptions, dict[str, Any], Any]:
    """The options of a study, the settings of its executor, and the study itself.

    Raises:
        ConfigError: for a word that does not fit, an unknown study, or neither a study nor an axis.
    """
    texts = [word.partition("=")[::2] for word in words if word.startswith(("axis=", "evaluate="))]
    options, rest = read(words, StudyOptions)
    if options.study is None and not texts:
        raise ConfigError(
            "A study needs study=NAME or an axis.", expected=", ".join(_files("study")), fix="study=num_scales"
        )
    path = _file("study", options.study) if options.study is not None else None
    if path is None and options.task is not None:
        raise ConfigError("A task is that of a study.", got=f"task={options.task}", fix="study=paper_table task=adroit")
    from trajgen.experiments.definition import Study, grid, grid_name, read_axis, read_study
    from trajgen.experiments.executors import check_executor, read_executor_words

    check_executor(options.executor)
    settings, base = read_executor_words(rest)
    axes = [read_axis(text, evaluate=key == "evaluate") for key, text in texts]
    changes: dict[str, Any] = {"seeds": options.seeds, "equal": options.equal, "reference": options.reference}
    if path is None:
        built = Study(name=grid_name(axes), variants=grid(axes))
    else:
        built = read_study(path, options.task)
        if axes:
            reference = ", ".join([built.reference, *(next(iter(axis)) for axis in axes)])
            built = replace(built, variants=grid([built.variants, *axes]), reference=reference)
    built = replace(built, **{key: value for key, value in changes.items() if value is not None})
    if options.probe is not None and "time" not in built.equal:
        raise ConfigError("Steps are timed for equal time.", got=f"probe={options.probe}", fix="equal=[time]")
    return options, settings, built.with_overrides(base)


def _with_folder(words: list[str], config_dir: Path | None) -> list[str]:
    """The words with that of a folder of recipes, which thus is in what every variant or trial is composed of."""
    if config_dir is None:
        return words
    from trajgen.config import config_dir_word

    return [config_dir_word(config_dir), *words]


def _files(what: str) -> dict[str, Path]:
    from trajgen import config

    return config.study_files() if what == "study" else config.search_files()


def _file(what: str, name: str | None) -> Path:
    """The file of a study or a search that is shipped, or of one's own."""
    if name is not None and name.endswith((".yaml", ".yml")):
        return Path(name)
    files = _files(what)
    if name not in files:
        rule = f"There is no {what} '{name}'." if name else f"The command needs {what}=NAME."
        raise unknown_name(rule, name or "", files, "a path to a .yaml file of your own works too")
    return files[name]


@contextmanager
def _resumable(what: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print(f"The {what} was stopped; the same command continues it.", file=sys.stderr)
        raise SystemExit(130) from None
