"""The tables of ``trajgen bench``, for eyes and as JSON."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from trajgen.bench.timing import Timing
from trajgen.core.errors import ConfigError

TIMES = ("median ms", "p95 ms", "spread ms")


def times(timing: Timing) -> list[str]:
    """The columns of a timing."""
    return [f"{timing.median:.3g}", f"{timing.p95:.3g}", f"{timing.spread:.2g}"]


def show(
    console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], machine: Mapping[str, Any]
) -> None:
    """Prints a table, and what it is of."""
    table = Table(title=title, caption=described(machine))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def described(machine: Mapping[str, Any]) -> str:
    """A machine in a line; a load beside one's own makes timings worthless, and is said."""
    line = f"{machine['device']}, {machine['threads']} of {machine['cores']} threads, torch {machine['torch']}"
    load = machine["load"]
    return line + (f"; load {load:.1f}: other work was running" if load is not None and load > 1.5 else "")


def keep(path: Path | None, command: str, machine: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
    """Writes the figures as JSON into a file that is not there yet; nothing without a path."""
    if path is None:
        return
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    whole = {"command": command, "date": today, "machine": dict(machine), "lines": [dict(line) for line in lines]}
    with path.open("x", encoding="utf-8") as file:
        json.dump(whole, file, indent=2)
        file.write("\n")


def check_out(path: Path | None) -> None:
    """Refuses, before anything is measured, to overwrite a file."""
    if path is not None and path.exists():
        raise ConfigError(
            "Figures are written into a file of their own; nothing is overwritten.",
            expected="a file that is not there yet",
            got=f"out={path}",
            fix="out=… another file, or remove it",
        )
