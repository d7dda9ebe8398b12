"""What the tests of reliability share: the toys of other tests, a small data set, a run folder."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "evaluation"))

import pytest
import tiny
from points import WORDS, record
from rich.console import Console

from trajgen import experiments
from trajgen.config import Config, compose
from trajgen.core.files import write_json
from trajgen.engine.checkpoint import Checkpoints


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in ``sets``, and in ``received`` a run folder: whole, with the weights of a small planner."""
    folder = tmp_path_factory.mktemp("originals")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder / "sets"))
        record()
    config = compose(WORDS)
    received = folder / "received"
    received.mkdir()
    space = dataclasses.replace(tiny.SPACE, action_low=(-float("inf"),) * 2, action_high=(float("inf"),) * 2)
    write_json(received / "config.json", {**config.to_plain(), "space": dataclasses.asdict(space)})
    write_json(received / "versions.json", {})
    Checkpoints(received / "checkpoints").save_final(experiments.build_planner(config, space))
    return folder


@pytest.fixture
def lab(originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with nothing in it but a data set."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(originals / "sets", tmp_path / "sets")
    return tmp_path


@pytest.fixture
def stranger(originals: Path, lab: Path) -> Path:
    """A run folder as a stranger sends it."""
    return Path(shutil.copytree(originals / "received", lab / "received"))


@pytest.fixture
def train(lab: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Trains in seconds, without an evaluation."""
    monkeypatch.setattr(experiments.training, "evaluate", lambda *_, **__: {})

    def run(*words: str, console: Console | None = None) -> Path:
        config: Config = compose([*WORDS, *words])
        return experiments.train(config, console or Console(quiet=True), "trajgen train …")

    return run
