"""Validation: its losses, that nothing is learnt from it, and that the weights with the lowest loss are kept."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from toys import Numbers, Rows, interrupt, metrics, options

from trajgen.config import compose
from trajgen.core.errors import CheckpointError, ConfigError
from trajgen.core.stages import Stage
from trajgen.core.types import Losses
from trajgen.engine.checkpoint import Checkpoints
from trajgen.engine.loop import VAL_BATCHES, StoppedError, Training
from trajgen.engine.options import StageOptions
from trajgen.engine.step import seed_step
from trajgen.experiments import dry_run


class Pulled(nn.Module):
    """Two numbers that are drawn from 0 to the mean of their batches, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def stages(self) -> list[Stage]:
        numbers = {"one": self.one, "two": self.two}
        return [Stage(name, partial(squared_distance, number), [number]) for name, number in numbers.items()]


def squared_distance(number: nn.Parameter, batch: Rows) -> Losses:
    return {"total": (number - batch.values).square().mean()}


class Around(Numbers):
    mean = 3.0

    def batch(self, step: int, size: int, rank: int = 0) -> Rows:
        return super().batch(step, size).map(lambda values: values + self.mean)


class HeldOut(Around):
    """Windows with a mean that the trained number passes on its way."""

    mean = 1.0


def make(folder: Path, *, source: Around | None = None, validate: bool = True) -> Training:
    """A training whose second stage has a checkpoint every 2 steps, and is long and fast enough to overfit."""
    folder.mkdir(exist_ok=True)
    model = Pulled()
    stages = {
        "one": StageOptions(steps=2, batch_size=8),
        "two": StageOptions(steps=40, batch_size=8, lr=0.2, ema_decay=0.5),
    }
    settings = options(stages=stages, checkpoint_every=2)
    device, console, val_source = torch.device("cpu"), Console(quiet=True), HeldOut() if validate else None
    return Training(model, model.stages(), source or Around(), settings, folder, 7, device, console, val_source)


def held_out_loss(path: Path) -> float:
    """The loss of the second stage of weights on the held-out batches."""
    model = Pulled()
    model.load_state_dict({name.removeprefix("model."): v for name, v in load_file(path).items()})
    total = 0.0
    with torch.no_grad():
        for number in range(VAL_BATCHES):
            seed_step(7, number)
            total += float(model.stages()[1].loss(HeldOut().batch(number, 8))["total"]) / VAL_BATCHES
    return total


def validation_losses(folder: Path) -> dict[int, float]:
    """Those of the second stage by step."""
    return {v["step"]: v["val/total"] for v in metrics(folder) if v["stage"] == "two" and "val/total" in v}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("held_out") / "whole"
    make(folder).run()
    return folder


def test_the_best_weights_are_those_with_the_lowest_loss(uninterrupted: Path) -> None:
    losses = validation_losses(uninterrupted)
    assert list(losses) == list(range(2, 41, 2))
    first, *_, last = losses
    lowest = min(losses, key=lambda step: losses[step])
    assert first < lowest < last and losses[lowest] < losses[last] - 1e-3, "the test should overfit"
    folder = uninterrupted / "checkpoints"
    assert held_out_loss(folder / "best.safetensors") == pytest.approx(losses[lowest], rel=1e-6)
    assert held_out_loss(folder / "final.safetensors") == pytest.approx(losses[last], rel=1e-6)
    assert sorted(path.name for path in folder.iterdir()) == ["best.safetensors", "final.safetensors"]


def test_nothing_is_learnt_from_validation(uninterrupted: Path, tmp_path: Path) -> None:
    make(tmp_path / "without", validate=False).run()
    one, two = (
        load_file(folder / "checkpoints" / "final.safetensors") for folder in (uninterrupted, tmp_path / "without")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert validation_losses(tmp_path / "without") == {}
    with pytest.raises(CheckpointError, match="held out"):
        Checkpoints(tmp_path / "without" / "checkpoints").best()


@pytest.mark.parametrize("at", [5, 33])
def test_a_resumed_training_keeps_the_same_best(at: int, uninterrupted: Path, tmp_path: Path) -> None:
    """Stopped before the lowest loss, and after it: then nothing that comes is better than what was there."""
    folder = tmp_path / "stopped"
    with pytest.raises(StoppedError):
        make(folder, source=Around(at=2 + at, happens=interrupt)).run()
    make(folder).run(resume=True)
    assert metrics(folder) == metrics(uninterrupted)
    for name in ("best", "final"):
        one, two = (load_file(p / "checkpoints" / f"{name}.safetensors") for p in (folder, uninterrupted))
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_best_weights_need_held_out_episodes() -> None:
    with pytest.raises(ConfigError, match=r"data\.val_fraction=0"):
        dry_run(compose(["recipe=bc", "policy.weights=best"]))
    dry_run(compose(["recipe=bc", "policy.weights=best", "data.val_fraction=0.2"]))
