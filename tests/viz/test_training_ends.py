"""A training ends with its pictures, whatever its folder is called."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from trajgen.cli import main


def test_a_run_folder_may_have_a_name_of_markup_or_formulas(
    tiny_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tiny_place / "datasets"))
    monkeypatch.chdir(tmp_path)
    words = [word for word in tiny.TRAIN if word.startswith(("data", "device", "evaluation", "engine.precision"))]
    main(["train", "recipe=bc", *words, "engine.budget=0.0005", "evaluation.latency=false", 'run_dir="a[/b]$x^{$"'])
    folder = tmp_path / "a[/b]$x^{$"
    assert (folder / "summary.md").exists() and (folder / "plots" / "training.png").exists()
