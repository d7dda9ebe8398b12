"""The training loop: resumed is uninterrupted, signals and faults leave whole checkpoints, metrics are well-formed."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn
from toys import FIRST, SECOND, CrashError, Numbers, Rows, Toy, crash, interrupt, metrics, options, term, training

from trajgen.core.errors import ConfigError, TrainingError
from trajgen.core.stages import Stage
from trajgen.engine.device import check_compiler
from trajgen.engine.loop import StoppedError, Training
from trajgen.engine.options import EngineOptions, StageOptions
from trajgen.engine.step import PARTS
from trajgen.experiments.starting import stages_of
from trajgen.nn.low_rank import add_adapters

CPU, QUIET = torch.device("cpu"), Console(quiet=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    training(folder).run()
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "checkpoints" / "final.safetensors")


def check_same(folder: Path, other: Path) -> None:
    """Bit for bit the same weights, and the same metrics but for the clock."""
    one, two = weights(folder), weights(other)
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert metrics(folder) == metrics(other)


POINTS = {
    "first step of stage one": 0,
    "inside stage one": 3,
    "last step of stage one": FIRST - 1,
    "first step of stage two": FIRST,
    "inside stage two": FIRST + 5,
    "last step of stage two": FIRST + SECOND - 1,
}


@pytest.mark.parametrize("kill", [term, interrupt])
@pytest.mark.parametrize("at", POINTS.values(), ids=POINTS)
def test_interrupted_and_resumed_is_uninterrupted(
    at: int, kill: Callable[[], None], tmp_path: Path, uninterrupted: Path
) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError, match="is whole") as caught:
        training(tmp_path, Numbers(at, kill)).run()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    newest = training(tmp_path).checkpoints.newest()
    assert str(newest) in str(caught.value) and newest.exists()
    source = Numbers()
    training(tmp_path, source, model=Toy(seed=99)).run(resume=True)
    assert [step for step, _ in source.requests] == list(range(at + 1, FIRST + SECOND))
    check_same(tmp_path, uninterrupted)


def test_a_resumed_stage_goes_on_counting_its_seconds(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        training(tmp_path, Numbers(4, term)).run()
    lines = metrics(tmp_path, timed=True)
    long_before = lines[-1] | {"seconds": 1000.0, "seconds/data": 900.0}
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in [*lines[:-1], long_before]))
    training(tmp_path).run(resume=True)
    lines = metrics(tmp_path, timed=True)[len(lines) :]
    resumed, next_stage = ([line for line in lines if line["stage_index"] == index] for index in (0, 1))
    assert all(1000 < line["seconds"] < 1100 and 900 < line["seconds/data"] < 1000 for line in resumed) and resumed
    assert all(line["seconds"] < 100 for line in next_stage) and next_stage


@pytest.mark.parametrize("at", POINTS.values(), ids=POINTS)
def test_crashed_and_resumed_is_uninterrupted(at: int, tmp_path: Path, uninterrupted: Path) -> None:
    with pytest.raises(CrashError):
        training(tmp_path, Numbers(at, crash)).run()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "two", "stage_in')  # a line that a power cut tore
    for at_again in (at + 1, None):
        try:
            training(tmp_path, Numbers(at_again, term)).run(resume=True)
        except StoppedError:
            continue
    check_same(tmp_path, uninterrupted)


def test_an_optimizer_that_counts_its_steps_resumes_bit_for_bit(tmp_path: Path) -> None:
    stages = {name: StageOptions(steps=9, batch_size=8, optimizer="lamb") for name in ("one", "two")}
    training(tmp_path / "uninterrupted", stages=stages).run()
    with pytest.raises(StoppedError):
        training(tmp_path / "stopped", Numbers(5, term), stages=stages).run()
    training(tmp_path / "stopped", stages=stages).run(resume=True)
    check_same(tmp_path / "stopped", tmp_path / "uninterrupted")


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    def twice() -> None:
        interrupt()
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        training(tmp_path, Numbers(3, twice)).run()


def test_a_finished_training_is_not_trained_again(tmp_path: Path, uninterrupted: Path) -> None:
    training(tmp_path).run()
    source, model = Numbers(), Toy(seed=99)
    training(tmp_path, source, model=model).run(resume=True)
    assert source.requests == []
    assert torch.equal(model.one.weight, weights(uninterrupted)["model.one.weight"])
    check_same(tmp_path, uninterrupted)


@pytest.mark.parametrize("train_only", [(), ("lora", "return_target")])
def test_a_planner_resumes_bit_for_bit(train_only: tuple[str, ...], tmp_path: Path) -> None:
    def run(folder: Path, at: int | None, resume: bool = False) -> None:
        folder.mkdir(exist_ok=True)

        class Source(tiny.RandomSource):
            def batch(self, step: int, size: int, rank: int = 0) -> Any:
                if step == at:
                    term()
                return super().batch(step, size, rank)

        planner = tiny.planner(return_target="quantile")
        if train_only:
            add_adapters(planner.prior, 2)
        stages = {name: StageOptions(steps=4, batch_size=8) for name in ("tokenizer", "return_target", "prior")}
        settings = EngineOptions(stages=stages, precision="float32", log_every=2, checkpoint_every=3)
        trained = stages_of(planner, train_only)
        Training(planner, trained, Source(), settings, folder, 0, CPU, QUIET).run(resume=resume)

    run(tmp_path / "whole", None)
    for at in (5, 9) if train_only else (1, 5, 9):
        with pytest.raises(StoppedError):
            run(tmp_path / str(at), at)
        run(tmp_path / str(at), None, resume=True)
        check_same(tmp_path / str(at), tmp_path / "whole")  # and the usage of codes, counted between two lines


class Following(nn.Module):
    """A linear map, and a target network that follows it in each step and takes part in the loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.online, self.target = nn.Linear(4, 4), nn.Linear(4, 4)

    def loss(self, batch: Rows) -> dict[str, Tensor]:
        x = batch.values
        return {"total": (self.online(x) - self.target(x).detach() - x.flip(1)).square().mean()}

    def follow(self) -> None:
        for target, online in zip(self.target.parameters(), self.online.parameters(), strict=True):
            target.lerp_(online, 0.25 + 0.1 * float(torch.rand(())))

    def stages(self) -> list[Any]:
        online = list(self.online.parameters())
        return [Stage("one", self.loss, online, frozen=[self.target], after_step=self.follow)]


def test_what_after_step_moves_is_kept_saved_and_resumed(tmp_path: Path) -> None:
    """Also where it is a frozen module's; whatever ``after_step`` draws is a function of the step."""

    def train(folder: Path, source: Numbers, *, decay: float, resume: bool = False) -> Following:
        folder.mkdir(exist_ok=True)
        model = Following()
        settings = options(stages={"one": StageOptions(steps=12, batch_size=8, lr=0.05, ema_decay=decay)})
        Training(model, model.stages(), source, settings, folder, 7, CPU, QUIET).run(resume=resume)
        return model

    start = Following().target.weight
    for decay in (0.0, 0.999):
        uninterrupted = train(tmp_path / f"whole-{decay}", Numbers(), decay=decay)
        assert (uninterrupted.target.weight - start).abs().max() > 0.01
        assert torch.equal(weights(tmp_path / f"whole-{decay}")["model.target.weight"], uninterrupted.target.weight)
        with pytest.raises(StoppedError):
            train(tmp_path / f"cut-{decay}", Numbers(5, term), decay=decay)
        train(tmp_path / f"cut-{decay}", Numbers(), decay=decay, resume=True)
        check_same(tmp_path / f"cut-{decay}", tmp_path / f"whole-{decay}")


@pytest.mark.parametrize("step", [1, FIRST + 4])
def test_a_loss_that_is_not_finite_stops_the_training(step: int, tmp_path: Path) -> None:
    stage = "one" if step < FIRST else "two"
    with pytest.raises(TrainingError) as caught:
        training(tmp_path, Numbers(poison=step)).run()
    message = str(caught.value)
    assert f"stage '{stage}'" in message and f"engine.stages.{stage}.lr" in message and "total" in message
    at = step - FIRST if stage == "two" else step
    assert f"step {at + 1}" in message or f"step {at + 2}" in message  # looked at every second step
    checkpoints = training(tmp_path).checkpoints.intermediate()
    assert bool(checkpoints) == (stage == "two")
    for path in checkpoints:
        assert str(checkpoints[-1]) in message
        assert all(v.isfinite().all() for v in load_file(path).values() if v.is_floating_point())


def test_a_gradient_that_is_not_finite_stops_it_before_a_checkpoint_is_spoilt(tmp_path: Path) -> None:
    """A finite loss whose gradient is not a number: the root of 0 times 0."""
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(3))
    stage = Stage("one", lambda batch: {"total": (model.weight.abs().sqrt() * 0.0).sum()}, [model.weight])
    settings = EngineOptions(checkpoint_every=1, log_every=1)
    setup = Training(model, [stage], Numbers(), settings, tmp_path, 0, CPU, QUIET)
    with pytest.raises(TrainingError, match="gradient_norm"):
        setup.run()
    assert setup.checkpoints.intermediate() == []


def test_metrics_are_one_object_a_line(uninterrupted: Path) -> None:
    lines = metrics(uninterrupted, timed=True)
    assert [(v["stage_index"], v["step"]) for v in lines] == [
        *((0, s) for s in (2, 4, 6)),
        *((1, s) for s in (2, 4, 6, 8, 9)),
    ]
    for line in lines:
        assert {"stage", "total", "error", "gradient_norm", "seconds", "windows_per_second"} <= set(line)
        assert line["seconds"] > 0 and line["windows_per_second"] > 0
        parts = [line[f"seconds/{part}"] for part in PARTS]
        assert min(parts) > 0 or line["step"] == 2  # the first line is not yet written when it tells of logging
        assert sum(parts) <= line["seconds"]
    assert all(line["usage/all"] == 0.5 for line in lines if line["stage"] == "one")


@pytest.mark.parametrize(("budget", "steps"), [(1.0, (FIRST, SECOND)), (2.0, (12, 18)), (0.5, (3, 4)), (0.01, (1, 1))])
def test_each_step_of_all_stages_has_its_own_batch(budget: float, steps: tuple[int, int], tmp_path: Path) -> None:
    """The budget multiplies their number."""
    source = Numbers()
    training(tmp_path, source, budget=budget).run()
    one, two = steps
    assert source.requests == [(s, 8) for s in range(one)] + [(one + s, 4) for s in range(two)]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_losses_are_followed_to_the_same_weights(tmp_path: Path) -> None:
    """Without dropout: compiled code draws its random numbers in another way."""
    states = []
    for compiled in (False, True):
        model, folder = Toy(), tmp_path / str(compiled)
        model.dropout, model.noise = nn.Dropout(0.0), 0.0
        settings = options(stages={"one": StageOptions(steps=FIRST, batch_size=8)}, compile=compiled)
        folder.mkdir()
        Training(model, model.stages()[:1], Numbers(), settings, folder, 7, CPU, QUIET).run()
        states.append(model.state_dict())
    assert all(torch.allclose(states[0][key], states[1][key], atol=1e-6) for key in states[0])


def test_a_stage_trains_its_own_parameters_alone(tmp_path: Path) -> None:
    model = Toy()
    between: dict[str, Tensor] = {}
    source = Numbers(FIRST, lambda: between.update({k: v.clone() for k, v in model.state_dict().items()}))
    training(tmp_path, source, model=model).run()
    assert torch.equal(between["one.weight"], model.one.weight)
    assert not torch.equal(between["two.weight"], model.two.weight)
    assert torch.equal(Toy().two.weight, between["two.weight"])


def test_a_stage_without_parameters_is_passed_over(tmp_path: Path, uninterrupted: Path) -> None:
    setup = training(tmp_path)
    setup.stages.insert(1, Stage("empty", lambda batch: {}, []))
    setup.settings.insert(1, StageOptions(steps=SECOND))
    setup.run()
    assert {line["stage"] for line in metrics(tmp_path)} == {"one", "two"}
    assert torch.equal(weights(tmp_path)["model.one.weight"], weights(uninterrupted)["model.one.weight"])


def test_options_that_cannot_be_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"engine\.compile=false"):
        check_compiler()
    with pytest.raises(ConfigError, match="no stage 'three'") as caught:
        training(tmp_path, stages={"three": StageOptions()})
    assert "one, two" in str(caught.value.expected)
    for name, value in {"budget": math.nan, "log_every": 0, "checkpoint_every": 0, "accumulate": 0}.items():
        with pytest.raises(ConfigError, match=name):
            options(**{name: value})
    limits = {"steps": 0, "batch_size": 0, "lr": 0.0, "warmup": 1.0, "ema_decay": 1.0, "grad_clip": -1.0}
    for name, value in limits.items():
        with pytest.raises(ConfigError, match=name):
            StageOptions(**{name: value})
