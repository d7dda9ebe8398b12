"""``trajgen train -m``: the job of Hydra's multirun, and the table of its runs.

Hydra's sweeper and launcher decide which jobs run, where, and how many at a time. Each has a run folder of its own in
the folder of the sweep, and beside it a record with its overrides and its error, for whatever process made it. A job
whose folder holds another run leaves the record of that run as it is.
"""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode

from trajgen.config import config_dir_word, from_hydra, hydra_application, task_line
from trajgen.core.errors import ConfigError, TrajgenError
from trajgen.core.files import read_json, write_file, write_json
from trajgen.core.tables import Table, interval, number, percent, return_digits
from trajgen.experiments.results import score
from trajgen.experiments.run_folder import find_folder, read_evaluation

FAILED = float("nan")
REFUSED = ".refused"
"""What is beside the record of a folder that a job was not let into, until the table is printed."""
UNITS = ("ratio", "return", "action error")
"""What runs are compared by: the first of these that they have."""


def main() -> None:
    """Runs the command line of this process, and ends with exit code 1 for an error, 130 for an interruption."""
    try:
        hydra_application(job)
    except TrajgenError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("Interrupted. The same command with run_dir=SWEEP and resume=true goes on.", file=sys.stderr)
        raise SystemExit(130) from None


def job(composed: Any) -> float:
    """Trains one configuration, and returns its score, or NaN if it failed: the other jobs run all the same.

    Raises:
        KeyboardInterrupt: if it is interrupted; its checkpoint is written.
    """
    from trajgen import experiments
    from trajgen.core.terminal import Terminal
    from trajgen.engine.loop import StoppedError

    hydra = HydraConfig.get()
    overrides = list(hydra.overrides.task)
    folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    words = [*map(config_dir_word, map(Path, folders)), *overrides]
    folder = Path(hydra.runtime.output_dir)
    record, error = folder.parent / f"{folder.name}.json", None
    is_of_another = record.exists()
    try:
        config = from_hydra(composed, words)
        if hydra.mode is RunMode.MULTIRUN:
            config = replace(config, run_dir=str(folder))
            find_folder(config)
            is_of_another = False
            if line := task_line(words):
                print(line)
        return score(experiments.train(config, Terminal(), shlex.join(["trajgen", "train", *words])))
    except StoppedError as stopped:
        error = "interrupted"
        raise KeyboardInterrupt(str(stopped)) from None
    except Exception as failure:  # of one job among many: it is shown, and the others go on
        if hydra.mode is not RunMode.MULTIRUN:
            raise
        error = str(failure) if isinstance(failure, TrajgenError) else traceback.format_exc()
        print(f"{folder} failed: {error}", file=sys.stderr)
        return FAILED
    finally:
        if hydra.mode is RunMode.MULTIRUN:
            path = record.with_suffix(REFUSED) if is_of_another else record
            options = [word for word in overrides if not word.startswith("resume=")]
            write_json(path, {"overrides": options, "error": error})


class RunTable(Callback):
    """Refuses the folder of another sweep, shows what came of each run, and ends with exit code 1 if one failed.

    What else a callback raises, Hydra turns into a warning.
    """

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        _clear_refusals(folder)  # by a sweep that was killed
        if not config.resume and (names := sorted(path.name for path in _records(folder))):
            error = ConfigError(
                "A sweep's folder is new, or that of the sweep to resume.",
                got=f"{folder} holds {', '.join(names[:4])}",
                fix="run_dir=ANOTHER, or resume=true and the options of that sweep to go on with it",
            )
            print(f"Error: {error}", file=sys.stderr)
            raise SystemExit(1)

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        from trajgen.core.terminal import Terminal

        folder = Path(config.hydra.sweep.dir)
        failed = print_runs(folder, Terminal())
        if names := _clear_refusals(folder):
            text = "of these trainings were refused; the table has the runs that their folders hold."
            print(f"Error: {', '.join(names)} {text}", file=sys.stderr)
        if failed:
            print(
                f"Error: {', '.join(failed)} of these trainings failed; the others are kept. "
                f"The same command with run_dir={folder} resume=true goes on with all of them.",
                file=sys.stderr,
            )
        if failed or names:
            raise SystemExit(1)


def _records(folder: Path) -> list[Path]:
    """The records of a sweep's jobs."""
    return [path for path in folder.rglob("*.json") if path.with_suffix("").is_dir()]


def _clear_refusals(folder: Path) -> list[str]:
    """The names of the jobs that were refused, of which the folder says nothing any more."""
    paths = sorted(folder.rglob(f"*{REFUSED}"))
    for path in paths:
        path.unlink()
    return [str(path.relative_to(folder).with_suffix("")) for path in paths]


def print_runs(folder: Path, console: Any) -> list[str]:
    """Prints the tables of a sweep's runs and of their means over seeds, and returns the names of those that failed.

    Both are written beside the runs, as table.md, runs.csv and means.csv.
    """
    names = {path: str(path.relative_to(folder).with_suffix("")) for path in _records(folder)}
    jobs = {name: read_json(path) for path, name in names.items()}
    jobs = dict(sorted(jobs.items(), key=lambda item: (len(item[0]), item[0])))
    common = set.intersection(*(set(job["overrides"]) for job in jobs.values())) if len(jobs) > 1 else set()
    runs: list[tuple[str, ...]] = []
    groups: dict[str, list[dict[str, float | None]]] = {}
    evaluations = {
        name: {} if job["error"] else read_evaluation(folder / name / "evaluation.json") for name, job in jobs.items()
    }
    digits = return_digits((figures.get("return") or {}).get("mean") for figures in evaluations.values())
    for name, job in jobs.items():
        figures = evaluations[name]
        words = [word for word in job["overrides"] if word not in common]
        scores = {"ratio": figures.get("ratio_to_controller"), "success": figures.get("success")}
        scores |= {key: (figures.get(key.replace(" ", "_")) or {}).get("mean") for key in ("return", "action error")}
        failed = "failed" if job["error"] else ""
        cells = (number(scores["ratio"], 3), interval(figures.get("ratio_to_controller_ci95"), 3))
        means = (number(scores["return"], digits), number(scores["action error"], 3))
        runs.append((name, " ".join(words), *cells, *means, failed or percent(scores["success"])))
        groups.setdefault(" ".join(w for w in words if not w.startswith("seed=")), []).append(scores)
    table = Table(("run", "overrides", "ratio", "95 % interval", "return", "action error", "success"), runs)
    tables = {"runs": table} | ({"means": _means(groups, digits)} if len(groups) < len(jobs) else {})
    titles = {"runs": str(folder), "means": "Means over seeds, and the lowest and highest of them"}
    for what, each in tables.items():
        console.print(each.filled().rich(titles[what], edges=False))
        write_file(folder / f"{what}.csv", each.csv())
    write_file(
        folder / "table.md", "\n\n".join(f"{titles[k]}:\n\n{t.filled().markdown()}" for k, t in tables.items()) + "\n"
    )
    return [name for name, job in jobs.items() if job["error"]]


def _means(groups: Mapping[str, Sequence[Mapping[str, float | None]]], digits: int) -> Table:
    """The means of runs with the same overrides but their seeds; ``digits`` are those of returns."""
    rows = []
    for words, runs in groups.items():
        by_name = {name: [v for run in runs if (v := run[name]) is not None] for name in runs[0]}
        means = {name: fmean(values) if values else None for name, values in by_name.items()}
        unit = next((name for name in UNITS if by_name[name]), "return")
        ends = [min(by_name[unit]), max(by_name[unit])] if len(by_name[unit]) > 1 else None
        spread = interval(ends, digits if unit == "return" else 3)
        errors = number(means["action error"], 3)
        figures = (number(means["ratio"], 3), spread, number(means["return"], digits), errors)
        rows.append((words or "all", f"{len(by_name[unit])} of {len(runs)}", *figures, percent(means["success"])))
    heads = ("overrides", "seeds", "ratio", "lowest, highest", "return", "action error", "success")
    return Table(heads, rows)
