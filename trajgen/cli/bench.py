"""``trajgen bench``: how fast decisions, training and data are on this machine."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Annotated, Any, Literal

import typer

from trajgen.bench.request import BenchOptions, BenchRequest, DataBenchOptions, DecisionBenchOptions, Kind
from trajgen.bench.request import bench as run
from trajgen.cli.app import Words, app, command, group
from trajgen.cli.evaluate import RunOptions, existing
from trajgen.cli.overrides import COMPOSITION, read
from trajgen.core.errors import ConfigError

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


def _run(
    kind: Kind,
    words: list[str],
    cls: Any,
    *flags: str,
    against: Literal["dt"] | None = None,
) -> None:
    options, overrides = read(words, cls)
    line = shlex.join(["trajgen", "bench", kind, *words, *flags])
    request = BenchRequest(options, overrides, line, against)
    if getattr(options, "run", None) is not None:
        request = _of_run(request)
    from trajgen.core.terminal import Terminal

    run(kind, request, Terminal())


def _of_run(request: BenchRequest) -> BenchRequest:
    """The request with the device and the modules of a run, of which nothing else is replaced."""
    from trajgen.experiments.zoo import local_folder

    folder: Any = request.options.run
    options, overrides = read([f"run={folder}", *request.overrides], RunOptions)
    if overrides:
        raise ConfigError("A run is measured as it was trained.", fix=f"leave out {' '.join(overrides)}")
    existing(local_folder(folder))
    return replace(request, overrides=(), device=options.device, imports=options.imports)
