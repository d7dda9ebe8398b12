"""What ``trajgen bench`` measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajgen.core.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from trajgen.config import Config
    from trajgen.export.backends import Backend

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
        for name, least in (
            ("repeats", self.repeats),
            ("threads", 1 if self.threads is None else self.threads),
            ("batch", min(self.batch, default=0)),
        ):
            if least < 1:
                raise ConfigError(f"'{name}' must be at least 1.", got=f"{name}={least}", fix=f"{name}=1")
        if self.against not in (None, "dt"):
            raise ConfigError(
                "Decisions are timed against one other model.", got=f"--against {self.against}", fix="--against dt"
            )
        if self.run is not None and self.overrides:
            raise ConfigError(
                "A run is measured as it was trained.",
                got=" ".join(self.overrides),
                fix="leave out run=…, or the options",
            )


def bench(kind: str, request: BenchRequest, console: Any = None) -> None:
    """Measures decisions, training or data, and prints the timings.

    Raises:
        ConfigError: for another kind, or if the file for the figures exists.
    """
    import torch
    from rich.console import Console

    from trajgen.bench.timing import check_out
    from trajgen.core.errors import nearest

    if kind not in KINDS:
        raise ConfigError(f"There is no bench '{kind}'.", expected=", ".join(KINDS), fix=nearest(kind, KINDS))
    check_out(request.out)
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    console = console or Console()
    if kind == "decision":
        from trajgen.bench.decision import bench_decision as run
    elif kind == "train":
        from trajgen.bench.training import bench_training as run
    else:
        from trajgen.bench.data import bench_data as run
    run(request, console)


def load(request: BenchRequest) -> tuple[Config, torch.device]:
    """The configuration of the request's words, and its device."""
    from trajgen import experiments
    from trajgen.config import compose
    from trajgen.engine.runtime import choose_device

    config = compose(list(request.overrides))
    experiments.prepare_imports(config.imports)
    return config, choose_device(config.device)
