"""The command that a run folder shows can be given again, from anywhere."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from trajgen import experiments
from trajgen.cli import main
from trajgen.config import Config, compose, data_files, recipe_files


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, str]]:
    """What was asked to be trained, with the command that is written down for it."""
    requested: list[tuple[Config, str]] = []

    def train(config: Config, console: Any, command: str) -> Path:
        requested.append((config, command))
        return Path("runs/none")

    monkeypatch.setattr(experiments, "train", train)
    return requested


@pytest.mark.parametrize("folder", ["lab", "a lab of one's own"])
def test_a_recipe_and_data_of_ones_own_are_named_by_whole_paths(
    folder: str, trained: list[tuple[Config, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab, other = tmp_path / folder, tmp_path / "other"
    lab.mkdir()
    other.mkdir()
    (lab / "mine.yaml").write_text(recipe_files()["mage"].read_text(encoding="utf-8"), encoding="utf-8")
    (lab / "maze.yml").write_text(data_files()["pointmaze/umaze"].read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(lab)
    main(["train", "recipe=mine.yaml", "data=../" + folder + "/maze.yml", "prior.depth=2", "seed=3"])
    (config, command), *_ = trained
    assert config.recipe == "mine" and config.seed == 3
    monkeypatch.chdir(other)
    words = shlex.split(command)
    assert words[:2] == ["trajgen", "train"] and {"prior.depth=2", "seed=3"} <= {*words}
    assert compose(words[2:]) == config
    main(words[1:])
    assert len(trained) == 2 and trained[1] == trained[0]


def test_a_shipped_recipe_keeps_its_name(trained: list[tuple[Config, str]]) -> None:
    main(["train", "recipe=flat", "data=pointmaze/umaze", "sampler=greedy"])
    assert trained[0][1] == "trajgen train recipe=flat data=pointmaze/umaze sampler=greedy"


def test_the_command_in_a_run_folder_is_the_one_that_made_it(run: Path) -> None:
    command = shlex.split(json.loads((run / "config.json").read_text())["command"])
    assert command[:3] == ["trajgen", "train", "recipe=mage"]
