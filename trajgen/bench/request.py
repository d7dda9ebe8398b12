"""What ``trajgen bench`` measures, and how it is shown and written."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trajgen.core.checks import check_range
from trajgen.core.errors import ConfigError
from trajgen.core.files import write_json

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from trajgen.config import Config
    from trajgen.core.tables import Table


Kind = Literal["decision", "train", "data"]
"""What is timed: a module of this room."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of every bench; the other words are those of ``trajgen train``."""

    repeats: int = 200
    """Steps or calls that are timed."""
    threads: int | None = None
    """Threads of the CPU; by default those of torch."""
    out: Path | None = None
    """FILE.json for the figures, the machine and the date."""

    def __post_init__(self) -> None:
        check_range("repeats", self.repeats, 1, usual=1)
        check_range("threads", self.threads, 1, usual=1)
        if self.out is not None and self.out.exists():
            raise ConfigError(f"{self.out} exists, and nothing is overwritten.", fix="out=ANOTHER, or remove it first")


@dataclass(frozen=True, kw_only=True)
class DataBenchOptions(BenchOptions):
    """Options of ``trajgen bench data``."""

    batch: tuple[int, ...] = (1, 64)
    """Batch sizes that are timed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("batch", min(self.batch, default=0), 1, usual=1)


@dataclass(frozen=True, kw_only=True)
class DecisionBenchOptions(DataBenchOptions):
    """Options of ``trajgen bench decision``."""

    run: Path | None = None
    """Trained run, in place of recipe=NAME."""
    backends: tuple[Literal["eager", "onnx", "cuda_graph"], ...] | None = None
    """Backends; by default those that this machine has."""


@dataclass(frozen=True)
class BenchRequest:
    """A bench, its options, the words of ``trajgen train`` among them, and the command as it was given."""

    options: Any  # of the bench
    overrides: Sequence[str] = ()
    command: str = ""
    against: Literal["dt"] | None = None
    """dt for the time of a Decision Transformer of the same size too."""
    device: str = "auto"
    """Of a run; that of a recipe is among the overrides."""
    imports: tuple[str, ...] = ()
    """Modules that register own components, of a run."""

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
        console.print(table.rich(title, caption, edges=False))
        if self.options.out is not None:
            date = datetime.datetime.now(datetime.UTC).date().isoformat()
            write_json(self.options.out, {"command": self.command, "date": date, "machine": host, "lines": figures})


def bench(kind: Kind, request: BenchRequest, console: Console) -> None:
    """Measures decisions, training or data, and prints the timings."""
    import torch

    if request.options.threads is not None:
        torch.set_num_threads(request.options.threads)
    import_module(f"trajgen.bench.{kind}").run(request, console)
