"""The training loop: minimizes ``losses["total"]`` of each stage in turn, logs, validates, and keeps checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from torch import Tensor, nn

from trajgen.core.errors import CheckpointError, TrainingError, is_out_of_memory
from trajgen.core.sources import Source, source_of
from trajgen.core.stages import Stage
from trajgen.core.terminal import progress
from trajgen.engine.captured_step import CapturedStep
from trajgen.engine.checkpoint import BEST, Checkpoints, disk_errors, load_buffers, load_state, load_weights
from trajgen.engine.device import autocast, fast_matmul, synchronize
from trajgen.engine.distributed import (
    StopSignal,
    SyncedCounters,
    all_reduce_mean,
    broadcast,
    broadcast_decision,
    broadcast_model,
    catch_signals,
    is_main_process,
    lost_peers,
    raise_together,
    world_size,
)
from trajgen.engine.loggers import VAL_TOTAL, Logger, MetricsLog, open_loggers, stage_progress
from trajgen.engine.optimization import Optimization
from trajgen.engine.options import EngineOptions, StageOptions
from trajgen.engine.pace import Pace, busy_machine
from trajgen.engine.precision import choose_precision
from trajgen.engine.prepared import Prepared, prepared_batch, sizes_of_batches
from trajgen.engine.step import Timer, TrainingStep, seed_step, split
from trajgen.engine.storage import Position, under, unsaved_buffers

VAL_BATCHES = 4
WARM_UP = 5
"""Steps of a stage before those that are timed: kernels are chosen, and a CUDA graph is captured."""


TakeStep = Callable[[int, int, Timer], dict[str, Tensor]]
"""From the number of a step in the training and in its stage to its losses, and the norm of the gradient."""


class StoppedError(Exception):
    """Ctrl-C or SIGTERM ended the training; the checkpoint that it names is whole."""


@dataclass
class Training:
    """Trains a model in place, stage by stage, and writes checkpoints and metrics into a folder.

    Args:
        model: whose weights the checkpoints hold; the stages train parts of it.
        stages: in order.
        source: gives the batch of a step.
        options: of the engine.
        folder: of the run.
        seed: of the batches and of every random number drawn while training.
        device: of the model and the source.
        console: where progress is shown.
        val_source: gives held-out windows; their losses are logged, and the weights with the lowest kept, at each
            checkpoint and at the end of a stage.
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
        self.world_size = world_size()
        self.options.check_batch_sizes(self.stages, self.world_size)
        if not is_main_process():
            self.console = Console(quiet=True)
        self.pace = Pace(self.console.print)

    def run(self, *, resume: bool = False) -> None:
        """Trains all stages, or goes on from the last whole checkpoint.

        Of several processes, rank 0 alone reads and writes; each has the same model and the same batches.

        Raises:
            TrainingError: if a loss or a gradient is not finite, the device's memory is too small, or the disk refuses
                to be written; the last good checkpoint stays.
            CheckpointError: if the checkpoint to resume is damaged, or of another training.
            StoppedError: after Ctrl-C or SIGTERM, when a checkpoint has been written.
            PeerError: on the other ranks, where rank 0 raises an error.
        """
        if self.device.type == "cpu" and (advice := busy_machine()):
            self.console.print(advice)
        with disk_errors(self.folder, self.checkpoints), lost_peers(lambda: self.checkpoints.last):
            if broadcast_decision(lambda: self._load_finished(resume)):
                broadcast_model(self.model)
                return
            start, state = self._resume(resume)
            self.counters = SyncedCounters(self.model)
            names = self.options.log if is_main_process() else ()
            with fast_matmul(self.device), catch_signals() as stop, open_loggers(names, self.folder) as loggers:
                for index in range(start.stage, len(self.stages)):
                    if self.stages[index].parameters:
                        first_step = start.step if index == start.stage else 0
                        self._stage(index, first_step, state if first_step else {}, stop, loggers)
                stop.finish()
            broadcast_decision(self._finish)

    def estimate(self) -> float:
        """Seconds that the training takes on this machine, from a few steps of each stage, which change the model."""
        steps = {stage.name: self.options.steps(each) for stage, each in zip(self.stages, self.settings, strict=True)}
        timings = self.time_steps(3)
        return sum(steps[name] * median(step["step"] for step in timed) for name, timed in timings.items())

    def time_steps(self, count: int) -> dict[str, list[dict[str, float]]]:
        """The seconds of ``count`` steps of each stage that trains something, by part, and as ``step`` in all.

        This changes the model, and writes nothing.
        """
        timings = {}
        with fast_matmul(self.device):
            for stage, settings in zip(self.stages, self.settings, strict=True):
                if stage.parameters:
                    self._begin(stage, settings)
                    steps = self.options.steps(settings)
                    optimization = Optimization(self.model, stage, settings, steps)
                    source, share = self._timed_source(stage, settings, steps)
                    take_step = self._step_of(stage, optimization, source, settings.batch_size)
                    timed = [self._time(take_step, step) for step in range(WARM_UP + count)][WARM_UP:]
                    timings[stage.name] = [
                        {**parts, "data": parts["data"] + share, "step": parts["step"] + share} for parts in timed
                    ]
        return timings

    def _time(self, take_step: TakeStep, step: int) -> dict[str, float]:
        timer, start = Timer(self.device), time.perf_counter()
        take_step(step, step, timer)
        synchronize(self.device)
        return timer.parts() | {"step": time.perf_counter() - start}

    def _timed_source(self, stage: Stage, settings: StageOptions, steps: int) -> tuple[Source, float]:
        """A stage's source, of one prepared batch where there are any, and the seconds to prepare all, by step."""
        source = source_of(stage, self.source)
        sizes = sizes_of_batches(stage, settings, steps)
        if not sizes:
            return source, 0.0
        for _ in range(2):  # the first one chooses kernels
            synchronize(self.device)
            start = time.perf_counter()
            with self.autocast:
                windows = prepared_batch(stage, source, sizes[0], self.seed, 0)
            synchronize(self.device)
        return Prepared(windows, self.seed), (time.perf_counter() - start) * len(sizes) / steps

    def _load_finished(self, resume: bool) -> bool:
        """Removes what a killed process left; loads the weights of a training that came to its end."""
        self.checkpoints.clean()
        if not (resume and self.checkpoints.finished):
            return False
        load_weights(self.model, self.checkpoints.newest())
        return True

    def _finish(self) -> None:
        self.metrics.flush()
        self.checkpoints.save_final(self.model)

    def _resume(self, resume: bool) -> tuple[Position, dict[str, Tensor]]:
        """The position to start from, with the model as it was there, and the state of the optimization."""
        state: dict[str, Tensor] = {}

        def read() -> Position:
            start = Position()
            if resume and self.checkpoints.intermediate():
                path, tensors, start = self.checkpoints.read_newest(self.model, self.device, self.console)
                steps = [self.options.steps(settings) for settings in self.settings]
                if start.stage >= len(steps) or start.step > steps[start.stage]:
                    raise CheckpointError(
                        "The checkpoint belongs to another training.",
                        expected=f"a position within {steps} steps of {len(steps)} stages",
                        got=f"{path}: step {start.step} of stage {start.stage}",
                        fix="delete it to go on from the one before, or train again",
                    )
                load_state(self.model, under("model", tensors), path)
                load_buffers(self.model, under("buffer", tensors))
                state.update({k: v for k, v in tensors.items() if k.startswith(("optimizer.", "group.", "ema."))})
            self.metrics.truncate(start)
            return start

        start = broadcast_decision(read)
        broadcast_model(self.model)
        return start, broadcast(state, self.device)

    def _stage(
        self, index: int, first_step: int, state: dict[str, Tensor], signals: StopSignal, loggers: list[Logger]
    ) -> None:
        """Trains one stage from its step ``first_step`` on."""
        stage, settings = self.stages[index], self.settings[index]
        steps = self.options.steps(settings)
        offset = sum(self.options.steps(s) for s in self.settings[:index])  # no two stages have a batch in common
        with self._memory(stage, settings, "before its first step"):
            precision = self._begin(stage, settings)
            optimization = Optimization(self.model, stage, settings, steps)
            if state:
                optimization.load_state(state, self.checkpoints.folder)
                state.clear()  # of which the averages are copies
        validation = None if self.val_source is None else source_of(stage, self.val_source)
        self.best = broadcast_decision(lambda: self._best_so_far(index, first_step))
        timer, before = Timer(self.device), self.metrics.seconds(index) if first_step and is_main_process() else {}
        start = time.perf_counter()
        with timer.part("data"):
            source = self._source(stage, settings, offset, signals)
        take_step = self._step_of(stage, optimization, source, settings.batch_size)
        self.pace.begin(first_step)
        last_time, last_step = time.perf_counter(), first_step
        with stage_progress(self.console, stage.name, steps, first_step) as show:
            for step in range(first_step, steps):
                with self._memory(stage, settings, f"step {step + 1}"):
                    values = take_step(offset + step, step, timer)
                done, stop = step + 1, signals.should_stop()
                show(done, None)
                is_checkpoint = done % self.options.checkpoint_every == 0
                save = stop or (is_checkpoint and done < steps)
                val_source = validation if is_checkpoint or done == steps else None
                log = val_source is not None or done % self.options.log_every == 0 or done == steps
                if not (log or save):
                    continue
                means = self._finite_means(stage, values, done)
                self.pace.pause(done)
                with timer.part("logging"):
                    if val_source is not None:
                        with self._memory(stage, settings, f"validation after step {done}", is_split=False):
                            means |= self._validate(stage, optimization, val_source, settings.batch_size)
                    self.counters.sync()
                    if log:
                        with self._memory(stage, settings, f"figures for the log after step {done}"):
                            figures = means | stage.report()
                        self.counters.mark()
                        now = time.perf_counter()
                        rate = (done - last_step) * settings.batch_size / (now - last_time)
                        last_time, last_step = now, done
                        line = {"stage": stage.name, "stage_index": index, "step": done, "windows_per_second": rate}
                        line["precision/bits"] = torch.finfo(getattr(torch, precision)).bits
                        spent = {"seconds": now - start, **timer.read()}  # which on all ranks frees events
                        line |= {key: value + before.get(key, 0.0) for key, value in spent.items()} | figures
                        if is_main_process():
                            self.metrics.write(line, loggers)
                        show(done, {k: figures[k] for k in values if k != "gradient_norm"})
                    if save:
                        path = self._save(Position(index, done), optimization)
                self.pace.resume(done)
                if stop:
                    raise StoppedError(f"Stopped in stage '{stage.name}' after step {done}; {path} is whole.")
        self._end_stage(optimization)
        if index + 1 < len(self.stages):
            self._save(Position(index + 1, 0), None)

    def _source(self, stage: Stage, settings: StageOptions, offset: int, signals: StopSignal) -> Source:
        """Where the batches of a stage come from, which begins after ``offset`` steps."""
        source = source_of(stage, self.source)
        sizes = sizes_of_batches(stage, settings, self.options.steps(settings))
        if not sizes:
            return source
        batches, fix = [], f"engine.stages.{stage.name}.prepared_windows=0"
        with progress(self.console, f"preparing {stage.name}", len(sizes)) as show:
            for number, size in enumerate(sizes):
                with self._room(f"before stage '{stage.name}'", size, fix), self.autocast:
                    batches.append(prepared_batch(stage, source, size, self.seed, offset + number))
                show(number + 1, ["batches of windows"])
                if signals.should_stop():
                    last = self.checkpoints.last
                    raise StoppedError(f"Stopped while preparing stage '{stage.name}'; {last} is whole.")
        return Prepared(batches[0].cat(batches), self.seed)

    def _begin(self, stage: Stage, settings: StageOptions) -> str:
        """Prepares the model for a stage; returns the precision of its losses."""
        stage.begin(self.model)
        count = self.world_size * self.options.accumulate
        source = source_of(stage, self.source)
        precision = choose_precision(
            stage,
            lambda: split(source.batch(0, settings.batch_size), 0, count),
            self.model,
            self.device,
            self.options.precision,
        )
        self.autocast = autocast(self.device, precision)
        return precision

    def _step_of(self, stage: Stage, optimization: Optimization, source: Source, batch_size: int) -> TakeStep:
        """What takes a step of a stage."""
        if self.options.compile:
            stage = replace(stage, loss=torch.compile(stage.loss, dynamic=False))
        arguments = stage, optimization, source, batch_size, self.seed, self.autocast
        if not self.options.cuda_graph or not optimization.capturable or self.world_size * self.options.accumulate > 1:
            return TrainingStep(*arguments, self.options.accumulate)
        return CapturedStep(*arguments, self.model, self.console.print)

    def _end_stage(self, optimization: Optimization) -> None:
        """Leaves the averaged weights in the model."""
        optimization.optimizer.zero_grad()
        optimization.swap_ema()
        self.model.eval()

    def _finite_means(self, stage: Stage, values: dict[str, Tensor], step: int) -> dict[str, float]:
        """The means over all processes; a `TrainingError` on all of them if one is not finite.

        A gradient that is not finite has spoilt the weights, though the loss before it was finite.
        """
        means = all_reduce_mean(torch.stack([v.float() for v in values.values()])).tolist()
        figures = dict(zip(values, means, strict=True))
        if bad := ", ".join(k for k, v in figures.items() if not math.isfinite(v)):
            raise_together(
                TrainingError(
                    "A loss or its gradient is not finite.",
                    got=f"{bad} in stage '{stage.name}' at or before step {step}",
                    expected=f"finite losses; the last good checkpoint is {self.checkpoints.last}",
                    fix=f"engine.stages.{stage.name}.lr smaller, or engine.stages.{stage.name}.grad_clip=1",
                )
            )
        return figures

    @torch.no_grad()
    def _validate(self, stage: Stage, optimization: Optimization, source: Source, batch_size: int) -> dict[str, float]:
        """The losses of the averaged weights on held-out windows, always the same ones; keeps the best weights."""
        counters = {name: value.clone() for name, value in unsaved_buffers(self.model).items()}
        figures: dict[str, float] = {}
        optimization.swap_ema()
        self.model.eval()
        for number in range(VAL_BATCHES):
            batch = source.batch(number, batch_size)
            seed_step(self.seed, number)
            with self.autocast:
                losses = stage.loss(batch)
            for name, value in losses.items():
                figures[f"val/{name}"] = figures.get(f"val/{name}", 0.0) + float(value) / VAL_BATCHES
        if broadcast_decision(lambda: figures[VAL_TOTAL] < self.best):  # in last bits, losses of processes differ
            self.best = figures[VAL_TOTAL]
            broadcast_decision(lambda: self.checkpoints.save_weights(self.model, BEST))
        optimization.swap_ema()
        stage.begin(self.model)
        for name, value in unsaved_buffers(self.model).items():  # validation counts nothing
            value.copy_(counters[name])
        return figures

    def _best_so_far(self, index: int, first_step: int) -> float:
        """The lowest validation loss of a stage so far; the best weights of an earlier stage are removed."""
        if not first_step:
            self.checkpoints.remove_best()
        return self.metrics.best(index)

    def _memory(
        self, stage: Stage, settings: StageOptions, where: str, *, is_split: bool = True
    ) -> AbstractContextManager[None]:
        """`_room` for the windows of a step, by default for those of one process and micro-batch."""
        parts = self.options.accumulate * self.world_size if is_split else 1
        smaller = f"engine.accumulate={2 * self.options.accumulate}, " if is_split else ""
        smaller += f"engine.stages.{stage.name}.batch_size={max(1, settings.batch_size // 2)} or a smaller model"
        return self._room(f"stage '{stage.name}', {where}", settings.batch_size // parts, f"{smaller} in a new run")

    @contextmanager
    def _room(self, where: str, windows: int, fix: str) -> Iterator[None]:
        """Raises a TrainingError where the device has not the memory for so many windows at once."""
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                "A step needs more memory than the device has.",
                expected=f"room for {windows} windows; the last good checkpoint is {self.checkpoints.last}",
                got=f"{where}, {self.device}: {str(error).splitlines()[0]}",
                fix=fix,
            ) from error

    def _save(self, position: Position, optimization: Optimization | None) -> Path:
        """Writes all that a resumed training needs, after the metrics up to there."""

        def save() -> Path:
            self.metrics.flush()
            tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
            tensors |= {f"buffer.{k}": v for k, v in unsaved_buffers(self.model).items()}
            return self.checkpoints.save(position, tensors | (optimization.state() if optimization else {}))

        return broadcast_decision(save)
