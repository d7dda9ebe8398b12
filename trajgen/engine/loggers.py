"""Where the lines of a training go besides metrics.jsonl: TensorBoard and Weights & Biases, by one option."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

from trajgen.core.errors import ConfigError, nearest

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "wandb_offline": "wandb"}
"""For each logger, the package that it needs."""
ASIDE = ("stage", "stage_index", "step")
"""Entries of a line that say what the others are figures of."""


class Logger(Protocol):
    """Is told every line that goes to metrics.jsonl: ``stage``, ``step``, and figures by name."""

    def write(self, values: Mapping[str, object]) -> None:
        """Is told a line."""
        ...

    def close(self) -> None:
        """Is told that no more follow, however the training ended."""
        ...


class TensorBoardLog:
    """Event files in ``tensorboard/`` of the run folder; a figure is called STAGE/NAME, over the steps of its stage.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(log_dir=str(folder / "tensorboard"))

    def write(self, values: Mapping[str, object]) -> None:
        """Adds the figures of one line."""
        stage, step, figures = _parts(values)
        for name, value in figures.items():
            self.writer.add_scalar(f"{stage}/{name}", value, step)

    def close(self) -> None:
        """Writes what is still held back."""
        self.writer.close()


class WandbLog:
    """A run of Weights & Biases, named like the folder; a resumed training goes on with it.

    Args:
        folder: of the run, which gets the files in ``wandb/``.
        config: plain values to be shown with the run.
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
        self.stages: set[str] = set()

    def write(self, values: Mapping[str, object]) -> None:
        """Logs the figures of one line, over the steps of their stage."""
        stage, step, figures = _parts(values)
        if stage not in self.stages:
            self.stages.add(stage)
            self.run.define_metric(f"{stage}/step", hidden=True)
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self.run.log({f"{stage}/step": step, **{f"{stage}/{name}": value for name, value in figures.items()}})

    def close(self) -> None:
        """Ends the run."""
        self.run.finish()


def _parts(values: Mapping[str, object]) -> tuple[str, int, dict[str, float]]:
    """A line's stage, step and finite figures."""
    figures = {}
    for name, value in values.items():
        if name not in ASIDE and (type(value) is int or type(value) is float) and isfinite(value):
            figures[name] = float(value)
    return str(values["stage"]), int(str(values["step"])), figures


def check_loggers(names: Sequence[str]) -> None:
    """Refuses loggers that are not known or whose package is missing, before anything is trained.

    Raises:
        ConfigError: with what to install.
    """
    for name in names:
        if name not in PACKAGES:
            raise ConfigError(
                f"There is no logger '{name}'.",
                expected=", ".join(PACKAGES),
                got=f"engine.log={list(names)}",
                fix=f"{nearest(name, PACKAGES)} metrics.jsonl is always written.",
            )
        if find_spec(PACKAGES[name]) is None:
            raise ConfigError(
                f"Logger '{name}' needs the package {PACKAGES[name]}.",
                expected=f"{PACKAGES[name]} installed",
                got=f"engine.log={list(names)}, and no such package",
                fix="pip install 'trajgen[log]', or leave it out: metrics.jsonl is always written",
            )


@contextmanager
def opened(names: Sequence[str], folder: Path, config: Mapping[str, Any] | None = None) -> Iterator[list[Logger]]:
    """Opens loggers by name for the time of a training, and closes them however it ends.

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
                loggers.append(_open(name, folder, config or {}))
            except Exception as error:  # another service's errors have no common kind
                raise ConfigError(
                    f"Logger '{name}' cannot be opened.",
                    expected=f"{PACKAGES[name]} ready to write for {folder}",
                    got=f"{type(error).__name__}: {str(error)[:200]}",
                    fix="engine.log=[wandb_offline], or leave it out" if name == "wandb" else "leave it out",
                ) from error
        yield loggers
    finally:
        for logger in loggers:
            logger.close()


def _open(name: str, folder: Path, config: Mapping[str, Any]) -> Logger:
    if name == "tensorboard":
        return TensorBoardLog(folder)
    return WandbLog(folder, config, offline=name == "wandb_offline")
