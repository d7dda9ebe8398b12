"""A training step as two CUDA graphs, which the host launches instead of a thousand kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from trajgen.core.capture import captured
from trajgen.core.errors import TrainingError, is_out_of_memory
from trajgen.core.sources import Source, drawn_on_device
from trajgen.core.stages import Stage
from trajgen.engine.optimization import Optimization
from trajgen.engine.step import Timer, seed_step

WARM_UP = 3
"""Steps before the capture, in which kernels are chosen and the optimizer's state is made."""

Values = dict[str, Tensor]
Replay = Callable[[], object]


class CapturedStep:
    """Takes the steps of a stage: the first ones kernel by kernel, the others by replaying CUDA graphs of them.

    The first graph draws the batch and computes losses and gradients; the second one clips, updates and averages.
    Random numbers are seeded before each, so that a replayed step is the step that it was captured from. A source that
    draws with the host's help is read outside, and its batch copied into the graph's. A stage that waits for the device
    within a step cannot be captured, and is trained kernel by kernel to its end.

    Args:
        stage: whose losses are minimized.
        optimization: of the stage.
        source: of the batches.
        batch_size: of the stage.
        seed: of the random numbers.
        autocast: the context of the losses.
        model: whose parameters and buffers have to stay where they are in memory.
        report: is told where a stage waits for the device.
    """

    def __init__(
        self,
        stage: Stage,
        optimization: Optimization,
        source: Source,
        batch_size: int,
        seed: int,
        autocast: AbstractContextManager[object],
        model: nn.Module,
        report: Callable[[str], None],
    ) -> None:
        self.stage, self.optimization, self.batch_size, self.seed = stage, optimization, batch_size, seed
        self.source, self.autocast, self.model, self.report = source, autocast, model, report
        self._on_device = drawn_on_device(source)
        self._left = WARM_UP
        self._waits = False
        self._replays: tuple[Replay, Replay] | None = None
        self._batch: Any = None
        self._values: Values = {}

    def __call__(self, number: int, step: int, timer: Timer) -> Values:
        """Takes step ``step`` of the stage, step ``number`` of all; returns losses and the norm of the gradient.

        The next step overwrites what is returned.

        Raises:
            TrainingError: if the step cannot be captured for another reason than waiting for the device.
        """
        if self._replays is None and self._left == 0 and not self._waits:
            self._replays = self._capture(number)
        gradients, update = self._replays or (self._gradients, self._update)
        with timer.part("data"):
            self._next_batch(number)
        with self._watch() if self._left == 1 else nullcontext():
            seed_step(self.seed, number)
            with timer.part("forward"):  # and backward
                gradients()
            with timer.part("optimizer"):
                self.optimization.schedule(step)
                if self.stage.after_step is not None:
                    seed_step(self.seed, number)  # as where a step is taken by several processes
                update()
        self._left = max(0, self._left - 1)
        return self._values

    def _next_batch(self, number: int) -> None:
        """Seeds the draw of a batch, or reads it."""
        if self._on_device is not None:
            self._on_device.seed_draw(number)
            return
        batch = self.source.batch(number, self.batch_size)
        if self._batch is None:
            self._batch = batch
        else:
            targets = by_dtype(self._batch.tensors())
            for dtype, values in by_dtype(batch.tensors()).items():  # a launch for each type, not for each tensor
                torch._foreach_copy_(targets[dtype], values)

    def _gradients(self) -> None:
        """Computes the losses, and leaves their gradients at the parameters."""
        batch = self._batch if self._on_device is None else self._on_device.draw(self.batch_size)
        self.optimization.optimizer.zero_grad()
        with self.autocast:
            losses = self.stage.loss(batch)
        losses["total"].backward()
        self._values = {name: loss.detach() for name, loss in losses.items()}

    def _update(self) -> None:
        self._values["gradient_norm"] = self.optimization.update()

    @contextmanager
    def _watch(self) -> Iterator[None]:
        """Notes whether the step within it waits for the device, and reports where."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the first call warns that the mode is a prototype
            torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
        lines = [f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
        self._waits = bool(lines)
        if lines:
            self.report(f"Stage '{self.stage.name}' is trained without a CUDA graph: {lines[0]} waits for the device.")

    def _capture(self, number: int) -> tuple[Replay, Replay]:
        """Captures both graphs; no step is taken meanwhile."""
        self._next_batch(number)
        addresses = self._addresses()
        graphs = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        if self._on_device is not None:
            graphs[0].register_generator_state(self._on_device.generator)
        stream = torch.cuda.Stream(self.optimization.device)
        try:
            # Other threads, such as those that read data, may go on meanwhile.
            with captured(graphs[0], stream, capture_error_mode="thread_local"):
                self._gradients()
            with captured(graphs[1], stream, pool=graphs[0].pool(), capture_error_mode="thread_local"):
                self._update()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise self._refusal(str(error).split("\n")[0][:200]) from error
        if moved := [name for name, address in self._addresses().items() if addresses.get(name) != address]:
            raise self._refusal(f"the step replaces {moved[0]}, where it has to change it in place")
        return graphs[0].replay, graphs[1].replay

    def _addresses(self) -> dict[str, int]:
        tensors = [*self.model.named_parameters(), *self.model.named_buffers()]
        return {name: tensor.data_ptr() for name, tensor in tensors}

    def _refusal(self, reason: str) -> TrainingError:
        return TrainingError(
            f"A step of stage '{self.stage.name}' cannot be captured as a CUDA graph.",
            got=reason,
            fix="the same command with engine.cuda_graph=false resume=true",
        )


def by_dtype(tensors: list[Tensor]) -> dict[torch.dtype, list[Tensor]]:
    """The tensors of each type, in their order."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return groups
