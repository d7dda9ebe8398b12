"""Where the time of a training step goes, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trajgen import experiments
from trajgen.bench.request import BenchRequest
from trajgen.bench.timing import Timing
from trajgen.core.sources import Source
from trajgen.core.types import Batch, Stage
from trajgen.engine.device import autocast, prefer_fast_matmul, synchronize
from trajgen.engine.optimization import Optimization
from trajgen.engine.options import EngineOptions
from trajgen.engine.precision import choose_precision
from trajgen.engine.step import seed_step
from trajgen.experiments.starting import stages_of
from trajgen.viz.tables import Table

if TYPE_CHECKING:
    from rich.console import Console

PARTS = ("data", "forward", "backward", "optimizer")
WARM_UP = 5


@dataclass(frozen=True)
class StageTiming:
    """A stage's steps, part by part."""

    name: str
    batch: int
    parts: dict[str, Timing]

    @property
    def step(self) -> float:
        """Milliseconds of a step: the sum of the medians of its parts."""
        return sum(timing.median for timing in self.parts.values())


def run(request: BenchRequest, console: Console) -> None:
    """Times training steps of each stage."""
    config, device = request.load()
    planner, source, _ = experiments.prepare(config, device, console)
    with console.status("timing"):
        timings = list(time_stages(planner, source, config.engine, device, request.options.repeats))
    rows = []
    for stage in timings:
        medians = [stage.parts[part].median for part in PARTS]
        ends = f"{stage.step:.3g}", f"{1e3 * stage.batch / stage.step:,.0f}"
        rows.append([stage.name, str(stage.batch), *(f"{median:.3g}" for median in medians), *ends])
    table = Table(["stage", "batch", *PARTS, "step", "windows/s"], rows)
    figures: list[Mapping[str, Any]] = [
        {"name": stage.name, "batch": stage.batch, "part": part, **stage.parts[part].to_dict()}
        for stage in timings
        for part in PARTS
    ]
    title = f"{config.recipe} on {config.data.id}: a training step, median ms"
    request.report(console, title, table, figures, device)


def time_stages(
    planner: Any, source: Source, options: EngineOptions, device: torch.device, steps: int
) -> Iterator[StageTiming]:
    """Times steps of each stage as the engine takes them, with a wait after each part; this trains the planner."""
    prefer_fast_matmul(device)
    stages = stages_of(planner, ())
    for stage, settings in zip(stages, options.of(stages), strict=True):
        if not stage.parameters:
            continue
        stage.begin(planner)
        optimization = Optimization(planner, stage, settings, steps + WARM_UP)
        draw = partial(source.batch, 0, settings.batch_size)
        precision = choose_precision(stage, draw, planner, device, options.precision)
        times = []
        for step in range(steps + WARM_UP):
            optimization.optimizer.zero_grad()
            batch, data = _timed(device, source.batch, step, settings.batch_size)
            loss, forward = _timed(device, _loss, stage, batch, step, precision)
            _, backward = _timed(device, loss.backward)
            optimization.schedule(step)
            _, optimizer = _timed(device, optimization.update)
            times.append((data, forward, backward, optimizer))
        parts = {part: Timing(values) for part, values in zip(PARTS, zip(*times[WARM_UP:], strict=True), strict=True)}
        yield StageTiming(stage.name, settings.batch_size, parts)


def _loss(stage: Stage, batch: Batch, step: int, precision: str) -> Tensor:
    seed_step(0, step)
    with autocast(batch.states.device, precision):
        return stage.loss(batch)["total"]


def _timed(device: torch.device, call: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """What a call returns, and its milliseconds."""
    synchronize(device)
    start = time.perf_counter()
    result = call(*args)
    synchronize(device)
    return result, 1e3 * (time.perf_counter() - start)
