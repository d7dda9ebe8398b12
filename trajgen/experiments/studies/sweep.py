"""A sweep: one command of several values, a training for each in a run folder of its own, and a table of them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajgen.config import ROOT, Config, explain, from_hydra
from trajgen.core.errors import CheckpointError, TrajgenError
from trajgen.core.files import write_json
from trajgen.experiments.run_folder import ROOT as RUNS
from trajgen.experiments.run_folder import free_path, identity, read_evaluation, run_name
from trajgen.experiments.studies.definition import key_of, slug
from trajgen.experiments.studies.jobs import Launcher, launch
from trajgen.experiments.studies.run import choose_launcher, make_data
from trajgen.viz.summary import NOTHING, interval, number

if TYPE_CHECKING:
    from rich.console import Console

NAMED = ("recipe", "data", "seed")
"""Options that a run folder's name has anyhow."""
LONGEST = 120
"""Letters of a run folder's name, so that a file system takes it."""


@dataclass(frozen=True)
class Job:
    """One training of a sweep."""

    swept: tuple[str, ...]
    """The overrides in which it differs from the others."""
    words: tuple[str, ...]
    """All of its overrides."""
    config: Config

    @property
    def name(self) -> str:
        """What its run folder is called, unless the name is taken."""
        parts = [slug(word) for word in self.swept if key_of(word) not in NAMED]
        return run_name(self.config, *parts, longest=LONGEST)

    @property
    def folder(self) -> Path:
        return Path(str(self.config.run_dir))


def sweep(words: Sequence[str], console: Console, given: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Trains each combination of the values, and returns and prints what came of each.

    Args:
        words: overrides as of ``trajgen train -m``, without the ``-m``; those of Hydra choose a launcher.
        console: where the table is shown.
        given: words as they were typed, where another form stands in ``words``.

    Returns:
        The results by run folder, and the reasons of those that failed.

    Raises:
        ConfigError: before any training, if one of them does not compose.
        TrajgenError: in the end, if trainings failed; the others are kept.
        KeyboardInterrupt: after Ctrl-C, when checkpoints have been written.
    """
    own = [word for word in words if not word.lstrip("+").startswith(("hydra/", "hydra."))]
    jobs = expand(own)
    parent = _parent(jobs[0])
    jobs = placed(jobs)
    launcher = Launcher(words=tuple(word for word in words if word not in own))
    if launcher.named is None:
        launcher = replace(launcher, said="one after the other")
    elif launcher.named == "joblib":
        launcher = choose_launcher(None, launcher.words, jobs[0].config.device)
    folder = free_path(parent / "sweeps")
    typed = given or {}
    asked = {}
    for job in jobs:
        command = shlex.join(["trajgen", "train", *(typed.get(word, word) for word in job.words)])
        asked[job.folder.name] = {"kind": "train", "config": job.config.to_plain(), "command": command}
    if not launcher.here:
        make_data((job.config for job in jobs), console)
    console.print(f"[bold]{len(jobs)} trainings[/], {launcher}; what each says is in {folder / 'jobs'}")
    failed = launch(folder / "jobs", asked, launcher)
    results: dict[str, dict[str, Any]] = {
        "runs": {str(job.folder): _outcome(job) for job in jobs if job.folder.name not in failed},
        "failed": {str(job.folder): failed[job.folder.name] for job in jobs if job.folder.name in failed},
    }
    write_json(folder / "results.json", results)
    _print(results, console)
    if failed:
        raise TrajgenError(
            f"{len(failed)} of {len(jobs)} trainings failed; the others are kept.",
            expected="all of them to end",
            got=", ".join(results["failed"]),
            fix=f"what each said is in {folder / 'jobs'}; the same command with resume=true goes on with all of them",
        )
    return results


def expand(words: Sequence[str]) -> list[Job]:
    """The trainings that a command of several values asks for, composed, in the order of the values.

    Raises:
        ConfigError: if one of them does not compose, or there is nothing to choose from.
    """
    from hydra import compose, initialize
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    GlobalHydra.instance().clear()
    try:
        with initialize(version_base="1.3", config_path=None):
            parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
            parsed = parser.parse_overrides(list(words))
            swept = {override.get_key_element() for override in parsed if override.is_sweep_override()}
            jobs = []
            for each in chain.from_iterable(BasicSweeper.split_arguments(parsed, None)):
                differing = tuple(word for word in each if word.partition("=")[0] in swept)
                jobs.append(Job(differing, tuple(each), from_hydra(compose(ROOT, overrides=each))))
            return jobs
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error, words) from error


def placed(jobs: Iterable[Job]) -> list[Job]:
    """The same with a run folder for each: a new one, or with resume=true the one that holds its run.

    They are chosen here, before anything is trained, since several processes could choose the same.
    """
    taken: set[str] = set()
    result = []
    for job in jobs:
        names = (job.name if n == 1 else f"{job.name}-{n}" for n in count(1))
        place = _parent(job)
        name = next(name for name in names if name not in taken and _fits(place / name, job.config))
        taken.add(name)
        result.append(replace(job, config=replace(job.config, run_dir=str(place / name), resume=True)))
    return result


def _parent(job: Job) -> Path:
    """Where the run folders lie: in run_dir, if it was given."""
    return RUNS if job.config.run_dir is None else Path(job.config.run_dir)


def _fits(folder: Path, config: Config) -> bool:
    return not folder.exists() or (config.resume and identity(folder) == config.identity())


def score(folder: Path) -> float:
    """What a search makes as large as it can: a run's return over the controller's, or where there is none its return.

    Raises:
        CheckpointError: if the evaluation of the run folder cannot be read, or holds neither.
    """
    path = folder / "evaluation.json"
    figures = read_evaluation(path)
    ratio, mean = figures.get("ratio_to_controller"), (figures.get("return") or {}).get("mean")
    value = mean if ratio is None else ratio
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise CheckpointError(
            "An evaluation has a mean return.",
            expected=f"{path}, as trajgen wrote it",
            got=f"ratio_to_controller {ratio}, mean return {mean}",
            fix=f"trajgen evaluate run={folder} out={folder}",
        )
    return float(value)


def _outcome(job: Job) -> dict[str, Any]:
    path = job.folder / "evaluation.json"
    figures = read_evaluation(path) if path.exists() else {}
    ratio = figures.get("ratio_to_controller")
    summary = figures.get("return") or {}
    return {
        "swept": list(job.swept),
        "ratio": ratio,
        "ratio_ci95": figures.get("ratio_to_controller_ci95"),
        "return": summary.get("mean"),
        "success": figures.get("success"),
    }


def _print(results: Mapping[str, Any], console: Console) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(show_edge=False, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in ("run", "ratio", "95 % interval", "return", "success"):
        table.add_column(head, justify="left" if head == "run" else "right", overflow="fold")
    for name, figures in results["runs"].items():
        success = NOTHING if figures["success"] is None else f"{figures['success']:.0%}"
        cells = (number(figures["ratio"], 3), interval(figures["ratio_ci95"], 3), number(figures["return"]), success)
        table.add_row(*map(Text, (Path(name).name, *cells)))
    console.print(table)
    for name, reason in results["failed"].items():
        console.print(f"{name} failed: {reason}", style="red", markup=False, highlight=False)
