"""Trainings and evaluations that take no time, in place of the real ones: what they write is made up."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny

from trajgen import experiments
from trajgen.config import Config, compose
from trajgen.core.errors import ConfigError
from trajgen.experiments.studies import cells
from trajgen.experiments.studies import run as study_run

Returns = Sequence[float | None]
SMALL = [
    "device=cpu",
    "tokenizer.width=8",
    "conditioner.width=8",
    "prior.width=8",
    "prior.heads=2",
    "decoder.width=8",
    "action.width=8",
    "return_target.width=8",
]
"""Overrides under which building a planner takes no time either."""


def evaluation(
    returns: Returns, controller: Returns | None = (4.0, 4.0), *, first: int = 0, **more: Any
) -> dict[str, Any]:
    """An evaluation.json whose figures follow from the returns of its episodes."""
    known = [value for value in returns if value is not None]
    figures: dict[str, Any] = {
        "env": "made up",
        "protocol": "made up",
        "seeds": [first, first + len(returns) - 1],
        "episode_returns": {"policy": list(returns)},
        "return": {"mean": sum(known) / len(known)},
        "ratio_to_controller": None,
        "success": None,
        "condition_error": {},
    }
    if controller is not None:
        figures["episode_returns"]["controller"] = list(controller)
        figures["ratio_to_controller"] = sum(known) / len(known) / 4.0
    return figures | more


@dataclass
class Made:
    """What was asked of the stand-ins, and how they answer."""

    trained: list[tuple[str, bool]] = field(default_factory=list)
    """Name of the run folder, and whether the training could go on from a checkpoint."""
    evaluated: list[str] = field(default_factory=list)
    returns: Callable[[Config], Returns] = lambda config: (float(config.seed), 2.0)
    figures: dict[str, Any] = field(default_factory=dict)
    """What every evaluation says besides."""
    failing: set[str] = field(default_factory=set)
    stopping: set[str] = field(default_factory=set)

    def train(self, config: Config, console: object, command: str | None = None) -> Path:
        folder = Path(str(config.run_dir))
        self.trained.append((folder.name, (folder / "config.json").exists() and config.resume))
        folder.mkdir(parents=True, exist_ok=True)
        written = {**config.to_plain(), "space": asdict(tiny.SPACE), "command": command}
        (folder / "config.json").write_text(json.dumps(written))
        if folder.name in self.stopping:
            raise KeyboardInterrupt
        if folder.name in self.failing:
            raise ConfigError("It does not work.", got=folder.name)
        line = {"stage": "prior", "step": 10, "seconds": 90.0, "total": 1.0}
        (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        (folder / "evaluation.json").write_text(json.dumps(evaluation(self.returns(config), **self.figures)))
        return folder

    def evaluate(self, folder: Path, console: object, *, overrides: Mapping[str, Any], out: Path, **_: Any) -> Any:
        self.evaluated.append(f"{folder.name}/{out.name}")
        figures = evaluation((1.0, 1.0), overrides=dict(overrides))
        out.mkdir(parents=True, exist_ok=True)
        (out / "evaluation.json").write_text(json.dumps(figures))
        return figures


@cache
def composed(words: tuple[str, ...]) -> Config:
    """A configuration, composed once: Hydra takes its time."""
    return compose(words)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Stand-ins for training and evaluation, in an empty current folder."""
    stand_ins = Made()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiments, "train", stand_ins.train)
    monkeypatch.setattr(experiments, "evaluate", stand_ins.evaluate)
    monkeypatch.setattr(study_run, "make_data", lambda *_: None)
    monkeypatch.setattr(cells, "compose", composed)
    return stand_ins
