"""Metrics on the disk, and a progress bar for the person who waits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from trajgen.engine.storage import Position, write_whole


class MetricsLog:
    """Appends one JSON object a line to ``metrics.jsonl``.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, values: Mapping[str, object]) -> None:
        """Appends one line."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(dict(values)) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics that are whole."""
    return [values for _, values in _whole_lines(path)]


def forget_after(metrics: Path, position: Position) -> None:
    """Drops the lines of metrics that a training which goes on from a position will write again, and torn ones."""
    if not metrics.exists():
        return
    last = (position.stage, position.step)
    kept = [text for text, values in _whole_lines(metrics) if (values["stage_index"], values["step"]) <= last]
    write_whole(metrics, "".join(kept).encode())


def _whole_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            values = json.loads(line)
            if min(values["stage_index"], values["step"]) >= 0:
                yield line + "\n", values
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # a power cut tore it


class StageProgress:
    """A rich bar with the time left where there is a terminal; ten plain lines a stage where there is none."""

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
        """Moves the bar to ``step`` and shows a few figures beside it."""
        text = "  ".join(f"{k} {v:.3f}" for k, v in figures.items())
        self.bar.update(self.task, completed=step, figures=text)
        tenth = self.steps / 10
        if not self.console.is_terminal and int(step / tenth) > int(self.done / tenth):
            self.console.print(f"{self.name} {step}/{self.steps}  {text}", markup=False, highlight=False)
        self.done = step
