"""Held-out losses: what they are, that nothing is learnt from them, and that the weights with the lowest are kept."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn
from toys import SECOND, Numbers, interrupt, metrics, options, training

from trajgen.config import compose
from trajgen.core.errors import CheckpointError, ConfigError
from trajgen.core.types import Losses, Stage
from trajgen.engine.checkpoint import Checkpoints
from trajgen.engine.device import seed_step
from trajgen.engine.loop import VAL_BATCHES as BATCHES
from trajgen.engine.loop import Interrupted, Training
from trajgen.engine.options import StageOptions
from trajgen.experiments import dry_run


class Pulled(nn.Module):
    """Two numbers that are drawn from 0 to the mean of what they see, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def stages(self) -> list[Stage]:
        numbers = {"one": self.one, "two": self.two}
        return [Stage(name, partial(squared_distance, number), [number]) for name, number in numbers.items()]


def squared_distance(number: nn.Parameter, batch: Tensor) -> Losses:
    return {"total": (number - batch).square().mean()}


class Around(Numbers):
    """Numbers around a mean."""

    mean = 3.0

    def batch(self, step: int, size: int, rank: int = 0) -> Tensor:
        return super().batch(step, size) + self.mean


class Elsewhere(Around):
    """Held-out numbers around another mean, which what is learnt from the others passes on its way."""

    mean = 1.0


def begun(folder: Path, *, source: Around | None = None, held_out: bool = True) -> Training:
    """A training whose second stage is checkpointed every 2 steps, and is long and fast enough to learn too much."""
    folder.mkdir(exist_ok=True)
    model = Pulled()
    stages = {
        "one": StageOptions(steps=2, batch_size=8),
        "two": StageOptions(steps=40, batch_size=8, lr=0.2, ema_decay=0.5),
    }
    how = options(stages=stages, checkpoint_every=2)
    place, other = torch.device("cpu"), Elsewhere() if held_out else None
    return Training(
        model, model.stages(), source or Around(), how, folder, 7, place, Console(quiet=True), val_source=other
    )


def held_out_loss(path: Path) -> float:
    """The loss of the second stage of weights on the held-out batches."""
    model = Pulled()
    model.load_state_dict({name.removeprefix("model."): v for name, v in load_file(path).items()})
    loss = model.stages()[1].loss
    total = 0.0
    with torch.no_grad():
        for number in range(BATCHES):
            batch = Elsewhere().batch(number, 8)
            seed_step(7, number)
            total += float(loss(batch)["total"]) / BATCHES
    return total


def looked(folder: Path, stage: str = "two") -> dict[int, float]:
    """The held-out losses of a stage by step."""
    return {v["step"]: v["val/total"] for v in metrics(folder) if v["stage"] == stage and "val/total" in v}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("held_out") / "whole"
    begun(folder).run()
    return folder


def test_the_best_weights_are_those_with_the_lowest_loss(whole: Path) -> None:
    seen = looked(whole)
    assert list(seen) == list(range(2, 41, 2))
    first, *_, last = seen
    lowest = min(seen, key=lambda step: seen[step])
    assert first < lowest < last and seen[lowest] < seen[last] - 1e-3, "the test should learn too much"
    folder = whole / "checkpoints"
    assert held_out_loss(folder / "best.safetensors") == pytest.approx(seen[lowest], rel=1e-6)
    assert held_out_loss(folder / "final.safetensors") == pytest.approx(seen[last], rel=1e-6)
    assert sorted(path.name for path in folder.iterdir()) == ["best.safetensors", "final.safetensors"]


def test_nothing_is_learnt_from_looking(whole: Path, tmp_path: Path) -> None:
    begun(tmp_path / "blind", held_out=False).run()
    seen, unseen = (load_file(place / "checkpoints" / "final.safetensors") for place in (whole, tmp_path / "blind"))
    assert all(torch.equal(seen[name], unseen[name]) for name in seen)
    assert looked(tmp_path / "blind") == {}
    with pytest.raises(CheckpointError, match="held out"):
        Checkpoints(tmp_path / "blind" / "checkpoints").best()


@pytest.mark.parametrize("at", [5, 33])
def test_a_resumed_training_keeps_the_same_best(at: int, whole: Path, tmp_path: Path) -> None:
    """Stopped before the lowest loss, and after it: then nothing that comes is better than what was there."""
    place = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        begun(place, source=Around(at=2 + at, happens=interrupt)).run()
    begun(place).run(resume=True)
    assert metrics(place) == metrics(whole)
    for name in ("best", "final"):
        one, two = (load_file(p / "checkpoints" / f"{name}.safetensors") for p in (place, whole))
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_best_weights_need_held_out_episodes() -> None:
    with pytest.raises(ConfigError, match=r"data\.val_fraction=0"):
        dry_run(compose(["recipe=bc", "policy.weights=best"]))
    dry_run(compose(["recipe=bc", "policy.weights=best", "data.val_fraction=0.2"]))


def test_no_line_of_metrics_is_added_where_nothing_is_held_out(tmp_path: Path) -> None:
    training(tmp_path, checkpoint_every=3).run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["stage"] == "two"] == [2, 4, 6, 8, SECOND]
