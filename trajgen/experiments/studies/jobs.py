"""The jobs of a study: probes, trainings and evaluations, which Hydra's launchers run, here or in other processes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from trajgen.core.errors import TrajgenError
from trajgen.experiments.run_folder import read_json, write_json

if TYPE_CHECKING:
    from rich.console import Console

ROOT = "study_job"
STOP = ".stop"
"""A file in the folder of jobs that asks them to stop after their next checkpoint."""
RUNNING, DONE, FAILED, STOPPED = "running", "done", "failed", "stopped"


@dataclass(frozen=True)
class Launcher:
    """How jobs are run.

    Args:
        workers: how many at a time; one runs in this process.
        threads: of each, where there are several.
        words: overrides of Hydra, such as ``hydra/launcher=submitit_slurm``; they go first.
        said: how this is, in words; put together if empty.
    """

    workers: int = 1
    threads: int = 1
    words: tuple[str, ...] = ()
    said: str = ""

    def __str__(self) -> str:
        if self.said or self.words:
            return self.said or " ".join(self.words)
        each = "one thread" if self.threads == 1 else f"{self.threads} threads"
        return "one at a time" if self.workers == 1 else f"{self.workers} at a time, each on {each}"

    @property
    def named(self) -> str | None:
        """Hydra's launcher, where one is named."""
        return next((word.partition("=")[2] for word in self.words if word.startswith("hydra/launcher=")), None)

    @property
    def here(self) -> bool:
        """Whether jobs run in this process, one after the other."""
        return self.named == "basic" or (self.named is None and self.workers == 1)

    @property
    def children(self) -> bool:
        """Whether jobs run in processes of this one's."""
        return self.named == "joblib" or (self.named is None and self.workers > 1)


def launch(folder: Path, jobs: Mapping[str, Mapping[str, Any]], launcher: Launcher) -> dict[str, str]:
    """Runs jobs, and returns for each that failed the reason.

    Args:
        folder: where jobs keep what they say.
        jobs: by name; ``kind`` is probe, train or evaluate, the rest is for it.
        launcher: how they are run.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when all jobs under way have written a checkpoint.
        ConfigError: if Hydra does not understand the launcher's words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STOP).unlink(missing_ok=True)
    for name, job in jobs.items():
        write_json(folder / f"{name}.json", job)
        (folder / f"{name}.state").unlink(missing_ok=True)
    batches = [list(jobs)] if jobs else []
    while batches:
        batch = batches.pop(0)
        with _stoppable(folder / STOP, launcher.here):
            try:
                _hydra_main(folder, batch, launcher)
            except BrokenProcessPool as error:
                print(f"A process ended before its cell did: {str(error).splitlines()[0]}", file=sys.stderr)
                batches += _again(folder, batch)
        if (folder / STOP).exists():
            raise KeyboardInterrupt
    failed = {}
    for name in jobs:
        state, _, said = _read(folder / f"{name}.state").partition("\n")
        if state != DONE:
            failed[name] = said or {
                STOPPED: "it was stopped",
                RUNNING: "its process ended before it did (out of memory?)",
            }.get(state, "it was not begun")
    return failed


def _again(folder: Path, batch: Sequence[str]) -> list[list[str]]:
    """What to launch after a process died, which ends all others: what had not begun; then, one by one, what had."""
    begun = [name for name in batch if (folder / f"{name}.state").exists()]
    cut_off = [name for name in begun if _read(folder / f"{name}.state") == RUNNING]
    rest = [name for name in batch if name not in begun]
    alone = [[name] for name in cut_off] if len(batch) > 1 else []
    return ([rest] if rest and begun else []) + alone


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def _hydra_main(folder: Path, jobs: Sequence[str], launcher: Launcher) -> None:
    """A multirun of Hydra's own main, a job a run, so that any launcher of Hydra's can run them."""
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from trajgen.config.composing import explain

    quiet = [{"override hydra/job_logging": "none"}, {"override hydra/hydra_logging": "none"}]
    place = str(folder.absolute())
    shared: dict[str, Any] = {}
    if launcher.children and launcher.workers > 1:
        shared = {"env_set": {"OMP_NUM_THREADS": str(launcher.threads)}}
    node = {
        "defaults": ["_self_", *quiet],
        "folder": place,
        "parent": os.getpid(),
        "children": launcher.children,
        "jobs": list(jobs),
        "job": 0,
        "hydra": {
            "output_subdir": None,
            "run": {"dir": "."},
            "sweep": {"dir": place, "subdir": "."},
            "job": {"chdir": False, **shared},
        },
    }
    words = list(launcher.words)
    if launcher.children:
        keys = {word.partition("=")[0] for word in words}
        words += [] if launcher.named else ["hydra/launcher=joblib"]
        words += [] if "hydra.launcher.n_jobs" in keys else [f"hydra.launcher.n_jobs={launcher.workers}"]
    store = ConfigStore.instance()
    everything = store.repo
    # Hydra copies the whole store for every job, and sends it to other processes; jobs need no recipes.
    store.repo = {name: kept for name, kept in everything.items() if name == "hydra" or name.startswith("_")}
    store.store(name=ROOT, node=node)
    words += ["job=" + ",".join(map(str, range(len(jobs))))]
    decorated = hydra.main(version_base="1.3", config_path=None, config_name=ROOT)(work)
    before, sys.argv = sys.argv, ["trajgen study", "-m", *words]
    full = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print a short traceback and exit on its own
    try:
        decorated()
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error, words) from error
    finally:
        store.repo = everything
        sys.argv = before
        os.environ.pop("HYDRA_FULL_ERROR") if full is None else os.environ.update(HYDRA_FULL_ERROR=full)


@contextmanager
def _stoppable(stop: Path, here: bool) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks the jobs in other processes to stop, and waits for them; the second does not."""
    if here or threading.current_thread() is not threading.main_thread():
        yield
        return

    def catch(number: int, _: FrameType | None) -> None:
        if stop.exists():
            raise KeyboardInterrupt
        stop.touch()
        print("Stopping after the next checkpoint of each cell …", file=sys.stderr)

    before = {s: signal.signal(s, catch) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def work(composed: Any) -> None:
    """Does one job, in whatever process the launcher chose, and keeps how it ended."""
    folder, name = Path(composed.folder), composed.jobs[composed.job]
    here = os.getpid() == composed.parent
    child = composed.children and not here
    if (folder / STOP).exists() or (child and os.getppid() != composed.parent):
        return
    from rich.console import Console

    from trajgen.engine.loop import Interrupted  # not before: torch takes its threads from the environment

    state = folder / f"{name}.state"
    state.write_text(RUNNING, encoding="utf-8")
    job = read_json(folder / f"{name}.json")
    with (
        (folder / f"{name}.log").open("a", encoding="utf-8") as log,
        _following(composed.parent if child else None, None if here else folder / STOP),
    ):
        try:
            said = KINDS[job["kind"]](job, Console() if here else Console(file=log, width=120))
        except (KeyboardInterrupt, Interrupted):
            state.write_text(STOPPED, encoding="utf-8")
            if here:
                raise KeyboardInterrupt from None
        except Exception as error:  # one cell's failure is not the others'
            traceback.print_exc(file=log)
            reason = str(error) if isinstance(error, TrajgenError) else f"{type(error).__name__}: {error}"
            state.write_text(f"{FAILED}\n{reason}", encoding="utf-8")
            print(f"{name}: failed: {reason}", file=sys.stderr, flush=True)
        else:
            state.write_text(DONE, encoding="utf-8")
            print(f"{name}: {said}", flush=True)


@contextmanager
def _following(parent: int | None, stop: Path | None) -> Iterator[None]:
    """In another process: stops the job when the file ``stop`` asks for it, or its ``parent``, if known, is no more.

    Ctrl-C reaches all processes of a terminal's group, and a second signal would end a training without a checkpoint;
    so a child leaves the group, and gets its one signal from here.
    """
    if stop is None:
        yield
        return
    if parent is not None and os.getpgid(0) != os.getpid():
        os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            if stop.exists() or (parent is not None and os.getppid() != parent):
                os.kill(os.getpid(), signal.SIGINT)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _probe(job: Mapping[str, Any], console: Console) -> str:
    import torch

    from trajgen.config import Config
    from trajgen.experiments import prepare_imports
    from trajgen.experiments.studies.cost import measure

    prepare_imports(tuple(job["config"]["imports"]))
    before = torch.get_num_threads()
    torch.set_num_threads(job["threads"] or before)
    try:
        cost = measure(Config.from_plain(job["config"]), job["steps"], console)
    finally:
        torch.set_num_threads(before)
    write_json(Path(job["out"]), cost.to_plain())
    each = ", ".join(f"{stage} {1000 * seconds:.0f} ms" for stage, seconds in cost.seconds.items())
    return f"a step takes {each}"


def _train(job: Mapping[str, Any], console: Console) -> str:
    from trajgen import experiments
    from trajgen.config import Config

    experiments.prepare_imports(tuple(job["config"]["imports"]))
    experiments.train(Config.from_plain(job["config"]), console, job["command"])
    path = Path(job["config"]["run_dir"]) / "evaluation.json"
    return "trained; " + _scores(read_json(path)) if path.exists() else "trained"


def _evaluate(job: Mapping[str, Any], console: Console) -> str:
    from trajgen import experiments

    figures = experiments.evaluate(
        Path(job["run"]),
        console,
        device=job["device"],
        imports=tuple(job["imports"]),
        overrides=job["overrides"],
        out=Path(job["out"]),
    )
    return _scores(figures)


def _scores(figures: Mapping[str, Any]) -> str:
    ratio = figures.get("ratio_to_controller")
    mean = f"return {figures['return']['mean']:.1f}"
    return mean if ratio is None else f"{mean}, {ratio:.3f} of the controller's"


KINDS = {"probe": _probe, "train": _train, "evaluate": _evaluate}
