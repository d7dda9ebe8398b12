"""Loggers: they get the lines of metrics.jsonl; missing packages are reported before training; all are closed."""

from __future__ import annotations

import io
import json
import re
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from trajgen.core.errors import ConfigError
from trajgen.engine import loggers
from trajgen.engine.loggers import MetricsLog, check_loggers, open_loggers, stage_progress
from trajgen.experiments.evaluating import episode_progress

LINES: list[dict[str, Any]] = [
    {"stage": stage, "stage_index": index, "step": step, "seconds": 0.5, "total": 1.0 / step, "usage/scale_1": 0.5}
    for index, stage in enumerate(("first", "second"))
    for step in (5, 10)
]


class Wandb(SimpleNamespace):
    """A fake of the package that records its calls, and fails where told to."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__(options={}, logged=[], defined=[], finished=False, fails=fails)

    def init(self, **options: Any) -> Wandb:
        if self.fails:
            raise RuntimeError("no API key")
        self.options = options
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


def test_no_logger_is_opened_by_default(tmp_path: Path) -> None:
    with open_loggers([], tmp_path) as loggers:
        assert loggers == [] and list(tmp_path.iterdir()) == []


def test_unknown_loggers_and_missing_packages_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as caught:
        check_loggers(["tensorbord"])
    assert "tensorboard" in str(caught.value.fix)
    monkeypatch.setattr(loggers, "find_spec", lambda _: None)
    for name in loggers.PACKAGES:
        with pytest.raises(ConfigError, match=r"pip install 'trajgen\[log\]'"):
            check_loggers([name])


def test_wandb_gets_each_figure_over_the_steps_of_its_stage(tmp_path: Path, wandb: Wandb) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"seed": 3}')
    with open_loggers(["wandb_offline"], tmp_path / "run") as loggers:
        for line in [*LINES, {"stage": "first", "stage_index": 0, "step": 1, "a": float("nan"), "d": 2}]:
            MetricsLog(tmp_path / "metrics.jsonl").write(line, loggers)
        assert not wandb.finished
    assert wandb.finished
    assert wandb.options["mode"] == "offline" and wandb.options["name"] == "run"
    assert wandb.logged[1] == {"first/step": 10, "first/seconds": 0.5, "first/total": 0.1, "first/usage/scale_1": 0.5}
    assert [values.get("second/step") for values in wandb.logged] == [None, None, 5, 10, None]
    assert wandb.options["config"] == {"seed": 3}
    assert wandb.logged[-1] == {"first/step": 1, "first/d": 2.0}  # what is not a finite number is left out
    assert ("first/*", "first/step") in wandb.defined and ("second/*", "second/step") in wandb.defined


def test_a_resumed_training_goes_on_with_its_run_of_wandb(tmp_path: Path, wandb: Wandb) -> None:
    options = []
    for folder in ("a", "a", "b"):
        with open_loggers(["wandb"], tmp_path / folder):
            options.append(wandb.options)
    first, again, other = options
    assert first["id"] == again["id"] != other["id"] and again["resume"] == "allow" and again["mode"] is None


def test_loggers_are_closed_when_training_fails(tmp_path: Path, wandb: Wandb) -> None:
    with pytest.raises(ZeroDivisionError), open_loggers(["wandb"], tmp_path):
        raise ZeroDivisionError
    assert wandb.finished


def test_a_logger_that_cannot_be_opened_is_an_error(tmp_path: Path, wandb: Wandb) -> None:
    wandb.fails = True
    with pytest.raises(ConfigError, match="no API key") as caught, open_loggers(["wandb"], tmp_path):
        pytest.fail("it was opened")
    assert "wandb_offline" in str(caught.value.fix)


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="the extra 'log' is not installed: tensorboard is missing")
def test_tensorboard_holds_what_metrics_jsonl_holds(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_loggers(["tensorboard"], tmp_path) as loggers:
        for line in LINES:
            MetricsLog(tmp_path / "metrics.jsonl").write(line, loggers)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for key in ("total", "seconds", "usage/scale_1"):
        scalars = [(event.step, event.value) for event in events.Scalars(f"second/{key}")]
        expected = [(line["step"], pytest.approx(line[key])) for line in written if line["stage"] == "second"]
        assert scalars == expected


@pytest.mark.skipif(find_spec("wandb") is None, reason="the extra 'log' is not installed: wandb is missing")
def test_wandb_writes_offline_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    with open_loggers(["wandb_offline"], tmp_path, {"seed": 0}) as loggers:
        for line in LINES:
            MetricsLog(tmp_path / "metrics.jsonl").write(line, loggers)
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert file.stat().st_size > 500


@pytest.mark.parametrize(
    ("width", "name", "all_fit"),
    [(60, "prior", False), (60, "high_return_target", False), (80, "high_return_target", False), (100, "prior", True)],
)
def test_progress_fits_on_a_line_with_the_total_loss_first(width: int, name: str, all_fit: bool) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with stage_progress(console, name, 12000, 0) as show:
        show(1, None)
        show(12000, {"reconstruction": 0.25, "total": 0.5, "inverse": 0.2})
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9?;]*[a-zA-Z]", "", console.file.getvalue()))
    line = next(line for line in reversed(lines) if line.strip())
    assert len(line) <= width and re.search(rf"{name} .* 12000/12000 \S+ left total 0\.500", line)
    assert line.strip().endswith("total 0.500  reconstruction 0.250  inverse 0.200" if all_fit else "total 0.500")


def test_a_log_file_gets_ten_lines_with_the_time_left() -> None:
    console = Console(file=io.StringIO(), width=80)
    with stage_progress(console, "prior", 100, 0) as show:
        for step in range(1, 101):
            show(step, {"inverse": 0.25, "total": 1 / step} if step % 5 == 0 else None)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 10 and re.fullmatch(r"prior 10/100, 0:\d\d:\d\d left  total 0\.100  inverse 0\.250", lines[0])


@pytest.mark.parametrize(("width", "episodes", "max_steps"), [(60, 1000, 1000), (80, 48, 300), (100, 48, 300)])
def test_an_evaluation_shows_the_time_left_on_a_line(width: int, episodes: int, max_steps: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with episode_progress(console, episodes, max_steps, "controller") as show:
        show(0, 0)
        show(episodes * max_steps, 1)
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9?;]*[a-zA-Z]", "", console.file.getvalue()))
    line = next(line for line in reversed(lines) if line.strip())
    total = episodes * max_steps
    assert len(line) <= width and re.search(rf"controller .* {total}/{total} \S+ left 1/{episodes} ended", line)


def test_episodes_that_end_early_leave_no_time_behind() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    with episode_progress(console, 4, 10, "policy") as show:
        show(25, 4)
    assert "25/25 00:00 left 4/4 ended" in console.file.getvalue()


def test_an_evaluation_of_seconds_leaves_no_lines_in_a_log_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds, count in ((1.0, 0), (300.0, 10)):
        clock = iter(range(10**6))
        monkeypatch.setattr(time, "monotonic", lambda clock=clock, seconds=seconds: next(clock) * seconds / 10)
        console = Console(file=io.StringIO(), width=80)
        with episode_progress(console, 2, 10, "policy") as show:
            for step in range(1, 21):
                show(step, step // 20)
        lines = console.file.getvalue().splitlines()
        assert len(lines) == count and all(line.startswith("policy ") and " left  " in line for line in lines)
