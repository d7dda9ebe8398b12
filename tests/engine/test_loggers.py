"""Loggers: they get the lines of metrics.jsonl; what is missing is said before training; all are closed in the end."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trajgen.engine.metrics import MetricsLog

from trajgen.core.errors import ConfigError
from trajgen.engine import loggers
from trajgen.engine.loggers import check_loggers, opened

LINES: list[dict[str, object]] = [
    {"stage": stage, "stage_index": index, "step": step, "seconds": 0.5, "total": 1.0 / step, "usage/scale_1": 0.5}
    for index, stage in enumerate(("first", "second"))
    for step in (5, 10)
]


class Wandb(SimpleNamespace):
    """Stands for the package: keeps what it is told, and fails where it is told to."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__(asked={}, logged=[], defined=[], finished=False, fails=fails)

    def init(self, **asked: Any) -> Wandb:
        if self.fails:
            raise RuntimeError("no API key")
        self.asked = asked
        return self

    def define_metric(self, name: str, **how: Any) -> None:
        self.defined.append((name, how.get("step_metric")))

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    package = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.setattr(loggers, "find_spec", lambda name: name)
    return package


def test_nothing_is_opened_unasked(tmp_path: Path) -> None:
    with opened([], tmp_path) as found:
        assert found == []
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_logger_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        check_loggers(["tensorbord"])
    assert "tensorboard" in str(caught.value.fix) and caught.value.expected and caught.value.got


@pytest.mark.parametrize("name", loggers.PACKAGES)
def test_a_missing_package_is_said_with_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'trajgen\[log\]'") as caught:
        check_loggers([name])
    assert caught.value.expected and caught.value.got


def test_wandb_gets_each_figure_over_the_steps_of_its_stage(tmp_path: Path, wandb: Wandb) -> None:
    with opened(["wandb_offline"], tmp_path / "run", {"seed": 3}) as (logger,):
        for line in LINES:
            logger.write(line)
        assert not wandb.finished
    assert wandb.finished
    assert wandb.asked["mode"] == "offline" and wandb.asked["name"] == "run" and wandb.asked["config"] == {"seed": 3}
    assert wandb.logged[1] == {"first/step": 10, "first/seconds": 0.5, "first/total": 0.1, "first/usage/scale_1": 0.5}
    assert [values.get("second/step") for values in wandb.logged] == [None, None, 5, 10]
    assert ("first/*", "first/step") in wandb.defined and ("second/*", "second/step") in wandb.defined


def test_a_resumed_training_goes_on_with_its_run_of_wandb(tmp_path: Path, wandb: Wandb) -> None:
    asked = []
    for folder in ("a", "a", "b"):
        with opened(["wandb"], tmp_path / folder):
            asked.append(wandb.asked)
    first, again, other = asked
    assert first["id"] == again["id"] != other["id"] and again["resume"] == "allow" and again["mode"] is None


def test_what_is_not_a_finite_number_is_left_out(tmp_path: Path, wandb: Wandb) -> None:
    with opened(["wandb"], tmp_path) as (logger,):
        logger.write({"stage": "first", "step": 1, "a": float("nan"), "b": "text", "c": True, "d": 2})
    assert wandb.logged == [{"first/step": 1, "first/d": 2.0}]


def test_loggers_are_closed_when_training_fails(tmp_path: Path, wandb: Wandb) -> None:
    with pytest.raises(ZeroDivisionError), opened(["wandb"], tmp_path):
        raise ZeroDivisionError
    assert wandb.finished


def test_a_logger_that_cannot_be_opened_is_said(tmp_path: Path, wandb: Wandb) -> None:
    wandb.fails = True
    with pytest.raises(ConfigError, match="no API key") as caught, opened(["wandb"], tmp_path):
        pytest.fail("it was opened")
    assert "wandb_offline" in str(caught.value.fix)


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="the extra 'log' is not installed: tensorboard is missing")
def test_tensorboard_holds_what_metrics_jsonl_holds(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(tmp_path / "metrics.jsonl")
    with opened(["tensorboard"], tmp_path) as (logger,):
        for line in LINES:
            log.write(line)
            logger.write(line)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for key in ("total", "seconds", "usage/scale_1"):
        found = [(event.step, event.value) for event in events.Scalars(f"second/{key}")]
        expected = [(line["step"], pytest.approx(line[key])) for line in written if line["stage"] == "second"]
        assert found == expected


@pytest.mark.skipif(find_spec("wandb") is None, reason="the extra 'log' is not installed: wandb is missing")
def test_wandb_writes_offline_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    with opened(["wandb_offline"], tmp_path, {"seed": 0}) as (logger,):
        for line in LINES:
            logger.write(line)
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert file.stat().st_size > 500
