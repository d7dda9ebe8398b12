"""Where the time of a training step goes, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from trajgen.bench.timing import Timing, synchronize
from trajgen.core.protocols import Source
from trajgen.core.types import Stage
from trajgen.engine.optimization import Optimization
from trajgen.engine.options import EngineOptions
from trajgen.engine.runtime import autocast, prefer_fast_matmul, seed_step

PARTS = ("data", "forward", "backward", "optimizer")
WARM_UP = 5


@dataclass(frozen=True)
class StageTiming:
    """A stage's steps: each part of them, and windows per second of the median step."""

    name: str
    batch: int
    parts: dict[str, Timing]

    @property
    def step(self) -> float:
        """Milliseconds of a step: the medians of its parts."""
        return sum(timing.median for timing in self.parts.values())

    @property
    def windows_per_second(self) -> float:
        return 1e3 * self.batch / self.step

    def share(self, part: str) -> float:
        """Of the step."""
        return self.parts[part].median / self.step


def stages_timed(
    planner: Any, source: Source, options: EngineOptions, device: torch.device, steps: int
) -> Iterator[StageTiming]:
    """Times steps of each stage, as the engine takes them, with a wait after each part; trains the planner by that.

    Args:
        planner: on its device.
        source: of batches.
        options: of the engine.
        device: of both.
        steps: of each stage.
    """
    prefer_fast_matmul(device)
    stages = planner.stages()
    for stage, settings in zip(stages, options.of(stages), strict=True):
        if not stage.parameters:
            continue
        stage.begin(planner)
        optimization = Optimization(planner, stage, settings, steps + WARM_UP)
        values: dict[str, list[float]] = {part: [] for part in PARTS}
        for number in range(steps + WARM_UP):
            for part, milliseconds in _step(stage, source, optimization, options, settings.batch_size, number, device):
                if number >= WARM_UP:
                    values[part].append(milliseconds)
        yield StageTiming(stage.name, settings.batch_size, {k: Timing(tuple(v)) for k, v in values.items()})


def _step(
    stage: Stage,
    source: Source,
    optimization: Optimization,
    options: EngineOptions,
    size: int,
    number: int,
    device: torch.device,
) -> Iterator[tuple[str, float]]:
    def timed(call: Callable[[], Any]) -> tuple[Any, float]:
        start = time.perf_counter()
        result = call()
        synchronize(device)
        return result, 1e3 * (time.perf_counter() - start)

    def forward() -> Any:
        seed_step(0, number)
        with autocast(device, options.precision):
            return stage.loss(batch)["total"]

    optimization.forget()
    synchronize(device)
    batch, spent = timed(lambda: source.batch(number, size))
    yield "data", spent
    loss, spent = timed(forward)
    yield "forward", spent
    _, spent = timed(loss.backward)
    yield "backward", spent

    def step() -> None:
        optimization.follow(number)
        if stage.after_step is not None:
            stage.after_step()

    _, spent = timed(step)
    yield "optimizer", spent
