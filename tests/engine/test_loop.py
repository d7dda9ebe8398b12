"""The training loop: resumed is uninterrupted, signals and faults leave whole checkpoints, metrics are well-formed."""

from __future__ import annotations

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
from toys import FIRST, SECOND, CrashError, Numbers, Toy, crash, interrupt, metrics, options, term, training

from trajgen.core.errors import ConfigError, TrainingError
from trajgen.core.types import Losses, Stage
from trajgen.engine.device import PARTS, check_compiler
from trajgen.engine.loop import Interrupted, Training
from trajgen.engine.options import EngineOptions, StageOptions


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    training(folder).run()
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "checkpoints" / "final.safetensors")


def same(folder: Path, other: Path) -> None:
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
    at: int, kill: Callable[[], None], tmp_path: Path, whole: Path
) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="is whole") as caught:
        training(tmp_path, Numbers(at, kill)).run()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    newest = training(tmp_path).checkpoints.newest()
    assert str(newest) in str(caught.value) and newest.exists()
    again = Numbers()
    training(tmp_path, again, model=Toy(seed=99)).run(resume=True)
    assert [step for step, _ in again.asked] == list(range(at + 1, FIRST + SECOND))
    same(tmp_path, whole)


@pytest.mark.parametrize("at", POINTS.values(), ids=POINTS)
def test_crashed_and_resumed_is_uninterrupted(at: int, tmp_path: Path, whole: Path) -> None:
    with pytest.raises(CrashError):
        training(tmp_path, Numbers(at, crash)).run()
    training(tmp_path).run(resume=True)
    same(tmp_path, whole)


def test_interrupted_twice(tmp_path: Path, whole: Path) -> None:
    for at in (2, FIRST + 3):
        with pytest.raises(Interrupted):
            training(tmp_path, Numbers(at, term)).run(resume=True)
    training(tmp_path).run(resume=True)
    same(tmp_path, whole)


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    def twice() -> None:
        interrupt()
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        training(tmp_path, Numbers(3, twice)).run()


def test_a_line_torn_by_a_power_cut_is_dropped(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(CrashError):
        training(tmp_path, Numbers(FIRST + 7, crash)).run()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "two", "stage_in')
    training(tmp_path).run(resume=True)
    same(tmp_path, whole)


def test_a_finished_training_is_not_trained_again(tmp_path: Path, whole: Path) -> None:
    training(tmp_path).run()
    source, model = Numbers(), Toy(seed=99)
    assert training(tmp_path, source, model=model).run(resume=True) == []
    assert source.asked == []
    assert torch.equal(model.one.weight, weights(whole)["model.one.weight"])
    same(tmp_path, whole)


def test_a_planner_resumes_bit_for_bit(tmp_path: Path) -> None:
    def run(folder: Path, at: int | None, resume: bool = False) -> None:
        folder.mkdir(exist_ok=True)

        class Source(tiny.RandomSource):
            def batch(self, step: int, size: int, rank: int = 0) -> Any:
                if step == at:
                    term()
                return super().batch(step, size, rank)

        made = tiny.planner(return_target="quantile")
        stages = {name: StageOptions(steps=4, batch_size=8) for name in ("tokenizer", "return_target", "prior")}
        settings = EngineOptions(stages=stages, precision="float32", log_every=2, checkpoint_every=3)
        console = Console(quiet=True)
        Training(made, made.stages(), Source(), settings, folder, 0, torch.device("cpu"), console).run(resume=resume)

    run(tmp_path / "whole", None)
    for at in (1, 5, 9):
        with pytest.raises(Interrupted):
            run(tmp_path / str(at), at)
        run(tmp_path / str(at), None, resume=True)
        same(tmp_path / str(at), tmp_path / "whole")  # the usage of codes too, which is counted between two lines


@pytest.mark.parametrize("step", [1, FIRST + 4])
def test_a_loss_that_is_not_finite_stops_the_training(step: int, tmp_path: Path) -> None:
    stage = "one" if step < FIRST else "two"
    with pytest.raises(TrainingError) as caught:
        training(tmp_path, Numbers(poison=step)).run()
    said = str(caught.value)
    assert f"stage '{stage}'" in said and f"engine.stages.{stage}.lr" in said and "total" in said
    at = step - FIRST if stage == "two" else step
    assert f"step {at + 1}" in said or f"step {at + 2}" in said  # looked at every second step
    kept = training(tmp_path).checkpoints.intermediate()
    assert bool(kept) == (stage == "two")
    for path in kept:
        assert str(kept[-1]) in said
        assert all(v.isfinite().all() for v in load_file(path).values() if v.is_floating_point())


def test_a_gradient_that_is_not_finite_stops_it_before_a_checkpoint_is_spoilt(tmp_path: Path) -> None:
    class Root(nn.Module):
        """A finite loss whose gradient is not a number: the root of 0 times 0."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))

        def forward(self, batch: Tensor) -> Losses:
            return {"total": (self.weight.abs().sqrt() * 0.0).sum()}

    module = Root()
    setup = training(tmp_path, checkpoint_every=1, log_every=1)
    stage = Stage("one", module, list(module.parameters()))
    setup = Training(
        module, [stage], Numbers(), EngineOptions(checkpoint_every=1, log_every=1), tmp_path, 0,
        torch.device("cpu"), setup.console,
    )  # fmt: skip
    with pytest.raises(TrainingError, match="gradient_norm"):
        setup.run()
    assert setup.checkpoints.intermediate() == []


def test_metrics_are_one_object_a_line(whole: Path) -> None:
    lines = metrics(whole, timed=True)
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


def test_each_step_of_all_stages_has_its_own_batch(tmp_path: Path) -> None:
    source = Numbers()
    reports = training(tmp_path, source).run()
    assert source.asked == [(s, 8) for s in range(FIRST)] + [(FIRST + s, 4) for s in range(SECOND)]
    assert [(r.name, r.steps) for r in reports] == [("one", FIRST), ("two", SECOND)]
    assert all(r.windows_per_second > 0 and "total" in r.figures for r in reports)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_losses_are_followed_to_the_same_weights(tmp_path: Path) -> None:
    """Without dropout: compiled code draws its random numbers in another way."""
    made = []
    for name in ("plain", "compiled"):
        model = Toy()
        stages = model.stages()[:1]
        model.dropout, model.noise = nn.Dropout(0.0), 0.0
        how = options(stages={"one": StageOptions(steps=FIRST, batch_size=8)}, compile=name == "compiled")
        run = Training(model, stages, Numbers(), how, tmp_path / name, 7, torch.device("cpu"), Console(quiet=True))
        run.folder.mkdir()
        run.run()
        made.append(model.state_dict())
    assert all(torch.allclose(made[0][key], made[1][key], atol=1e-6) for key in made[0])


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"engine\.compile=false"):
        check_compiler()


@pytest.mark.parametrize(("budget", "steps"), [(2.0, (12, 18)), (0.5, (3, 4)), (0.01, (1, 1))])
def test_the_budget_multiplies_the_steps(budget: float, steps: tuple[int, int], tmp_path: Path) -> None:
    reports = training(tmp_path, budget=budget).run()
    assert tuple(r.steps for r in reports) == steps


def test_stage_two_leaves_what_stage_one_trained(tmp_path: Path) -> None:
    model = Toy()
    kept: dict[str, Tensor] = {}
    source = Numbers(FIRST, lambda: kept.update({k: v.clone() for k, v in model.state_dict().items()}))
    training(tmp_path, source, model=model).run()
    assert torch.equal(kept["one.weight"], model.one.weight)
    assert not torch.equal(kept["two.weight"], model.two.weight)
    assert torch.equal(Toy().two.weight, kept["two.weight"])  # and stage one left what stage two trains


def test_a_stage_without_parameters_is_passed_over(tmp_path: Path, whole: Path) -> None:
    setup = training(tmp_path)
    empty = Stage("empty", lambda batch: {}, [])
    setup.stages.insert(1, empty)
    setup.settings.insert(1, StageOptions(steps=SECOND))
    assert [report.name for report in setup.run()] == ["one", "two"]
    assert torch.equal(weights(tmp_path)["model.one.weight"], weights(whole)["model.one.weight"])


def test_another_seed_trains_otherwise(tmp_path: Path, whole: Path) -> None:
    other = training(tmp_path)
    other.seed = 8
    other.run()
    assert not torch.equal(weights(tmp_path)["model.one.weight"], weights(whole)["model.one.weight"])


def test_options_of_a_stage_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no stage 'three'") as caught:
        training(tmp_path, stages={"three": StageOptions()})
    assert "one, two" in str(caught.value.expected)


@pytest.mark.parametrize(
    "changes",
    [{"budget": 0.0}, {"log_every": 0}, {"checkpoint_every": 0}],
)
def test_engine_options_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        options(**changes)


@pytest.mark.parametrize(
    "changes",
    [{"steps": 0}, {"batch_size": 0}, {"lr": 0.0}, {"warmup": 1.0}, {"ema_decay": 1.0}, {"grad_clip": -1.0}],
)
def test_stage_options_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        StageOptions(**changes)
