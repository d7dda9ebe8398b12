"""A step captured as CUDA graphs is the step that is taken without them; stand-ins take the place of the graphs."""

from __future__ import annotations

import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import toys
from torch import Tensor

from trajgen.core.errors import TrainingError
from trajgen.engine import captured_step
from trajgen.engine.captured_step import CapturedStep
from trajgen.engine.optimization import Optimization
from trajgen.engine.step import Timer, TrainingStep


class Graph:
    """Stands in for a CUDA graph: what is captured runs once, and a replay counts."""

    replays = 0

    def replay(self) -> None:
        type(self).replays += 1

    def pool(self) -> None: ...

    def register_generator_state(self, generator: torch.Generator) -> None: ...


@contextmanager
def capturing(graph: Graph, **options: Any) -> Any:
    yield


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the captured step asks of torch.cuda, without a device."""
    Graph.replays = 0
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)


class Run:
    """Steps of a toy's first stage, captured or not."""

    def __init__(self, source: Any = None, **changes: Any) -> None:
        self.model, self.source, self.reports = toys.Toy(), source or toys.Numbers(), list[str]()
        stage = replace(self.model.stages()[0], **changes)
        self.optimization = Optimization(self.model, stage, toys.options().stages["one"], 20)
        self.optimization.capturable = True  # numbers that change with the step are read from tensors
        self.take = CapturedStep(
            stage, self.optimization, self.source, 8, 7, nullcontext(), self.model, self.reports.append
        )
        self.timer = Timer(torch.device("cpu"))

    def steps(self, *numbers: int) -> list[dict[str, Tensor]]:
        return [self.take(number, number, self.timer) for number in numbers]


def test_a_step_is_the_loop_s_own(device: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With each replay taking the captured parts anew, all steps agree with those of the loop."""
    run = Run()
    monkeypatch.setattr(run.take, "_capture", lambda number: (run.take._gradients, run.take._update))
    training = toys.training(tmp_path)
    stage = training.stages[0]
    optimization = Optimization(training.model, stage, training.settings[0], 20)
    take_step = TrainingStep(stage, optimization, training.source, 8, 7, nullcontext())
    for number in range(8):
        values = {k: v.clone() for k, v in run.steps(number)[0].items()}
        expected = take_step(number, number, run.timer)
        assert values.keys() == expected.keys()
        for name in values:
            torch.testing.assert_close(values[name], expected[name])
    for mine, theirs in zip(run.model.parameters(), training.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert optimization.ema is not None and run.optimization.ema is not None
    for name, average in optimization.ema.averages.items():
        torch.testing.assert_close(run.optimization.ema.averages[name], average)


def test_after_the_warm_up_steps_are_replayed(device: None) -> None:
    run = Run()
    run.steps(*range(captured_step.WARM_UP))
    assert Graph.replays == 0
    first = run.source.requests[-1]
    values = run.steps(10, 11, 12, 13)
    assert Graph.replays == 8 and all(v is values[0] for v in values)  # two graphs a step, the same tensors
    assert run.source.requests[-1] == (13, 8) != first and not run.reports
    copied: Any = run.take._batch  # into the graph's own
    torch.testing.assert_close(copied.values, toys.Numbers().batch(13, 8).values)


def test_a_stage_that_waits_is_trained_without(device: None) -> None:
    model = toys.Toy()

    def waits(batch: toys.Rows) -> dict[str, Tensor]:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        return model.loss(model.one, batch)

    run = Run(loss=waits)
    with pytest.warns(UserWarning, match="synchronizing"):
        run.steps(*range(8))
    assert Graph.replays == 0 and len(run.reports) == 1
    assert "Stage 'one'" in run.reports[0] and "test_captured_step.py:" in run.reports[0]


def test_reading_a_batch_may_wait(device: None) -> None:
    def warn() -> None:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    run = Run(source=toys.Numbers(at=captured_step.WARM_UP - 1, happens=warn))
    with pytest.warns(UserWarning, match="synchronizing"):
        run.steps(*range(5))
    assert Graph.replays == 4 and not run.reports


def test_a_step_that_replaces_a_buffer_is_refused(device: None) -> None:
    model = toys.Toy()
    model.register_buffer("count", torch.zeros(1))

    def replaces() -> None:
        model.count = model.count + 1

    run = Run(after_step=replaces)
    run.take.model = model
    with pytest.raises(TrainingError, match="count"):
        run.steps(*range(5))


def test_a_step_that_torch_cannot_capture_is_refused(device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def fails(graph: Graph, **options: Any) -> Any:
        yield
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "graph", fails)
    run = Run()
    with pytest.raises(TrainingError, match=r"not permitted(?s:.)*engine\.cuda_graph=false resume=true$"):
        run.steps(*range(5))


def test_the_tensors_of_a_record_are_those_that_are_mapped_in_this_order() -> None:
    batch, order = tiny.batch(4), []
    batch.map(lambda tensor: order.append(tensor) or tensor)
    assert batch.transitions is not None and len(order) == len(batch.tensors()) > len(batch.transitions.tensors()) > 3
    assert all(a is b for a, b in zip(order, batch.tensors(), strict=True))
