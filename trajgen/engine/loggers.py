"""Where the figures of a training go: metrics.jsonl, TensorBoard, Weights & Biases, and a progress bar."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from trajgen.core.errors import ConfigError, nearest
from trajgen.core.files import append_json, flush, read_metrics, write_file
from trajgen.engine.storage import Position

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "wandb_offline": "wandb"}
"""For each logger, the package that it needs."""
KEYS = ("stage", "stage_index", "step")
"""Entries of a line of metrics that say what the others are figures of."""


VAL_TOTAL = "val/total"
"""The figure by which the best weights of a stage are chosen."""


class Logger(Protocol):
    """Gets every line that goes to metrics.jsonl: ``stage``, ``step``, and figures by name."""

    def write(self, values: Mapping[str, object]) -> None:
        """Logs a line."""
        ...

    def close(self) -> None:
        """Is called in the end, however the training ended."""
        ...


class MetricsLog:
    """metrics.jsonl of a run folder.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, values: Mapping[str, object], loggers: Sequence[Logger] = ()) -> None:
        """Appends a line, and hands it on to loggers."""
        append_json(self.path, values)
        for logger in loggers:
            logger.write(values)

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

    def best(self, stage_index: int) -> float:
        """The lowest validation loss of a stage so far."""
        rows = [row for row in read_metrics(self.path) if row["stage_index"] == stage_index]
        return min((row[VAL_TOTAL] for row in rows if VAL_TOTAL in row), default=math.inf)


class TensorBoardLogger:
    """Event files in ``tensorboard/`` of the run folder; a figure is named STAGE/NAME, over the steps of its stage.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(log_dir=str(folder / "tensorboard"))
        self.close = self.writer.close

    def write(self, values: Mapping[str, object]) -> None:
        """Adds the figures of one line."""
        for name, value in _figures(values).items():
            self.writer.add_scalar(f"{values['stage']}/{name}", value, values["step"])


class WandbLogger:
    """A run of Weights & Biases, named like the folder; a resumed training goes on with it.

    Args:
        folder: of the run, which gets the files in ``wandb/``.
        config: plain values that are shown with the run.
        offline: whether nothing is sent; ``wandb sync`` sends it later. WANDB_MODE=offline does the same.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], offline: bool = False) -> None:
        import wandb

        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "trajgen"),
            name=folder.name,
            id=sha256(str(folder.absolute()).encode()).hexdigest()[:16],
            resume="allow",
            dir=str(folder),
            config=dict(config),
            mode="offline" if offline else None,
        )
        self.close = self.run.finish
        self.stages: set[object] = set()

    def write(self, values: Mapping[str, object]) -> None:
        """Logs the figures of one line, over the steps of their stage."""
        stage = values["stage"]
        if stage not in self.stages:
            self.stages.add(stage)
            self.run.define_metric(f"{stage}/step", hidden=True)
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        figures = {f"{stage}/{name}": value for name, value in _figures(values).items()}
        self.run.log({f"{stage}/step": values["step"], **figures})


def _figures(values: Mapping[str, object]) -> dict[str, float]:
    """The finite figures of a line."""
    numbers = {k: float(v) for k, v in values.items() if k not in KEYS and type(v) in (int, float)}  # type: ignore[arg-type]
    return {k: v for k, v in numbers.items() if math.isfinite(v)}


def check_loggers(names: Sequence[str]) -> None:
    """Raises a `ConfigError` for a logger that is not known or whose package is missing."""
    for name in names:
        if name not in PACKAGES:
            raise ConfigError(
                f"There is no logger '{name}'.", expected=", ".join(PACKAGES), fix=nearest(name, PACKAGES)
            )
        if find_spec(PACKAGES[name]) is None:
            raise ConfigError(
                f"Logger '{name}' needs the package {PACKAGES[name]}, which is not installed.",
                fix="pip install 'trajgen[log]', or leave it out: metrics.jsonl is always written",
            )


@contextmanager
def open_loggers(names: Sequence[str], folder: Path, config: Mapping[str, Any] | None = None) -> Iterator[list[Logger]]:
    """Opens loggers by name for the time of a training.

    Args:
        names: any of `PACKAGES`.
        folder: of the run.
        config: plain values that a logger may show with the run.

    Raises:
        ConfigError: as `check_loggers`, or if a logger cannot be opened (no account, no network).
    """
    check_loggers(names)
    loggers: list[Logger] = []
    try:
        for name in dict.fromkeys(names):
            try:
                if name == "tensorboard":
                    loggers.append(TensorBoardLogger(folder))
                else:
                    loggers.append(WandbLogger(folder, config or {}, offline=name == "wandb_offline"))
            except Exception as error:  # another service's errors have no common class
                raise ConfigError(
                    f"Logger '{name}' cannot be opened.",
                    got=f"{type(error).__name__}: {str(error)[:200]}",
                    fix="engine.log=[wandb_offline], or leave it out" if name == "wandb" else "leave it out",
                ) from error
        yield loggers
    finally:
        for logger in loggers:
            logger.close()


class StageProgress:
    """A progress bar on a terminal, else ten lines a stage.

    Args:
        console: where it is shown.
        name: of the stage.
        steps: of the stage.
        done: steps before this process.
    """

    def __init__(self, console: Console, name: str, steps: int, done: int) -> None:
        self.console, self.name, self.steps, self.done = console, name, steps, done
        self.bar = Progress(
            TextColumn("[bold]{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task(name, total=steps, completed=done, figures="")

    def __enter__(self) -> StageProgress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def show(self, step: int, figures: Mapping[str, float]) -> None:
        """Moves the bar to ``step`` and shows figures beside it."""
        text = "  ".join(f"{k} {v:.3f}" for k, v in figures.items())
        self.bar.update(self.task, completed=step, figures=text)
        tenth = self.steps / 10
        if not self.console.is_terminal and int(step / tenth) > int(self.done / tenth):
            self.console.print(f"{self.name} {step}/{self.steps}  {text}", highlight=False)
        self.done = step
