"""Steps that are captured as CUDA graphs are the steps that are taken kernel by kernel."""

from __future__ import annotations

import json
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import small
import tiny
import torch
from rich.console import Console
from simulated import SimulatedCuda
from test_cuda import Source
from test_simulated import same_state
from torch import Tensor

from trajgen import experiments
from trajgen.cli import main
from trajgen.core.sources import source_of
from trajgen.engine import captured_step
from trajgen.engine.captured_step import WARM_UP
from trajgen.engine.loop import Training
from trajgen.engine.optimization import Optimization
from trajgen.engine.options import EngineOptions, StageOptions
from trajgen.engine.step import Timer


def train(folder: Path, *, cuda_graph: bool) -> tuple[dict[str, Tensor], list[dict[str, Any]], str]:
    torch.manual_seed(0)
    planner = tiny.planner(return_target="quantile").cuda()
    stages = {name: StageOptions(steps=12, batch_size=32) for name in ("tokenizer", "return_target", "prior")}
    options = EngineOptions(stages=stages, log_every=4, checkpoint_every=100, cuda_graph=cuda_graph)
    text, device = StringIO(), torch.device("cuda")
    folder.mkdir()
    Training(planner, planner.stages(), Source(), options, folder, 0, device, Console(file=text)).run()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [{k: v for k, v in line.items() if k in ("step", "total", "gradient_norm")} for line in lines]
    return planner.state_dict(), losses, text.getvalue()


@pytest.mark.gpu  # on a simulated one: test_simulated.py
def test_captured_steps_end_in_the_same_weights(tmp_path: Path) -> None:
    captured, losses, text = train(tmp_path / "captured", cuda_graph=True)
    expected, expected_losses, _ = train(tmp_path / "by_kernel", cuda_graph=False)
    assert "without a CUDA graph" not in text  # no stage waits for the device
    for name, value in expected.items():
        torch.testing.assert_close(captured[name], value, atol=1e-4, rtol=1e-4)
    for line, expected_line in zip(losses, expected_losses, strict=True):
        assert line == pytest.approx(expected_line, rel=1e-3)


STEPS, COPIED = 8, 6
"""Steps of a stage, and after which of them, in the last stage, the folder of a training is copied."""


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of the log without what takes time."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(("seconds", "windows_per"))} for line in lines]


def validated(recipe: str, folder: Path, *, cuda_graph: bool, resume: bool = False) -> small.Setup:
    """A recipe trained with lines of the log, checkpoints and validation between the steps; ``folder`` is copied."""
    setup = small.Setup(recipe, "cuda", val_fraction=0.25)
    stages, val_source = setup.planner.stages(), setup.source.validation(small.episodes())
    last = max(index for index, stage in enumerate(stages) if stage.parameters)
    settings = {stage.name: StageOptions(steps=STEPS, batch_size=16) for stage in stages}
    options = EngineOptions(stages=settings, log_every=2, checkpoint_every=3, cuda_graph=cuda_graph)
    folder.mkdir(exist_ok=True)
    device, console = setup.source.device, Console(quiet=True)
    training = Training(setup.planner, stages, setup.source, options, folder, 0, device, console, val_source)
    save = training.checkpoints.save

    def copied(position: Any, tensors: Any) -> Path:
        path = save(position, tensors)
        if (position.stage, position.step) == (last, COPIED) and cuda_graph and not resume:
            for name in ("resumed", "resumed by kernel"):
                shutil.copytree(folder, folder.with_name(name))
        return path

    training.checkpoints.save = copied
    training.run(resume=resume)
    return setup


@pytest.mark.simulated
@pytest.mark.parametrize("recipe", ["iql", "tap"])
def test_what_comes_between_replays_changes_nothing_nor_does_a_resume(recipe: str, tmp_path: Path) -> None:
    """To the last bit: weights, and the lines of the log, among them validation; a resume may do without graphs."""
    with SimulatedCuda() as simulation:
        expected = validated(recipe, tmp_path / "expected", cuda_graph=False)
        captured = validated(recipe, tmp_path / "captured", cuda_graph=True)
        trained = [stage for stage in captured.planner.stages() if stage.parameters]
        assert simulation.launches["replay"] == 2 * len(trained) * (STEPS - WARM_UP)
        lines = metrics(tmp_path / "expected")
        assert len(lines) > 2 * len(trained) and any("val/total" in line for line in lines)
        resumed = validated(recipe, tmp_path / "resumed", cuda_graph=True, resume=True)
        by_kernel = validated(recipe, tmp_path / "resumed by kernel", cuda_graph=False, resume=True)
        for name, setup in {"captured": captured, "resumed": resumed, "resumed by kernel": by_kernel}.items():
            same_state(setup, expected)
            assert metrics(tmp_path / name) == lines


@pytest.mark.simulated
@pytest.mark.parametrize("recipe", ["iql", "mage"])
@pytest.mark.parametrize(("memory", "most"), [(2**40, 5), (2**10, 40)], ids=["resident", "data on the host"])
def test_a_captured_step_is_a_few_launches(
    recipe: str, memory: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies of a batch from the host, its normalization, the learning rates, and two graphs."""
    monkeypatch.setattr(captured_step, "WARM_UP", 2)
    with SimulatedCuda(memory=memory) as simulation:
        setup = small.Setup(recipe, "cuda")
        stages, device = setup.planner.stages(), setup.source.device
        options = EngineOptions(stages={stage.name: StageOptions(batch_size=16) for stage in stages})
        training = Training(setup.planner, stages, setup.source, options, tmp_path, 0, device, Console(quiet=True))
        for stage, settings in zip(stages, training.settings, strict=True):
            if stage.parameters:
                training._begin(stage, settings)
                optimization = Optimization(setup.planner, stage, settings, 1000)
                take_step = training._step_of(stage, optimization, source_of(stage, setup.source), 16)
                for step in range(4):
                    simulation.launches.clear()
                    take_step(step, step, Timer(device))
                assert simulation.launches["replay"] == 2
                assert sum(simulation.launches.values()) <= most, simulation.launches


@pytest.mark.simulated
@pytest.mark.parametrize(
    ("cuda_graph", "said", "replays"), [("true", "by CUDA graphs", 6), ("false", "kernel by kernel", 0)]
)
def test_steps_are_timed_as_they_are_trained(
    cuda_graph: str, said: str, replays: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with SimulatedCuda() as simulation:
        setup = small.Setup("bc", "cuda")
        monkeypatch.setattr(experiments, "prepare", lambda *_: (setup.planner, setup.source, tiny.SPACE))
        main(["bench", "train", "recipe=bc", "device=cuda", f"engine.cuda_graph={cuda_graph}", "repeats=1"])
        assert simulation.launches["replay"] == replays
    assert said in " ".join(capsys.readouterr().out.split())
