"""``trajgen bench``: how fast decisions, training and data are on this machine."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from trajgen.cli.app import Words, app, command, group
from trajgen.cli.overrides import COMPOSITION, read


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of every bench; the other words are those of ``trajgen train``."""

    repeats: int = 200
    """Steps or calls that are timed."""
    threads: int | None = None
    """Threads of the CPU; by default those of torch."""
    out: Path | None = None
    """FILE.json for the figures, the machine and the date."""


@dataclass(frozen=True, kw_only=True)
class DataBenchOptions(BenchOptions):
    """Options of ``trajgen bench data``."""

    batch: tuple[int, ...] = (1, 64)
    """Batch sizes that are timed."""


@dataclass(frozen=True, kw_only=True)
class DecisionBenchOptions(DataBenchOptions):
    """Options of ``trajgen bench decision``."""

    run: Path | None = None
    """Trained run, in place of recipe=NAME."""
    backends: tuple[Literal["eager", "onnx", "cuda_graph"], ...] | None = None
    """Backends; by default those that this machine has."""


bench = group("Time decisions, training steps and data on this machine.")
app.add_typer(bench, name="bench")


@command("bench decision", DecisionBenchOptions, "bench decision --against dt", groups=COMPOSITION, to=bench)
def decision(
    words: Words,
    against: Annotated[
        Literal["dt"] | None,
        typer.Option("--against", help="Time transformers' DecisionTransformerModel of the same size too."),
    ] = None,
) -> None:
    """Time one plan and its action, by each backend."""
    _run("decision", words, DecisionBenchOptions, *(["--against", against] if against else []), against=against)


@command("bench train", BenchOptions, "bench train recipe=mage", groups=COMPOSITION, to=bench)
def train(words: Words) -> None:
    """Time the parts of a training step, stage by stage."""
    _run("train", words, BenchOptions)


@command("bench data", DataBenchOptions, "bench data data=pointmaze/umaze-dwell", groups=COMPOSITION, to=bench)
def data(words: Words) -> None:
    """Time how a data set is loaded and batches are made."""
    _run("data", words, DataBenchOptions)


def _run(kind: str, words: list[str], cls: Any, *flags: str, **values: Any) -> None:
    options, overrides = read(words, cls)
    from trajgen.bench.request import BenchRequest
    from trajgen.bench.request import bench as run
    from trajgen.core.terminal import Terminal

    line = shlex.join(["trajgen", "bench", kind, *words, *flags])
    run(kind, BenchRequest(overrides=overrides, command=line, **vars(options), **values), Terminal())
