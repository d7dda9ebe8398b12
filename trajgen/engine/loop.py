"""The training loop: for each stage, for each batch, optimize ``losses["total"]``, log, keep checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from trajgen.core.errors import CheckpointError, TrainingError
from trajgen.core.protocols import Source
from trajgen.core.types import Batch, Losses, Stage
from trajgen.engine.checkpoint import Checkpoints, load_buffers, load_state, load_weights, on_disk
from trajgen.engine.clock import Clock
from trajgen.engine.distributed import (
    Tally,
    add_up,
    agree,
    everywhere,
    fail,
    leads,
    mean,
    same_everywhere,
    together,
    world,
)
from trajgen.engine.loggers import opened
from trajgen.engine.metrics import MetricsLog, StageProgress, forget_after, read_lines
from trajgen.engine.optimization import Optimization, restore
from trajgen.engine.options import EngineOptions, StageOptions
from trajgen.engine.runtime import autocast, out_of_memory, prefer_fast_matmul, seed_step
from trajgen.engine.shares import Shares
from trajgen.engine.signals import Stop, stopping
from trajgen.engine.storage import Position, flush, part, unsaved_buffers
from trajgen.engine.validation import TOTAL, Validation, lowest


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
        val_source: gives windows that are not trained on; their losses are logged, and the best weights kept, whenever
            there is a checkpoint, and at the end of a stage.
    """

    model: nn.Module
    stages: list[Stage]
    source: Source
    options: EngineOptions
    folder: Path
    seed: int
    device: torch.device
    console: Console
    val_source: Source | None = None

    def __post_init__(self) -> None:
        self.checkpoints = Checkpoints(self.folder / "checkpoints")
        self.metrics = MetricsLog(self.folder / "metrics.jsonl")
        self.settings = self.options.of(self.stages)
        self.options.check_shares(self.stages, world())
        if not leads():
            self.console = Console(quiet=True)
        self.validation = None
        if self.val_source is not None:
            given = self.model, self.val_source, self.seed, self.device, self.options.precision
            self.validation = Validation(*given)

    def run(self, *, resume: bool = False) -> list[StageReport]:
        """Trains all stages, or goes on from the last whole checkpoint; returns a report of those trained now.

        Of several processes the first one alone reads and writes; each is given the same model and the same batches.

        Raises:
            TrainingError: if a loss or a gradient is not finite, the device's memory is too small, or the disk refuses
                to be written; the last good checkpoint stays.
            CheckpointError: if what is to be resumed is damaged, or of another training.
            Interrupted: after Ctrl-C or SIGTERM, when a checkpoint has been written.
            ElsewhereError: on the other processes, where the first one raises an error.
        """
        prefer_fast_matmul(self.device)
        with on_disk(self.folder, self.checkpoints), together(lambda: self.checkpoints.last):
            if agree(lambda: self._finished(resume)):
                same_everywhere(self.model)
                return []
            start, tensors = self._begin(resume)
            self.tally = Tally(self.model)
            reports = []
            with stopping() as stop, opened(self.options.log if leads() else (), self.folder) as self.loggers:
                for index in range(start.stage, len(self.stages)):
                    if not self.stages[index].parameters:
                        continue
                    begun = start.step if index == start.stage else 0
                    reports.append(self._stage(index, begun, tensors if begun else {}, stop))
                stop.heard()
            agree(self._finish)
            return reports

    def _finished(self, resume: bool) -> bool:
        """Clears away what a killed process left; loads the weights of a training that came to its end."""
        self.checkpoints.tidy()
        if not (resume and self.checkpoints.finished):
            return False
        load_weights(self.model, self.checkpoints.newest())
        return True

    def _finish(self) -> None:
        flush(self.metrics.path)
        self.checkpoints.save_final(self.model)

    def _begin(self, resume: bool) -> tuple[Position, dict[str, Tensor]]:
        """The position to start from, with the model as it was there, and what the checkpoint has for the optimizer."""
        tensors: dict[str, Tensor] = {}

        def take_up() -> Position:
            start = Position()
            if resume and self.checkpoints.on_the_way():
                start, read = self._take_up()
                tensors.update({k: v for k, v in read.items() if k.startswith(("optimizer.", "ema."))})
            forget_after(self.metrics.path, start)
            return start

        start = agree(take_up)
        same_everywhere(self.model)
        return start, everywhere(tensors, self.device)

    def _take_up(self) -> tuple[Position, dict[str, Tensor]]:
        """Reads the last whole checkpoint into the model; returns its position, and all that it holds."""
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

    def _stage(self, index: int, begun: int, tensors: dict[str, Tensor], stop: Stop) -> StageReport:
        stage, settings = self.stages[index], self.settings[index]
        steps = self.options.steps(settings)
        first = sum(self.options.steps(s) for s in self.settings[:index])  # of all stages, so that none shares batches
        stage.begin(self.model)
        loss = torch.compile(stage.loss, dynamic=False) if self.options.compile else stage.loss
        optimization = Optimization(self.model, stage, settings, steps)
        if tensors:
            restore(optimization, tensors, self.checkpoints.folder)
        began = last = time.perf_counter()
        clock, logged = Clock(self.device), begun
        figures: dict[str, float] = {}
        progress = StageProgress(self.console, stage.name, steps, begun)
        best = self._to_beat(index, begun)
        shares = Shares(self.model, self.options.accumulate)
        with progress:
            for step in range(begun, steps):
                try:
                    values = self._step(stage, loss, settings, optimization, shares, clock, first + step, step)
                except RuntimeError as error:
                    if not out_of_memory(error):
                        raise
                    raise self._too_large(stage, settings, step, error) from error
                done, stopped = step + 1, stop.asked()
                kept = done % self.options.checkpoint_every == 0
                saves = stopped or (kept and done < steps)
                validation = self.validation if kept or done == steps else None
                logs = validation is not None or done % self.options.log_every == 0 or done == steps
                if not (logs or saves):
                    continue
                numbers = self._numbers(stage, values, done)
                with clock.part("logging"):
                    if validation is not None:
                        numbers |= validation.look(stage, optimization, settings.batch_size)
                        if numbers[TOTAL] < best:
                            best = numbers[TOTAL]
                            with optimization.averaged():
                                agree(lambda: self.checkpoints.save_best(self.model))
                    self.tally.add()
                    if logs:
                        figures = numbers | stage.report()
                        self.tally.mark()
                        now = time.perf_counter()
                        rate = (done - logged) * settings.batch_size / (now - last)
                        last, logged = now, done
                        where = {"stage": stage.name, "stage_index": index, "step": done, "windows_per_second": rate}
                        self._log({**where, "seconds": now - began, **clock.read(), **figures})
                        progress.show(done, {k: figures[k] for k in values if k != "gradient_norm"})
                    if saves:
                        path = self._keep(Position(index, done), optimization)
                if stopped:
                    raise Interrupted(f"Stopped in stage '{stage.name}' after step {done}; {path} is whole.")
        optimization.finish()
        self.model.eval()
        if index + 1 < len(self.stages):
            self._keep(Position(index + 1, 0), None)
        seconds = time.perf_counter() - began
        rate = (steps - begun) * settings.batch_size / max(seconds, 1e-9)
        return StageReport(stage.name, steps, seconds, rate, figures)

    def _step(
        self,
        stage: Stage,
        loss: Callable[[Batch], Losses],
        settings: StageOptions,
        optimization: Optimization,
        shares: Shares,
        clock: Clock,
        number: int,
        step: int,
    ) -> dict[str, Tensor]:
        """Takes one step; returns the losses of this process, and the norm of the gradient that was followed."""
        with clock.part("data"):
            batch = self.source.batch(number, settings.batch_size)
        values: dict[str, Tensor] = {}
        optimization.forget()
        for share, windows in shares.of(batch):
            seed_step(self.seed, number, share)
            with clock.part("forward"), autocast(self.device, self.options.precision):
                losses = loss(windows)
            with clock.part("backward"):
                (losses["total"] / shares.parts).backward()
            values = {k: v.detach() + values[k] if values else v.detach() for k, v in losses.items()}
        if shares.held:
            seed_step(self.seed, number)
            with clock.part("forward"), autocast(self.device, self.options.precision):
                shares.learn_held()
        if shares.micro > 1:
            values = {k: v / shares.micro for k, v in values.items()}
        with clock.part("optimizer"):
            add_up(optimization.gradients())
            values["gradient_norm"] = optimization.follow(step)
        if stage.after_step is not None:
            seed_step(self.seed, number)
            with clock.part("optimizer"), torch.no_grad():
                stage.after_step()
        return values

    def _to_beat(self, index: int, begun: int) -> float:
        """The lowest held-out loss so far of a stage; the best weights of an earlier one are no policy yet."""
        if not begun:
            agree(self.checkpoints.forget_best)
        return agree(lambda: lowest(read_lines(self.metrics.path), index))

    def _log(self, line: dict[str, Any]) -> None:
        """Writes a line of metrics, by one of the processes."""
        if leads():
            self.metrics.write(line)
            for logger in self.loggers:
                logger.write(line)

    def _numbers(self, stage: Stage, values: dict[str, Tensor], step: int) -> dict[str, float]:
        """The means over all processes; raises a `TrainingError` on all of them if one is not finite.

        A gradient that is not finite has spoilt the weights, though the loss before it was fine.
        """
        means = mean(torch.stack([v.float() for v in values.values()])).tolist()
        numbers = dict(zip(values, means, strict=True))
        bad = ", ".join(k for k, v in numbers.items() if not math.isfinite(v))
        if bad:
            fail(
                TrainingError(
                    "A loss or its gradient is not finite.",
                    got=f"{bad} in stage '{stage.name}' at or before step {step}",
                    expected=f"finite losses; the last good checkpoint is {self.checkpoints.last}",
                    fix=f"engine.stages.{stage.name}.lr smaller, or engine.stages.{stage.name}.grad_clip=1",
                )
            )
        return numbers

    def _too_large(self, stage: Stage, settings: StageOptions, step: int, error: RuntimeError) -> TrainingError:
        windows = settings.batch_size // (self.options.accumulate * world())
        return TrainingError(
            "A step must fit into the memory of the device.",
            expected=f"room for {windows} windows; the last good checkpoint is {self.checkpoints.last}",
            got=f"stage '{stage.name}', step {step + 1}, {self.device}: {str(error).splitlines()[0]}",
            fix=f"engine.accumulate={2 * self.options.accumulate}, engine.stages.{stage.name}.batch_size="
            f"{max(1, settings.batch_size // 2)} or a smaller model in a new run; or end what else is on the device, "
            "then resume=true",
        )

    def _keep(self, position: Position, optimization: Optimization | None) -> Path:
        """Writes a checkpoint, after the metrics that it stands for."""

        def save() -> Path:
            if self.metrics.path.exists():
                flush(self.metrics.path)
            return self.checkpoints.save(position, self._tensors(optimization))

        return agree(save)

    def _tensors(self, optimization: Optimization | None) -> dict[str, Tensor]:
        """Everything that a resumed training needs, and the averaged weights to act with."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"buffer.{k}": v for k, v in unsaved_buffers(self.model).items()}
        if optimization is None:
            return tensors
        tensors |= {f"optimizer.{k}": v for k, v in optimization.tensors().items()}
        if optimization.ema is not None:
            tensors |= {f"ema.{k}": v for k, v in optimization.ema.module.state_dict().items()}
        return tensors
