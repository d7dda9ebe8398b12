"""Memory that runs out around the steps of a training; within them: ``tests/reliability/test_faults.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from toys import Numbers, training

from trajgen.core.errors import TrainingError
from trajgen.engine import loop
from trajgen.engine.loop import Training


def fail(*_: Any) -> NoReturn:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore about it")


def choosing_the_precision(trainer: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "choose_precision", fail)


def validation(trainer: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer.val_source = Numbers(0, fail)


def report(trainer: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer.stages[0] = replace(trainer.stages[0], report=fail)


@pytest.mark.parametrize(
    ("happens", "where", "windows", "fix"),
    [
        (choosing_the_precision, "before its first step", 4, "engine.accumulate=4, "),
        (validation, "validation after step 4", 8, ""),  # whose batches are not split
        (report, "figures for the log after step 2", 4, "engine.accumulate=4, "),
    ],
)
def test_memory_that_runs_out_between_steps_names_what_to_lower(
    happens: Callable[..., None], where: str, windows: int, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = training(tmp_path, accumulate=2)
    happens(trainer, monkeypatch)
    with pytest.raises(TrainingError) as caught:
        trainer.run()
    message = str(caught.value)
    assert f"room for {windows} windows; the last good checkpoint" in message
    assert f"stage 'one', {where}, cpu: CUDA out of memory. Tried to allocate 20.00 GiB.\n" in message
    assert f"fix:      {fix}engine.stages.one.batch_size=4 or a smaller model in a new run" in message
