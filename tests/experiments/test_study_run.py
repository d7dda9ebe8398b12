"""Running a study, with trainings that take no time: finished cells are kept, and other folders are refused."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_runs import SMALL, FakeRuns, exit_code

from trajgen.config import compose
from trajgen.core.errors import CheckpointError
from trajgen.experiments import equal_time
from trajgen.experiments.equal_time import Cost, equal_steps, read_costs

BASE = ["recipe=mage", *SMALL, "workers=1", "seeds=[0,1]"]
FOUR = ["prior.depth-1-s0", "prior.depth-1-s1", "prior.depth-2-s0", "prior.depth-2-s1"]
STUDY = Path("studies/prior.depth")


def study(*words: str) -> int:
    return exit_code("study", *BASE, "axis=[prior.depth=1,2]", *words)


def results() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((STUDY / "results.json").read_text())
    return read


def test_every_cell_is_trained_once_and_kept(fake_runs: FakeRuns) -> None:
    assert study() == 0
    assert fake_runs.trained == [(name, False) for name in FOUR]
    assert {path.name for path in STUDY.iterdir()} == {
        "cells", "commands.sh", "jobs", "plot.png", "results.json", "study.json", "table.csv", "table.md",
    }  # fmt: skip
    assert study() == 0 and len(fake_runs.trained) == 4
    assert study("seeds=[0,1,2]") == 0
    assert [name for name, _ in fake_runs.trained[4:]] == ["prior.depth-1-s2", "prior.depth-2-s2"]
    assert results()["seeds"] == [0, 1, 2]
    assert study("seeds=[0,1,2]", "format=svg", "title=Depth", "labels={prior.depth=2: two layers}") == 0
    text = (STUDY / "plot.svg").read_text()
    assert "Depth" in text and "two layers" in text and len(fake_runs.trained) == 6


def test_a_study_says_what_it_will_do_and_about_how_long_it_takes(
    fake_runs: FakeRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study("engine.stages.prior.steps=1500") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "prior.depth: 4 cells, 4 trainings to do, one at a time"
    assert lines[1].startswith("To train, each: ") and "prior 1,500," in lines[1]
    assert "4 trainings like that, one at a time: about 40 minutes, plus evaluations" in lines  # of ten each
    counts = [line.rpartition("(")[2] for line in lines if "-s0: trained" in line or "-s1: trained" in line]
    assert [count[:6] for count in counts] == ["1 of 4", "2 of 4", "3 of 4", "4 of 4"]
    assert counts[0].endswith("left)") and counts[3] == "4 of 4)"


def test_a_stopped_study_resumes(fake_runs: FakeRuns) -> None:
    fake_runs.stopping = {FOUR[1]}
    assert study() == 130
    assert [name for name, _ in fake_runs.trained] == FOUR[:2]  # none is begun after it
    fake_runs.stopping = set()
    assert study() == 0
    assert fake_runs.trained[2:] == [(FOUR[1], True), (FOUR[2], False), (FOUR[3], False)]


def test_a_failing_cell_does_not_stop_the_others(fake_runs: FakeRuns, capsys: pytest.CaptureFixture[str]) -> None:
    fake_runs.failing = {FOUR[0]}
    assert study() == 1
    assert "1 of 4 cells failed" in capsys.readouterr().err
    assert [name for name, _ in fake_runs.trained] == FOUR
    assert list(results()["failed"]) == [FOUR[0]] and "It does not work." in results()["failed"][FOUR[0]]
    assert [row["seeds"] for row in results()["rows"]] == [[1], [0, 1]]
    table = (STUDY / "table.md").read_text()
    assert "## Failed" in table and "It does not work." in table and "1 of 2" in table
    assert "ConfigError" in (STUDY / "jobs" / f"{FOUR[0]}.log").read_text()
    fake_runs.failing = set()
    assert study() == 0
    assert fake_runs.trained[4:] == [(FOUR[0], True)] and results()["failed"] == {}


def test_a_variant_that_cannot_be_built_fails_alone(fake_runs: FakeRuns, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("study", *BASE, "axis=[schedule=single,schedule=explicit schedule.lengths=[3]]") == 1
    assert "2 of 4 cells failed" in capsys.readouterr().err
    assert {name for name, _ in fake_runs.trained} == {"schedule-single-s0", "schedule-single-s1"}


CHANGES = {
    "prior.heads=1": "prior.heads=2 there, 1 here in variant 'prior.depth=1'",
    "engine.budget=2": "engine.budget=1.0 there, 2.0 here in variant",
    "evaluation.episodes=3": "evaluation.episodes=48 there, 3 here in variant",
    "axis=[sampler=greedy,top_k]": "variant 'prior.depth=1'",
    "reference=prior.depth=2": "reference",
    "equal=[time]": "equal",
    "seeds=[1]": "seeds",
}


def test_another_definition_is_refused(fake_runs: FakeRuns, capsys: pytest.CaptureFixture[str]) -> None:
    assert study() == 0
    before = {path: path.read_bytes() for path in STUDY.rglob("*") if path.is_file()}
    for change, message in CHANGES.items():
        capsys.readouterr()
        assert study(f"out={STUDY}", change) == 1
        error = capsys.readouterr().err
        assert message in error and "out=ANOTHER" in error
    assert before == {path: path.read_bytes() for path in STUDY.rglob("*") if path.is_file()}
    assert len(fake_runs.trained) == 4


def test_a_folder_of_something_else_is_refused(fake_runs: FakeRuns, capsys: pytest.CaptureFixture[str]) -> None:
    STUDY.mkdir(parents=True)
    (STUDY / "thesis.tex").touch()
    assert study() == 1
    assert "thesis.tex" in capsys.readouterr().err and not fake_runs.trained


def test_a_kill_before_the_definition_is_written_leaves_a_folder_that_can_be_used(fake_runs: FakeRuns) -> None:
    STUDY.mkdir(parents=True)
    for name in (".partial-study.json", "study.lock", "study.lock.holder"):
        (STUDY / name).touch()
    assert study() == 0


HOLD = """
import sys, time
from pathlib import Path
from trajgen.core.files import file_lock
with file_lock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_study_in_the_folder_is_refused(fake_runs: FakeRuns, capsys: pytest.CaptureFixture[str]) -> None:
    STUDY.mkdir(parents=True)
    command = [sys.executable, "-c", HOLD, str(STUDY / "study.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
            assert study() == 1
            assert f"held by process {holder.pid}" in capsys.readouterr().err and not fake_runs.trained
        finally:
            holder.send_signal(signal.SIGKILL)
    assert study() == 0


def test_a_cell_s_folder_with_another_run_fails_and_is_left_alone(fake_runs: FakeRuns) -> None:
    assert study() == 0
    path = STUDY / "cells" / FOUR[0] / "config.json"
    other = json.loads(path.read_text()) | {"recipe": "other"}
    path.write_text(json.dumps(other))
    assert study() == 1
    assert json.loads(path.read_text()) == other and len(fake_runs.trained) == 4
    assert "another recipe" in results()["failed"][FOUR[0]]


def test_options_that_came_later_do_not_make_it_another_study(fake_runs: FakeRuns) -> None:
    assert study() == 0
    for path in [STUDY / "study.json", *STUDY.rglob("config.json")]:  # as they were before these options
        plain = json.loads(path.read_text())
        for config in plain.get("composed", {"run": plain}).values():
            del config["engine"]["accumulate"], config["policy"]["backend"]
        path.write_text(json.dumps(plain))
    assert study() == 0
    assert len(fake_runs.trained) == 4 and not results()["failed"]


def test_evaluations_alone_need_one_training(fake_runs: FakeRuns) -> None:
    axes = ["evaluate=[sampler.temperature=0.25,1.0]", "evaluate=[policy.replan_interval=4,2]"]
    for _ in range(2):
        assert exit_code("study", *BASE, *axes, "out=samplers") == 0
        run = "sampler.temperature-0.25-policy.replan_interval-4"
        assert [name for name, _ in fake_runs.trained] == [f"{run}-s0", f"{run}-s1"]
        assert len(fake_runs.evaluated) == 6
    lines = Path("samplers/commands.sh").read_text().splitlines()
    assert sum(line.startswith("trajgen train ") for line in lines) == 2
    assert sum(line.startswith("trajgen evaluate ") for line in lines) == 6


REFERENCE = Cost(
    {"tokenizer": 0.1, "return_target": 0.02, "prior": 0.1}, {"tokenizer": 100, "return_target": 100, "prior": 200}
)  # 10 + 2 + 20 s
HALF = Cost({"prior": 0.1}, {"prior": 200}, budget=0.5)  # 10 s


@pytest.mark.parametrize(
    ("cost", "reference", "steps"),
    [
        (Cost({**REFERENCE.seconds, "prior": 0.04}, REFERENCE.steps), REFERENCE, {"prior": 500}),  # 20 s
        (Cost({"tokenizer": 0.104, "return_target": 0.0203, "prior": 0.05}, REFERENCE.steps), REFERENCE,
         {"prior": round((32 - 10.4 - 2.03) / 0.05)}),
        (Cost({"policy": 0.01}, {"policy": 1000}), REFERENCE, {"policy": 3200}),
        (Cost({"tokenizer": 0.2, "prior": 0.2}, {"tokenizer": 100, "prior": 200}), REFERENCE,
         {"tokenizer": 53, "prior": 107}),  # 60 s: all by 32 / 60
        (REFERENCE, REFERENCE, {}),
        (Cost({"prior": 0.05}, {"prior": 200}, budget=0.5), HALF, {"prior": 400}),
        (Cost({"prior": 0.1}, {"prior": 200}), HALF, {"prior": 100}),
        (Cost({"prior": 100.0}, {"prior": 3}), HALF, {"prior": 1}),  # never 0
    ],
)  # fmt: skip
def test_equal_steps_scale_the_stages_that_differ(cost: Cost, reference: Cost, steps: dict[str, int]) -> None:
    assert equal_steps(cost, reference) == steps


def test_at_equal_time_the_steps_are_measured_once(fake_runs: FakeRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def measure(config: Any, steps: int, console: object) -> Cost:
        depth = config.components["prior"]["depth"]
        measured.append(depth)
        return Cost({"prior": 0.1 * depth}, {"prior": config.engine.stages["prior"].steps}, config.engine.budget)

    monkeypatch.setattr(equal_time, "measure", measure)
    fake_runs.failing = {"prior.depth-2-equal-time-s1"}
    words = "equal=[steps,time]", "engine.stages.prior.steps=100"
    assert study(*words) == 1
    steps = json.loads((STUDY / "steps.json").read_text())["steps"]
    assert steps == {"prior.depth=1": {}, "prior.depth=2": {"prior": 50}}
    fake_runs.failing = set()
    assert study(*words) == 0
    assert measured == [1, 2]
    names = [name for name, _ in fake_runs.trained]
    assert names == [*FOUR, "prior.depth-2-equal-time-s0", *["prior.depth-2-equal-time-s1"] * 2]
    line = next(s for s in (STUDY / "commands.sh").read_text().splitlines() if "equal-time-s1" in s)
    config = compose(shlex.split(line)[2:])
    assert config.engine.stages["prior"].steps == 50 and config.components["prior"]["depth"] == 2
    assert [(row["name"], row["equal"]) for row in results()["rows"]] == [
        ("prior.depth=1", "steps"),
        ("prior.depth=2", "steps"),
        ("prior.depth=2 (equal time)", "time"),
    ]


@pytest.mark.parametrize(
    "costs",
    [
        *(None, [], {"a": 1}, {"a": {"seconds": {}, "steps": {}}}, {"a": {"seconds": {"prior": 1.0}, "steps": {}}}),
        {"a": {"seconds": {"prior": 0.0}, "steps": {"prior": 5}}},
        {"a": {"seconds": {"prior": float("nan")}, "steps": {"prior": 5}}},
        {"a": {"seconds": {"prior": 1.0}, "steps": {"prior": 10**400}}},
        {"a": {"seconds": {"prior": 1.0}, "steps": {"prior": 5}, "more": 1}},
    ],
)
def test_costs_that_no_study_wrote_are_refused(costs: Any, tmp_path: Path) -> None:
    (tmp_path / "steps.json").write_text(json.dumps({"costs": costs}))
    with pytest.raises(CheckpointError, match=r"steps\.json"):
        read_costs(tmp_path / "steps.json")


def test_what_cannot_be_measured_has_no_cell_of_equal_time(
    fake_runs: FakeRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(config: Any, steps: int, console: object) -> Cost:
        if config.components["prior"]["depth"] == 2:
            raise RuntimeError("too deep")
        return Cost({"prior": 0.1}, {"prior": 100})

    monkeypatch.setattr(equal_time, "measure", measure)
    assert study("equal=[time]") == 1
    assert [name for name, _ in fake_runs.trained] == ["prior.depth-1-equal-time-s0", "prior.depth-1-equal-time-s1"]
    assert "too deep" in results()["failed"]["prior.depth=2 (equal time)"]
