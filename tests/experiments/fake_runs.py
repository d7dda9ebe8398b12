"""Trainings and evaluations that take no time, in place of the real ones."""

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
from trajgen.experiments import cells, search, study

Returns = Sequence[float | None]
SMALL = [
    "device=cpu",
    *(f"{kind}.width=8" for kind in ("tokenizer", "conditioner", "prior", "decoder", "action", "return_target")),
    "prior.heads=2",
]
"""Overrides under which building a planner takes no time either."""


def evaluation(
    returns: Returns, controller: Returns | None = (4.0, 4.0), *, first: int = 0, **figures: Any
) -> dict[str, Any]:
    """An evaluation.json whose figures follow from the returns of its episodes."""
    finite = [value for value in returns if value is not None]
    mean = sum(finite) / len(finite) if finite else None
    result: dict[str, Any] = {
        "env": "fake",
        "protocol": "fake",
        "seeds": [first, first + len(returns) - 1],
        "episode_returns": {"policy": list(returns)},
        "return": {"mean": mean},
        "ratio_to_controller": None,
        "success": None,
        "condition_error": {},
    }
    if controller is not None:
        result["episode_returns"]["controller"] = list(controller)
        result["ratio_to_controller"] = None if mean is None else mean / 4.0
    return result | figures


@dataclass
class FakeRuns:
    """Records trainings and evaluations, and writes what they would write."""

    trained: list[tuple[str, bool]] = field(default_factory=list)
    """Name of the run folder, and whether the training could resume."""
    evaluated: list[str] = field(default_factory=list)
    returns: Callable[[Config], Returns] = lambda config: (float(config.seed), 2.0)
    figures: dict[str, Any] = field(default_factory=dict)
    """Further figures of every evaluation."""
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
def fake_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRuns:
    """Fakes of training and evaluation, in an empty current folder."""
    fakes = FakeRuns()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiments, "train", fakes.train)
    monkeypatch.setattr(experiments, "evaluate", fakes.evaluate)
    for module in (study, search):
        monkeypatch.setattr(module, "make_data", lambda *_: None)
    monkeypatch.setattr(study, "estimate_cell", lambda console, config: (600.0, "a training takes about 10 minutes"))
    for module in (cells, search):
        monkeypatch.setattr(module, "compose", composed)
    return fakes


def exit_code(*words: str) -> int:
    """Of the command line."""
    from trajgen.cli import main

    try:
        main(words)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0
