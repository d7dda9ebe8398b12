"""Windows that are prepared before a stage: which ones, how often, and that a resumed training has the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from toys import FIRST, SECOND, Numbers, Rows, Toy, interrupt, options, training

from trajgen.core.errors import ConfigError
from trajgen.core.stages import Stage
from trajgen.core.types import Losses
from trajgen.engine import prepared
from trajgen.engine.loop import StoppedError
from trajgen.engine.options import EngineOptions, StageOptions
from trajgen.engine.prepared import Prepared

BATCHES = 3


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "LARGEST", 4)


class Frozen(Toy):
    """A toy whose second stage reads the noisy output of the first, frozen part."""

    def __init__(self, interrupted_at: int | None = None) -> None:
        super().__init__()
        self.prepared: list[Rows] = []
        self.read: list[Tensor] = []
        self.interrupted_at = interrupted_at

    def stages(self) -> list[Stage]:
        first, second = super().stages()
        return [first, replace(second, loss=self.second_loss, frozen=[self.one], prepare=self.prepare)]

    def prepare(self, batch: Rows) -> Rows:
        assert not torch.is_grad_enabled() and not self.one.training
        self.prepared.append(Rows(self.one(batch.values) + torch.randn(4)))
        return self.prepared[-1]

    def second_loss(self, batch: Rows) -> Losses:
        self.read.append(batch.values)
        if len(self.read) == self.interrupted_at:
            interrupt()
        return self.loss(self.two, batch)


def prepared_options(windows: int) -> EngineOptions:
    usual = options()
    return replace(usual, stages={**usual.stages, "two": replace(usual.stages["two"], prepared_windows=windows)})


def run(
    folder: Path,
    source: Numbers,
    windows: int = 4 * BATCHES,
    *,
    resume: bool = False,
    model: Frozen | None = None,
) -> Frozen:
    model = model or Frozen()
    training(folder, source, model=model, stages=prepared_options(windows).stages).run(resume=resume)
    return model


def test_a_stage_draws_from_windows_that_were_prepared_once(tmp_path: Path) -> None:
    source = Numbers()
    model = run(tmp_path, source)
    assert source.requests == [(step, 8) for step in range(FIRST)] + [(FIRST + i, 4) for i in range(BATCHES)]
    rows = torch.cat([batch.values for batch in model.prepared])
    drawn = torch.cat(model.read)
    assert len(rows) == 4 * BATCHES and len(drawn) == 4 * SECOND
    assert all((rows == row).all(1).any() for row in drawn)
    assert len({tuple(row.tolist()) for row in drawn}) > 4  # of all batches, not of one


@pytest.mark.parametrize("windows", [0, 4 * SECOND])
def test_nothing_is_prepared_where_that_would_not_be_fewer(tmp_path: Path, windows: int) -> None:
    source = Numbers()
    model = run(tmp_path, source, windows)
    assert not model.prepared
    assert [step for step, _ in source.requests] == list(range(FIRST + SECOND))


@pytest.mark.parametrize("at", [FIRST + 1, FIRST + BATCHES - 1])
def test_a_training_stopped_while_preparing_ends_as_one_that_was_not(tmp_path: Path, at: int) -> None:
    uninterrupted, stopped = tmp_path / "uninterrupted", tmp_path / "stopped"
    run(uninterrupted, Numbers())
    with pytest.raises(StoppedError, match="while preparing stage 'two'"):
        run(stopped, Numbers(at=at, happens=interrupt))
    run(stopped, Numbers(), resume=True)
    check_same(uninterrupted, stopped)


def test_a_training_stopped_between_steps_prepares_the_same_windows_again(tmp_path: Path) -> None:
    uninterrupted, stopped = tmp_path / "uninterrupted", tmp_path / "stopped"
    run(uninterrupted, Numbers())
    with pytest.raises(StoppedError, match="after step"):
        run(stopped, Numbers(), model=Frozen(interrupted_at=6))
    run(stopped, Numbers(), resume=True)
    check_same(uninterrupted, stopped)


def check_same(folder: Path, other: Path) -> None:
    one, two = (load_file(each / "checkpoints" / "final.safetensors") for each in (folder, other))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_the_last_batch_is_the_rest(tmp_path: Path) -> None:
    source = Numbers()
    run(tmp_path, source, 10)
    assert source.requests[FIRST:] == [(FIRST, 4), (FIRST + 1, 4), (FIRST + 2, 2)]


def test_a_draw_is_a_function_of_seed_and_step() -> None:
    windows: Any = Rows(torch.arange(40.0).reshape(10, 4))
    one, two, other = (Prepared(windows, seed) for seed in (7, 7, 8))
    one.batch(1, 5)
    first = one.batch(3, 5).tensors()[0]
    assert torch.equal(first, two.batch(3, 5).tensors()[0])
    assert not torch.equal(first, one.batch(4, 5).tensors()[0])
    assert not torch.equal(first, other.batch(3, 5).tensors()[0])


def test_a_stage_that_computes_nothing_before_it_is_refused() -> None:
    usual = options()
    stages = {**usual.stages, "one": replace(usual.stages["one"], prepared_windows=8)}
    with pytest.raises(ConfigError, match="Nothing of stage 'one' can be computed before it"):
        options(stages=stages).of(Toy().stages())


def test_levels_that_compute_nothing_before_them_are_refused_under_their_common_name() -> None:
    levels = [replace(stage, name=f"{stage.name}_level", options_of="both") for stage in Toy().stages()]
    both = EngineOptions(stages={"both": StageOptions(prepared_windows=8)})
    with pytest.raises(ConfigError, match="Nothing of stage 'both' can be computed before it"):
        both.of(levels)
    both.of([levels[0], replace(levels[1], prepare=lambda batch: batch)])


def test_timed_steps_bear_their_share_of_the_preparation(tmp_path: Path) -> None:
    model = Frozen()
    timed = training(tmp_path, model=model, stages=prepared_options(4 * BATCHES).stages).time_steps(2)
    assert len(model.prepared) == 2  # the second one is timed
    assert all(step["data"] > 0 and step["step"] >= step["data"] for step in timed["two"])
