"""What ``trajgen bench`` measures, and how it is shown and written."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajgen.core.errors import ConfigError, nearest
from trajgen.core.files import write_json

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from trajgen.config import Config
    from trajgen.export.backends import Backend
    from trajgen.viz.tables import Table

KINDS = ("decision", "train", "data")


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """The options of a bench.

    Args:
        overrides: words of ``trajgen train``.
        run: a trained run whose decisions are timed, instead of a recipe's.
        batch: sizes that are timed.
        backends: that plan; None for all that this machine has.
        repeats: steps or calls that are timed.
        threads: of the CPU; None for as many as torch takes.
        out: a file for the figures.
        against: "dt" to time a Decision Transformer of the same size too.
        command: as it was given.
    """

    overrides: Sequence[str] = ()
    run: str | None = None
    batch: tuple[int, ...] = (1, 64)
    backends: tuple[Backend, ...] | None = None
    repeats: int = 200
    threads: int | None = None
    out: Path | None = None
    against: str | None = None
    command: str = ""

    def __post_init__(self) -> None:
        threads = 1 if self.threads is None else self.threads
        counts = {"repeats": self.repeats, "threads": threads, "batch": min(self.batch, default=0)}
        for name, count in counts.items():
            if count < 1:
                raise ConfigError(f"'{name}' must be at least 1.", got=f"{name}={count}", fix=f"{name}=1")
        if self.against not in (None, "dt"):
            raise ConfigError(f"There is no model '{self.against}' to measure against.", fix="--against dt")
        if self.run is not None and self.overrides:
            raise ConfigError("A run is measured as it was trained.", fix=f"leave out {' '.join(self.overrides)}")
        if self.out is not None and self.out.exists():
            raise ConfigError(f"{self.out} exists, and nothing is overwritten.", fix="out=ANOTHER, or remove it first")

    def load(self) -> tuple[Config, torch.device]:
        """The configuration of the overrides, and its device."""
        from trajgen import experiments
        from trajgen.config import compose
        from trajgen.engine.device import choose_device

        config = compose(list(self.overrides))
        experiments.prepare_imports(config.imports)
        return config, choose_device(config.device)

    def report(
        self, console: Console, title: str, table: Table, figures: list[Mapping[str, Any]], device: torch.device
    ) -> None:
        """Prints a table with the machine below it, and writes the figures as JSON if a file is named."""
        from trajgen.bench.timing import machine

        host = machine(device)
        caption = f"{host['device']}, {host['threads']} of {host['cores']} threads, torch {host['torch']}"
        if host["load"] > 1.5:  # such timings are worth nothing
            caption += f"; load {host['load']:.1f}: other work was running"
        console.print(table.rich(title, caption))
        if self.out is not None:
            date = datetime.datetime.now(datetime.UTC).date().isoformat()
            write_json(self.out, {"command": self.command, "date": date, "machine": host, "lines": figures})


def bench(kind: str, request: BenchRequest, console: Console) -> None:
    """Measures decisions, training ("train") or data, and prints the timings."""
    if kind not in KINDS:
        raise ConfigError(f"There is no bench '{kind}'.", fix=nearest(kind, KINDS))
    import torch

    if request.threads is not None:
        torch.set_num_threads(request.threads)
    import_module(f"trajgen.bench.{kind}").run(request, console)
