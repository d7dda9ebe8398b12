"""The training loop: for each stage, for each batch, optimise ``losses["total"]``, log, keep checkpoints."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console
from torch import Tensor, nn

from trajgen.core.errors import TrainingError
from trajgen.core.protocols import Source
from trajgen.core.types import Stage
from trajgen.engine.checkpoint import Checkpoints, Position, load_state, load_weights, part, read_tensors
from trajgen.engine.metrics import MetricsLog, StageProgress
from trajgen.engine.optimisation import Optimisation
from trajgen.engine.options import EngineOptions, StageOptions
from trajgen.engine.runtime import autocast, prefer_fast_matmul, seed_step


class Interrupted(Exception):  # noqa: N818 - like KeyboardInterrupt, no error
    """Ctrl-C or SIGTERM came; the checkpoint named is whole."""


@dataclass
class StageReport:
    """What became of a stage: its length, its cost, and its last figures."""

    name: str
    steps: int
    seconds: float
    windows_per_second: float
    figures: dict[str, float] = field(default_factory=dict)


@dataclass
class Training:
    """Trains a model in place, stage by stage, and leaves checkpoints and metrics in a folder.

    Args:
        model: whose weights the checkpoints hold; the stages train parts of it.
        stages: in order.
        source: gives the batch of a step.
        options: see `EngineOptions`.
        folder: of the run.
        seed: of the batches and of every random number drawn while training.
        device: of the model and the source.
        console: where progress is shown.
    """

    model: nn.Module
    stages: list[Stage]
    source: Source
    options: EngineOptions
    folder: Path
    seed: int
    device: torch.device
    console: Console

    def __post_init__(self) -> None:
        self.checkpoints = Checkpoints(self.folder / "checkpoints")
        self.metrics = MetricsLog(self.folder / "metrics.jsonl")
        self.settings = self.options.of(self.stages)

    def run(self, *, resume: bool = False) -> list[StageReport]:
        """Trains all stages, or goes on from the last checkpoint; returns a report of those trained now.

        Raises:
            TrainingError: if a loss or a gradient is not finite; the last good checkpoint stays.
            Interrupted: after Ctrl-C or SIGTERM, when a checkpoint has been written.
        """
        prefer_fast_matmul(self.device)
        start = Position()
        tensors: dict[str, Tensor] = {}
        if resume and self.checkpoints.finished:
            load_weights(self.model, self.checkpoints.newest())
            return []
        if resume and self.checkpoints.on_the_way():
            path = self.checkpoints.newest()
            tensors, start = read_tensors(path, self.device)
            load_state(self.model, part(tensors, "model"), path)
        self.metrics.forget_after(start.stage, start.step)
        reports = []
        with _signals() as stop:
            for index in range(start.stage, len(self.stages)):
                if not self.stages[index].parameters:
                    continue
                begun = start.step if index == start.stage else 0
                reports.append(self._stage(index, begun, tensors if begun else {}, stop))
        self.checkpoints.save_final(self.model)
        return reports

    def _stage(self, index: int, begun: int, tensors: dict[str, Tensor], stop: list[int]) -> StageReport:
        stage, settings = self.stages[index], self.settings[index]
        steps = self.options.steps(settings)
        first = sum(self.options.steps(s) for s in self.settings[:index])  # of all stages, so that none shares batches
        stage.begin()
        optimisation = Optimisation(self.model, stage, settings, steps)
        if tensors:
            optimisation.restore(part(tensors, "optimiser"))
            if optimisation.ema is not None:
                optimisation.ema.module.load_state_dict(part(tensors, "ema"))
        began = clock = time.perf_counter()
        logged = begun
        figures: dict[str, float] = {}
        with StageProgress(self.console, stage.name, steps, begun) as progress:
            for step in range(begun, steps):
                values = self._step(stage, settings, optimisation, first + step, step)
                done = step + 1
                if done % self.options.log_every == 0 or done == steps or stop:
                    figures = self._figures(stage, values, done)
                    now = time.perf_counter()
                    rate = (done - logged) * settings.batch_size / (now - clock)
                    clock, logged = now, done
                    line = {
                        "stage": stage.name,
                        "stage_index": index,
                        "step": done,
                        "windows_per_second": rate,
                    }
                    self.metrics.write({**line, "seconds": now - began, **figures})
                    progress.show(done, {k: figures[k] for k in values if k != "gradient_norm"})
                if stop or (done % self.options.checkpoint_every == 0 and done < steps):
                    self._check_finite(stage, values, done)
                    path = self.checkpoints.save(Position(index, done), self._tensors(optimisation))
                    if stop:
                        raise Interrupted(f"Stopped in stage '{stage.name}' after step {done}; {path} is whole.")
        optimisation.finish()
        self.model.eval()
        if index + 1 < len(self.stages):
            self.checkpoints.save(Position(index + 1, 0), self._tensors(None))
        seconds = time.perf_counter() - began
        rate = (steps - begun) * settings.batch_size / max(seconds, 1e-9)
        return StageReport(stage.name, steps, seconds, rate, figures)

    def _step(
        self, stage: Stage, settings: StageOptions, optimisation: Optimisation, number: int, step: int
    ) -> dict[str, Tensor]:
        """Takes one step; returns the losses and the norm of the gradient that was followed."""
        batch = self.source.batch(number, settings.batch_size)
        seed_step(self.seed, number)
        with autocast(self.device, self.options.precision):
            losses = stage.module(batch)
        norm = optimisation.step(losses["total"], step)
        return {**{k: v.detach() for k, v in losses.items()}, "gradient_norm": norm}

    def _figures(self, stage: Stage, values: dict[str, Tensor], step: int) -> dict[str, float]:
        self._check_finite(stage, values, step)
        numbers = torch.stack([v.float() for v in values.values()]).tolist()
        return dict(zip(values, numbers, strict=True)) | stage.report()

    def _check_finite(self, stage: Stage, values: dict[str, Tensor], step: int) -> None:
        """A gradient that is not finite has spoilt the weights, though the loss before it was fine."""
        bad = ", ".join(k for k, v in values.items() if not bool(torch.isfinite(v)))
        if not bad:
            return
        kept = self.checkpoints.on_the_way()
        raise TrainingError(
            "A loss or its gradient is not finite.",
            got=f"{bad} in stage '{stage.name}' at or before step {step}",
            expected=f"finite losses; the last good checkpoint is {kept[-1] if kept else 'none yet'}",
            fix=f"engine.stages.{stage.name}.lr smaller, or engine.stages.{stage.name}.clip=1",
        )

    def _tensors(self, optimisation: Optimisation | None) -> dict[str, Tensor]:
        """Everything that a resumed training needs, and the averaged weights to act with."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        if optimisation is None:
            return tensors
        tensors |= {f"optimiser.{k}": v for k, v in optimisation.tensors().items()}
        if optimisation.ema is not None:
            tensors |= {f"ema.{k}": v for k, v in optimisation.ema.module.state_dict().items()}
        return tensors


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list, so that the loop can end between two steps."""
    caught: list[int] = []

    def catch(number: int, _: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    try:
        before = {s: signal.signal(s, catch) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever runs us there handles signals
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
