"""Where the figures of a training go: metrics.jsonl, TensorBoard, Weights & Biases, and a progress bar."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from trajgen.core.errors import ConfigError, nearest
from trajgen.core.files import append_json, flush, read_json, read_metrics, write_file
from trajgen.core.terminal import progress
from trajgen.engine.storage import Position

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "wandb_offline": "wandb"}
"""For each logger, the package that it needs."""
KEYS = ("stage", "stage_index", "step")
"""Entries of a line of metrics that say what the others are figures of."""
VAL_TOTAL = "val/total"
"""The figure by which the best weights of a stage are chosen."""

Logger = Callable[[str, int, dict[str, float]], None]
"""Logs the finite figures of a stage's step."""


class MetricsLog:
    """The metrics.jsonl of a run folder, whose lines are also passed to loggers.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, line: Mapping[str, Any], loggers: Sequence[Logger] = ()) -> None:
        """Appends a line: ``stage``, ``stage_index``, ``step``, and figures by name."""
        append_json(self.path, line)
        numbers = {k: float(v) for k, v in line.items() if k not in KEYS and math.isfinite(v)}
        for logger in loggers:
            logger(line["stage"], line["step"], numbers)

    def flush(self) -> None:
        """Waits until the lines are on the disk."""
        if self.path.exists():
            flush(self.path)

    def truncate(self, position: Position) -> None:
        """Drops the lines that a training which goes on from a position will write again, and torn ones."""
        if self.path.exists():
            last = (position.stage, position.step)
            rows = [row for row in read_metrics(self.path) if (row["stage_index"], row["step"]) <= last]
            write_file(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def seconds(self, stage_index: int) -> dict[str, float]:
        """The seconds that a stage has taken so far, in all and by part; empty before its first line."""
        rows = read_metrics(self.path) if self.path.exists() else []
        last: Mapping[str, Any] = next((row for row in reversed(rows) if row["stage_index"] == stage_index), {})
        return {key: value for key, value in last.items() if key.partition("/")[0] == "seconds"}

    def best(self, stage_index: int) -> float:
        """The lowest validation loss of a stage so far."""
        rows = [row for row in read_metrics(self.path) if row["stage_index"] == stage_index]
        return min((row[VAL_TOTAL] for row in rows if VAL_TOTAL in row), default=math.inf)


def check_loggers(names: Sequence[str]) -> None:
    """Raises a `ConfigError` for a logger that is not known or whose package is missing."""
    for name in names:
        if name not in PACKAGES:
            raise ConfigError(f"There is no logger '{name}'.", fix=nearest(name, PACKAGES))
        if find_spec(PACKAGES[name]) is None:
            raise ConfigError(
                f"Logger '{name}' needs the package {PACKAGES[name]}, which is not installed.",
                fix="pip install 'trajgen[log]', or leave it out: metrics.jsonl is always written",
            )


@contextmanager
def open_loggers(names: Sequence[str], folder: Path) -> Iterator[list[Logger]]:
    """Opens loggers for the time of a training, and closes them however it ends.

    Args:
        names: any of `PACKAGES`.
        folder: of the run.

    Raises:
        ConfigError: as `check_loggers`, or if a logger cannot be opened (no account, no network).
    """
    check_loggers(names)
    with ExitStack() as stack:
        loggers: list[Logger] = []
        for name in dict.fromkeys(names):
            try:
                if name == "tensorboard":
                    loggers.append(_tensorboard(folder, stack))
                else:
                    loggers.append(_wandb(folder, stack, "offline" if name == "wandb_offline" else None))
            except Exception as error:  # another service's errors have no common class
                raise ConfigError(
                    f"Logger '{name}' cannot be opened.",
                    got=f"{type(error).__name__}: {str(error)[:200]}",
                    fix="engine.log=[wandb_offline], or leave it out" if name == "wandb" else "leave it out",
                ) from error
        yield loggers


def _tensorboard(folder: Path, stack: ExitStack) -> Logger:
    """Event files in ``tensorboard/`` of the run folder; a figure is named STAGE/NAME, over the steps of its stage."""
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(log_dir=str(folder / "tensorboard"))
    stack.callback(writer.close)

    def log(stage: str, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(f"{stage}/{name}", value, step)

    return log


def _wandb(folder: Path, stack: ExitStack, mode: str | None) -> Logger:
    """A run of Weights & Biases with the run's options, and files in ``wandb/`` of the run folder.

    A resumed training goes on with it.
    """
    import wandb

    options = folder / "config.json"
    run: Any = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "trajgen"),
        name=folder.name,
        id=sha256(str(folder.absolute()).encode()).hexdigest()[:16],
        resume="allow",
        dir=str(folder),
        config=read_json(options) if options.exists() else None,
        mode=mode,
    )
    stack.callback(run.finish)
    stages: set[str] = set()

    def log(stage: str, step: int, figures: dict[str, float]) -> None:
        if stage not in stages:
            stages.add(stage)
            run.define_metric(f"{stage}/step", hidden=True)
            run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        run.log({f"{stage}/step": step, **{f"{stage}/{name}": value for name, value in figures.items()}})

    return log


@contextmanager
def stage_progress(
    console: Console, name: str, steps: int, done: int
) -> Iterator[Callable[[int, Mapping[str, float] | None], None]]:
    """Yields a function that shows a step of a stage, and figures where there are some, the total loss first."""
    with progress(console, name, steps, done, pause=0) as show_texts:

        def show(step: int, figures: Mapping[str, float] | None = None) -> None:
            ordered = sorted((figures or {}).items(), key=lambda item: item[0] != "total")
            show_texts(step, [f"{k} {v:.3f}" for k, v in ordered])

        yield show
