"""The training loop: for each stage, for each batch, optimise ``losses["total"]``, log, keep checkpoints."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console
from torch import Tensor, nn

from trajgen.core.errors import CheckpointError, TrainingError
from trajgen.core.protocols import Source
from trajgen.core.types import Stage
from trajgen.engine.checkpoint import (
    Checkpoints,
    Position,
    flush,
    load_buffers,
    load_state,
    load_weights,
    on_disk,
    part,
    unsaved_buffers,
    write_whole,
)
from trajgen.engine.metrics import MetricsLog, StageProgress
from trajgen.engine.optimisation import Optimisation
from trajgen.engine.options import EngineOptions, StageOptions
from trajgen.engine.runtime import autocast, out_of_memory, prefer_fast_matmul, seed_step


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
        """Trains all stages, or goes on from the last whole checkpoint; returns a report of those trained now.

        Raises:
            TrainingError: if a loss or a gradient is not finite, the device's memory is too small, or the disk refuses
                to be written; the last good checkpoint stays.
            CheckpointError: if what is to be resumed is damaged, or of another training.
            Interrupted: after Ctrl-C or SIGTERM, when a checkpoint has been written.
        """
        prefer_fast_matmul(self.device)
        with on_disk(self.folder, self.checkpoints):
            self.checkpoints.tidy()
            if resume and self.checkpoints.finished:
                load_weights(self.model, self.checkpoints.newest())
                return []
            start, tensors = self._take_up() if resume and self.checkpoints.on_the_way() else (Position(), {})
            forget_after(self.metrics.path, start)
            reports = []
            with _signals() as stop:
                for index in range(start.stage, len(self.stages)):
                    if not self.stages[index].parameters:
                        continue
                    begun = start.step if index == start.stage else 0
                    reports.append(self._stage(index, begun, tensors if begun else {}, stop))
            flush(self.metrics.path)
            self.checkpoints.save_final(self.model)
            return reports

    def _take_up(self) -> tuple[Position, dict[str, Tensor]]:
        """Reads the last whole checkpoint into the model; returns its position, and what the optimiser needs of it."""
        path, tensors, start = self.checkpoints.read_newest(self.model, self.device, self.console)
        steps = [self.options.steps(settings) for settings in self.settings]
        if start.stage >= len(steps) or start.step > steps[start.stage]:
            raise CheckpointError(
                "The checkpoint belongs to another training.",
                expected=f"a position within {steps} steps of {len(steps)} stages",
                got=f"{path}: step {start.step} of stage {start.stage}",
                fix="delete it to go on from the one before, or train again",
            )
        load_state(self.model, part(tensors, "model"), path)
        load_buffers(self.model, part(tensors, "buffer"))
        return start, tensors

    def _stage(self, index: int, begun: int, tensors: dict[str, Tensor], stop: list[int]) -> StageReport:
        stage, settings = self.stages[index], self.settings[index]
        steps = self.options.steps(settings)
        first = sum(self.options.steps(s) for s in self.settings[:index])  # of all stages, so that none shares batches
        stage.begin()
        optimisation = Optimisation(self.model, stage, settings, steps)
        if tensors:
            restore(optimisation, tensors, self.checkpoints.folder)
        began = clock = time.perf_counter()
        logged = begun
        figures: dict[str, float] = {}
        with StageProgress(self.console, stage.name, steps, begun) as progress:
            for step in range(begun, steps):
                try:
                    values = self._step(stage, settings, optimisation, first + step, step)
                except RuntimeError as error:
                    if not out_of_memory(error):
                        raise
                    raise self._too_large(stage, settings, step, error) from error
                done = step + 1
                if done % self.options.log_every == 0 or done == steps:
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
                    path = self._save(Position(index, done), optimisation)
                    if stop:
                        raise Interrupted(f"Stopped in stage '{stage.name}' after step {done}; {path} is whole.")
        optimisation.finish()
        self.model.eval()
        if index + 1 < len(self.stages):
            self._save(Position(index + 1, 0), None)
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
        raise TrainingError(
            "A loss or its gradient is not finite.",
            got=f"{bad} in stage '{stage.name}' at or before step {step}",
            expected=f"finite losses; the last good checkpoint is {self.checkpoints.last}",
            fix=f"engine.stages.{stage.name}.lr smaller, or engine.stages.{stage.name}.clip=1",
        )

    def _too_large(self, stage: Stage, settings: StageOptions, step: int, error: RuntimeError) -> TrainingError:
        return TrainingError(
            "A step must fit into the memory of the device.",
            expected=f"room for {settings.batch_size} windows; the last good checkpoint is {self.checkpoints.last}",
            got=f"stage '{stage.name}', step {step + 1}, {self.device}: {str(error).splitlines()[0]}",
            fix=f"engine.stages.{stage.name}.batch_size={max(1, settings.batch_size // 2)} or a smaller model in a new "
            "run; or end what else is on the device, then resume=true",
        )

    def _save(self, position: Position, optimisation: Optimisation | None) -> Path:
        """Writes a checkpoint, after the metrics that it stands for."""
        if self.metrics.path.exists():
            flush(self.metrics.path)
        return self.checkpoints.save(position, self._tensors(optimisation))

    def _tensors(self, optimisation: Optimisation | None) -> dict[str, Tensor]:
        """Everything that a resumed training needs, and the averaged weights to act with."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"buffer.{k}": v for k, v in unsaved_buffers(self.model).items()}
        if optimisation is None:
            return tensors
        tensors |= {f"optimiser.{k}": v for k, v in optimisation.tensors().items()}
        if optimisation.ema is not None:
            tensors |= {f"ema.{k}": v for k, v in optimisation.ema.module.state_dict().items()}
        return tensors


def restore(optimisation: Optimisation, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Takes up the state of an optimiser and of the running average.

    Raises:
        CheckpointError: if they are those of another model or another optimiser.
    """
    parameters = [p for group in optimisation.optimiser.param_groups for p in group["params"]]
    state = part(tensors, "optimiser")
    wrong = []
    for name, value in state.items():
        number, _, key = name.partition(".")
        own = parameters[int(number)] if number in map(str, range(len(parameters))) and key else None
        if own is None or (value.ndim >= own.ndim and value.shape != own.shape):
            wrong.append(f"optimiser.{name} of shape {tuple(value.shape)}")
    if wrong:
        raise CheckpointError(
            "The checkpoint belongs to another training.",
            expected="what the optimiser of this stage keeps",
            got=f"{path}: {', '.join(wrong[:3])}",
            fix="delete it to go on from the one before, or train again",
        )
    optimisation.restore(state)
    if optimisation.ema is not None:
        load_state(optimisation.ema.module, part(tensors, "ema"), path)


def forget_after(metrics: Path, position: Position) -> None:
    """Drops the lines of metrics that a training which goes on from a position will write again, and torn ones."""
    if not metrics.exists():
        return
    kept = []
    for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
            if (values["stage_index"], values["step"]) <= (position.stage, position.step):
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # a power cut tore it
    write_whole(metrics, "".join(kept).encode())


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
