"""A training says when other work slows it down, and what helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import toys

from trajgen.engine import pace
from trajgen.engine.pace import Pace, busy_machine


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine of two cores with a load of 7.9, on which torch has two threads."""
    monkeypatch.setattr(pace.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(pace.os, "getloadavg", lambda: (7.9, 1.0, 1.0))
    monkeypatch.setattr(pace.torch, "get_num_threads", lambda: 2)
    return monkeypatch


def reports(patch: pytest.MonkeyPatch, *seconds: float) -> list[str]:
    """What is said of ten steps each that took so long, with pauses of 100 s between them."""
    now = [0.0]
    patch.setattr(pace.time, "perf_counter", lambda: now[0])
    lines: list[str] = []
    watched = Pace(lines.append)
    for number, took in enumerate(seconds):
        watched.resume(10 * number)
        now[0] += took
        watched.pause(10 * number + 10)
        now[0] += 100
    return lines


def test_steps_that_become_slow_are_said_once(busy: pytest.MonkeyPatch) -> None:
    assert reports(busy, 2, 1, 2.9, 1.1) == []
    (line,) = reports(busy, 2, 1, 20, 20, 19, 1, 20, 1, 30)
    assert line.startswith("Steps take 20 times as long as before; its load is 7.9, with 2 cores")
    assert "OMP_NUM_THREADS=1" in line


def test_a_moment_is_not_compared(busy: pytest.MonkeyPatch) -> None:
    assert reports(busy, 0.1, 0.9) == []


def test_a_busy_machine_is_said_where_fewer_threads_help(busy: pytest.MonkeyPatch) -> None:
    assert "its load is 7.9, with 2 cores" in str(busy_machine()) and "OMP_NUM_THREADS=1" in str(busy_machine())
    busy.setattr(pace.torch, "get_num_threads", lambda: 1)
    assert busy_machine() is None
    busy.setattr(pace.torch, "get_num_threads", lambda: 2)
    busy.setattr(pace.os, "getloadavg", lambda: (1.9, 8.0, 8.0))
    assert busy_machine() is None


def test_a_training_says_so(busy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = toys.training(tmp_path)
    training.console.quiet = False
    training.run()
    assert "Other programs keep this machine busy" in capsys.readouterr().out.replace("\n", " ")
    assert torch.get_num_threads() == 2  # the fixture's
