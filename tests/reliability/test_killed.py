"""A run that is killed at any moment and resumed ends as one that never was: bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
SCRIPT = Path(__file__).with_name("killed.py")


def disturbed(folder: Path, kind: str, runs: int) -> dict[str, list[str]]:
    """Where each run was killed."""
    words = [sys.executable, str(SCRIPT), str(folder), kind, str(runs)]
    paths = [str(SCRIPT.parents[1]), str(SCRIPT.parents[1] / "engine"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    points: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return points


def lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run, but for the clock."""
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    timed = ("seconds", "windows_per_second")
    records = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in line.items() if k.partition("/")[0] not in timed} for line in records]


def check_same(folder: Path, uninterrupted: Path) -> None:
    """Weights, averages, what optimizers keep, and metrics; and nothing else is left."""
    names = sorted(str(path.relative_to(uninterrupted)) for path in uninterrupted.rglob("*.*"))
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) == names
    assert sum(name.startswith("end-") for name in names) >= 2 and "checkpoints/final.safetensors" in names
    for name in (name for name in names if name.endswith(".safetensors")):
        one, two = load_file(folder / name), load_file(uninterrupted / name)
        assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one), name
    assert lines(folder) == lines(uninterrupted)


@pytest.mark.parametrize(
    ("kind", "runs", "kills"),
    [
        ("toy", 12, 16),  # at each of its points once, and by the clock
        pytest.param("toy", 48, 70, marks=pytest.mark.nightly),
        pytest.param("planner", 8, 8, marks=pytest.mark.nightly),
    ],
)
def test_killed_and_resumed_is_undisturbed(kind: str, runs: int, kills: int, tmp_path: Path) -> None:
    killed = disturbed(tmp_path, kind, runs)
    assert len(killed) == runs
    assert sum(map(len, killed.values())) >= kills
    if kind == "toy":
        assert any("inside the write" in each for points in killed.values() for each in points)
    for name, points in killed.items():
        assert lines(tmp_path / name), points
        check_same(tmp_path / name, tmp_path / "whole")
