"""Which run ``resume=true`` goes on with, and what it leaves as it is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import points
import pytest
import tiny

from trajgen.config import Config, compose
from trajgen.core.errors import CheckpointError, ConfigError
from trajgen.core.files import read_json, write_json
from trajgen.experiments import run_folder

Train = Callable[..., Path]


def write_run(folder: Path, config: Config, *, finished: bool = True) -> Path:
    """A run folder without weights."""
    run_folder.write_config(folder, config, tiny.SPACE, None)
    for name in (run_folder.FINAL, "evaluation.json") if finished else ():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    return folder


def test_a_folder_of_a_training_that_was_killed_at_its_start_is_resumed(train: Train, lab: Path) -> None:
    config = compose(points.WORDS)
    folder = lab / "runs" / run_folder.run_name(config)
    folder.mkdir(parents=True)
    (folder / ".partial-config.json").write_text("{")
    (folder / "run.lock").write_text("")
    assert train("resume=true") == folder.relative_to(lab)
    with pytest.raises(ConfigError, match="to resume") as refused:
        train("resume=true", "seed=5")
    assert refused.value.fix is not None and "leave out resume=true" in refused.value.fix


def test_a_resumed_run_is_found_beside_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = compose(["seed=1", "resume=true"])
    name = run_folder.run_name(config)
    others = [tmp_path / "runs" / f"{name}{suffix}" for suffix in ("", "-2", "0", "-old")]
    for number, folder in enumerate(others):
        folder.mkdir(parents=True)
        run_folder.write_config(folder, replace(config, seed=1 if number == 1 else 5), tiny.SPACE, None)
    (others[0] / "config.json").write_text('{"format": 1}')  # which cannot be read
    shutil.copy(others[1] / "config.json", others[2])  # whose name is that of seed 10
    os.utime(others[2], (2**32, 2**32))
    (tmp_path / "runs" / f"{name}-3").write_text("no folder")
    monkeypatch.chdir(tmp_path)
    assert run_folder.find_folder(config) == Path("runs") / f"{name}-2"


def test_of_the_runs_of_a_training_the_one_evaluated_alike_goes_on_then_the_unfinished_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    config = compose(["seed=1", "resume=true"])
    other = replace(config, policy=replace(config.policy, seed=7))
    name = Path("runs") / run_folder.run_name(config)
    stopped = write_run(name, config, finished=False)
    finished = write_run(name.with_name(f"{name.name}-2"), other)
    os.utime(finished, (2**32, 2**32))
    assert run_folder.find_folder(config) == stopped
    assert run_folder.find_folder(other) == finished
    assert run_folder.find_folder(replace(config, policy=replace(config.policy, seed=8))) == stopped


@pytest.mark.parametrize("words", [["policy.seed=7"], ["policy.revise=2", "evaluation.protocol=first_hit"]])
def test_a_finished_run_keeps_its_options(words: list[str], lab: Path) -> None:
    config = compose(["run_dir=run", "resume=true"])
    folder, changed = write_run(Path("run"), config), compose(["run_dir=run", "resume=true", *words])
    assert run_folder.find_folder(config) == folder
    with pytest.raises(ConfigError, match="finished") as refusal:
        run_folder.find_folder(changed)
    assert refusal.value.fix == f"trajgen evaluate run=run {' '.join(words)}"
    (folder / "evaluation.json").unlink()  # which failed, or was killed
    assert run_folder.find_folder(changed) == folder


def test_a_run_that_is_not_there_yet_is_checked_as_a_new_one(train: Train) -> None:
    with pytest.raises(ConfigError, match="train_only=action without init"):
        train("run_dir=run", "train_only=[action]", "resume=true")
    with pytest.raises(CheckpointError, match="init names a run folder"):
        train("run_dir=run", "init=runs/nowhere", "resume=true")
    assert not Path("run").exists()


def test_a_part_that_was_trained_without_a_run_to_start_from_is_resumed(train: Train, stranger: Path) -> None:
    path = stranger / "config.json"
    write_json(path, read_json(path) | {"train_only": ["action"]})
    assert train("run_dir=received", "train_only=[action]", "resume=true") == Path("received")
