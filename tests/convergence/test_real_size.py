"""MAGE learns real tasks at its real size, as the command line trains it. Nightly: a quarter of an hour."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from trajgen.cli import main
from trajgen.core.files import read_json
from trajgen.data import store

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3 * 3600)]
KITCHEN = os.environ.get("TRAJGEN_KITCHEN", "local/kitchen/scripted-complete-v0")
"""A set of demonstrations of all four tasks."""


def train(folder: Path, *words: str) -> dict[str, Any]:
    """The evaluation of a training."""
    main(["train", "recipe=mage", "seed=0", f"run_dir={folder}", *words])
    figures: dict[str, Any] = read_json(folder / "evaluation.json")
    return figures


def test_the_small_maze(tmp_path: Path) -> None:
    assert train(tmp_path / "run", "data=pointmaze/umaze-dwell")["ratio_to_controller"] >= 0.92


def test_the_kitchen(tmp_path: Path) -> None:
    if not store.folder(KITCHEN).is_dir():
        pytest.skip(f"there is no data set {KITCHEN}: TRAJGEN_KITCHEN names one of demonstrations of all four tasks")
    assert train(tmp_path / "run", "data=kitchen/complete", f"data.id={KITCHEN}")["return"]["mean"] >= 3.2
