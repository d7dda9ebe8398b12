"""One training step, operation by operation: its batch and seeds, losses, gradients and update, and what they take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trajgen.core.sources import Source
from trajgen.core.stages import Stage
from trajgen.engine.distributed import all_reduce_sum, rank, world_size
from trajgen.engine.optimization import Optimization

SEED_RANGE = 2**63
INDEX_STRIDE = 3_266_489_917
"""Distance of the seeds of two micro-batches; 256 of them have no seed in common in 10^7 steps."""
PARTS = ("data", "forward", "backward", "optimizer", "logging")
"""Parts of a step that are timed; logging includes validation and checkpoints."""


@dataclass
class TrainingStep:
    """Takes the steps of a stage.

    Args:
        stage: whose losses are minimized.
        optimization: of the stage.
        source: of the batches.
        batch_size: of the stage, for all processes and micro-batches together.
        seed: of the random numbers.
        autocast: the context of the losses.
        accumulate: micro-batches of each process whose gradients are added up.
    """

    stage: Stage
    optimization: Optimization
    source: Source
    batch_size: int
    seed: int
    autocast: AbstractContextManager[object]
    accumulate: int = 1

    def __post_init__(self) -> None:
        self.world_size, self.rank = world_size(), rank()

    def __call__(self, number: int, step: int, timer: Timer) -> dict[str, Tensor]:
        """Takes step ``step`` of the stage, step ``number`` of all; returns losses and the norm of the gradient."""
        with timer.part("data"):
            batch = self.source.batch(number, self.batch_size)
        values: dict[str, Tensor] = {}
        count = self.world_size * self.accumulate
        self.optimization.optimizer.zero_grad()
        for index in range(self.rank, count, self.world_size):
            seed_step(self.seed, number, index)
            with timer.part("forward"), self.autocast:
                losses = self.stage.loss(batch if count == 1 else split(batch, index, count))
            with timer.part("backward"):
                (losses["total"] / count).backward()
            values = {k: v.detach() + values[k] if values else v.detach() for k, v in losses.items()}
        if self.accumulate > 1:
            values = {k: v / self.accumulate for k, v in values.items()}
        with timer.part("optimizer"):
            if self.world_size > 1:
                all_reduce_sum(self.optimization.gradients())
            if self.stage.after_step is not None:
                seed_step(self.seed, number)  # whatever it draws is the same on all processes
            self.optimization.schedule(step)
            return {**values, "gradient_norm": self.optimization.update()}


def seed_step(seed: int, step: int, index: int = 0) -> None:
    """Makes all random numbers of a micro-batch a function of seed, step and its index, so that no state is saved."""
    number = (seed * 1_000_003 + step * 7_919 + 12_345 + index * INDEX_STRIDE) % SEED_RANGE
    torch.default_generator.manual_seed(number)  # torch.manual_seed takes 0.7 ms where CUDA is not initialized
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)


class Timer:
    """Sums up the seconds of the parts of steps without waiting for the device.

    On CUDA the host runs ahead, so parts are marked by events in the device's queue, and read when a line is logged,
    where the losses are waited for anyway. Logging is measured on the host's clock.

    Args:
        device: that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._cuda = device.type == "cuda"
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts what is done within it as ``name``, one of `PARTS`."""
        if self._cuda and name != "logging":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._events.append((name, begin, end))
        else:
            start = time.perf_counter()
            yield
            self.seconds[name] += time.perf_counter() - start

    def parts(self) -> dict[str, float]:
        """Seconds so far by part."""
        for name, begin, end in self._events:
            end.synchronize()
            self.seconds[name] += begin.elapsed_time(end) / 1e3
        self._events.clear()
        return self.seconds

    def read(self) -> dict[str, float]:
        """Seconds so far, as ``seconds/PART``."""
        return {f"seconds/{name}": value for name, value in self.parts().items()}


def split(batch: Any, index: int, count: int) -> Any:
    """Micro-batch ``index`` of ``count`` of a batch: every ``count``-th window from ``index`` on.

    So the first m windows of a batch are the first m / count of each micro-batch.
    """
    return replace(batch.map(lambda values: values[index::count]), full_batch=batch)
