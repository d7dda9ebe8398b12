"""The machinery of a study, with trainings that take no time: what is done, what is kept, and what is refused."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from made_up import SMALL, Made

from trajgen.cli import main
from trajgen.config import compose
from trajgen.experiments.studies import cost
from trajgen.experiments.studies.cost import Cost, equal_steps
from trajgen.experiments.studies.run import choose_launcher

WORDS = ["recipe=mage", *SMALL, "workers=1", "axis=[prior.depth=1,2]", "seeds=[0,1]"]
FOUR = ["prior.depth-1-s0", "prior.depth-1-s1", "prior.depth-2-s0", "prior.depth-2-s1"]
STUDY = Path("studies/prior.depth")


def study(*words: str) -> int:
    """The exit code of ``trajgen study``."""
    try:
        main(["study", *WORDS, *words])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def results() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((STUDY / "results.json").read_text())
    return read


def test_every_cell_is_trained_once_and_kept(made: Made) -> None:
    assert study() == 0
    assert made.trained == [(name, False) for name in FOUR]
    assert {path.name for path in STUDY.iterdir()} == {
        "cells", "commands.sh", "jobs", "plot.png", "results.json", "study.json", "table.md",
    }  # fmt: skip
    assert study() == 0 and len(made.trained) == 4
    assert study("seeds=[0,1,2]") == 0
    assert [name for name, _ in made.trained[4:]] == ["prior.depth-1-s2", "prior.depth-2-s2"]
    assert results()["seeds"] == [0, 1, 2]


def test_a_stopped_study_goes_on(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    made.stopping = {FOUR[1]}
    assert study() == 130
    assert "goes on" in capsys.readouterr().err
    assert [name for name, _ in made.trained] == FOUR[:2]  # none was begun after it
    made.stopping = set()
    assert study() == 0
    assert made.trained[2:] == [(FOUR[1], True), (FOUR[2], False), (FOUR[3], False)]


def test_a_failing_cell_does_not_stop_the_others(
    made: Made,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made.failing = {FOUR[0]}
    assert study() == 1
    assert "1 of 4 cells failed" in capsys.readouterr().err
    assert [name for name, _ in made.trained] == FOUR
    found = results()
    assert list(found["failed"]) == [FOUR[0]] and "It does not work." in found["failed"][FOUR[0]]
    assert [row["seeds"] for row in found["rows"]] == [[1], [0, 1]]
    table = (STUDY / "table.md").read_text()
    assert "## Failed" in table and "It does not work." in table and "1 of 2" in table
    made.failing = set()
    assert study() == 0
    assert made.trained[4:] == [(FOUR[0], True)] and results()["failed"] == {}


def test_a_variant_that_cannot_be_built_fails_and_the_other_is_trained(
    made: Made,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [word for word in WORDS if not word.startswith("axis=")]
    with pytest.raises(SystemExit):
        main(["study", *words, "axis=[schedule=single,explicit schedule.lengths=[3]]", "out=one"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["study", *words, "axis=[schedule=single,schedule=explicit schedule.lengths=[3]]", "out=two"])
    assert ended.value.code == 1 and "2 of 4 cells failed" in capsys.readouterr().err
    assert {name for name, _ in made.trained} == {"schedule-single-s0", "schedule-single-s1"}


CHANGES = {
    "prior.heads=1": "prior of variant 'prior.depth=1'",
    "engine.budget=2": "engine of variant",
    "evaluation.episodes=3": "evaluation of variant",
    "axis=[sampler=greedy,top_k]": "variant 'prior.depth=1'",
    "reference=prior.depth=2": "reference",
    "equal=[time]": "equal",
    "seeds=[1]": "seeds",
}


def test_another_definition_is_refused_and_nothing_is_overwritten(
    made: Made,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert study() == 0
    before = {path: path.read_bytes() for path in STUDY.rglob("*") if path.is_file()}
    for change, said in CHANGES.items():
        capsys.readouterr()
        assert study(f"out={STUDY}", change) == 1
        error = capsys.readouterr().err
        assert said in error and "out=ANOTHER" in error
    assert before == {path: path.read_bytes() for path in STUDY.rglob("*") if path.is_file()}
    assert len(made.trained) == 4


def test_a_folder_of_something_else_is_refused(
    made: Made,
    capsys: pytest.CaptureFixture[str],
) -> None:
    STUDY.mkdir(parents=True)
    (STUDY / "thesis.tex").touch()
    assert study() == 1
    assert "thesis.tex" in capsys.readouterr().err and not made.trained


def test_a_cell_s_folder_with_another_run_fails_and_is_left_alone(made: Made) -> None:
    assert study() == 0
    path = STUDY / "cells" / FOUR[0] / "config.json"
    other = json.loads(path.read_text()) | {"recipe": "other"}
    path.write_text(json.dumps(other))
    assert study() == 1
    assert json.loads(path.read_text()) == other and len(made.trained) == 4
    assert "another recipe" in results()["failed"][FOUR[0]]


def test_options_that_came_later_do_not_make_it_another_study(made: Made) -> None:
    assert study() == 0
    for path in STUDY.rglob("*.json"):  # as they were before engine.accumulate and policy.backend
        text = path.read_text()
        if path.name in ("config.json", "study.json"):
            plain = json.loads(text)
            for one in plain.get("composed", {"run": plain}).values():
                del one["engine"]["accumulate"], one["policy"]["backend"]
            path.write_text(json.dumps(plain))
    assert study() == 0
    assert len(made.trained) == 4 and not results()["failed"]


def test_evaluations_alone_need_one_training(made: Made) -> None:
    words = [word for word in WORDS if not word.startswith("axis=")]
    main(
        [
            "study",
            *words,
            "evaluate=[sampler.temperature=0.5,1.0]",
            "evaluate=[policy.replan_interval=4,2]",
            "out=looks",
        ]
    )
    run = "sampler.temperature-0.5-policy.replan_interval-4"
    assert [name for name, _ in made.trained] == [f"{run}-s0", f"{run}-s1"]
    assert len(made.evaluated) == 6
    main(
        [
            "study",
            *words,
            "evaluate=[sampler.temperature=0.5,1.0]",
            "evaluate=[policy.replan_interval=4,2]",
            "out=looks",
        ]
    )
    assert len(made.trained) == 2 and len(made.evaluated) == 6
    lines = Path("looks/commands.sh").read_text().splitlines()
    assert sum(line.startswith("trajgen train ") for line in lines) == 2
    assert sum(line.startswith("trajgen evaluate ") for line in lines) == 6


def test_equal_steps_scale_what_differs() -> None:
    reference = Cost(
        {"tokenizer": 0.1, "return_target": 0.02, "prior": 0.1}, {"tokenizer": 100, "return_target": 100, "prior": 200}
    )
    assert reference.total == pytest.approx(10 + 2 + 20)
    cheap = Cost({"tokenizer": 0.1, "return_target": 0.02, "prior": 0.04}, dict(reference.steps))
    assert equal_steps(cheap, reference) == {"prior": 500}  # 20 s at 0.04 s a step
    noisy = Cost({"tokenizer": 0.104, "return_target": 0.0203, "prior": 0.05}, dict(reference.steps))
    assert equal_steps(noisy, reference) == {"prior": round((32 - 10.4 - 2.03) / 0.05)}
    other = Cost({"policy": 0.01}, {"policy": 1000})
    assert equal_steps(other, reference) == {"policy": 3200}
    both = Cost({"tokenizer": 0.2, "prior": 0.2}, {"tokenizer": 100, "prior": 200})  # 60 s: all by 32 / 60
    assert equal_steps(both, reference) == {"tokenizer": 53, "prior": 107}
    assert equal_steps(reference, reference) == {}


def test_equal_steps_know_the_budget() -> None:
    reference = Cost({"prior": 0.1}, {"prior": 200}, budget=0.5)  # 10 s
    assert equal_steps(Cost({"prior": 0.05}, {"prior": 200}, budget=0.5), reference) == {"prior": 400}
    assert equal_steps(Cost({"prior": 0.1}, {"prior": 200}, budget=1.0), reference) == {"prior": 100}
    assert equal_steps(Cost({"prior": 100.0}, {"prior": 3}), reference) == {"prior": 1}  # never none


def test_at_equal_time_the_steps_that_were_found_are_kept(
    made: Made,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[int] = []

    def measure(config: Any, steps: int, console: object) -> Cost:
        depth = config.components["prior"]["depth"]
        measured.append(depth)
        stages = config.engine.stages
        return Cost({"prior": 0.1 * depth}, {"prior": stages["prior"].steps}, config.engine.budget)

    monkeypatch.setattr(cost, "measure", measure)
    made.failing = {"prior.depth-2-equal-time-s1"}
    assert study("equal=[steps,time]", "engine.stages.prior.steps=100") == 1
    assert measured == [1, 2]
    kept = json.loads((STUDY / "steps.json").read_text())
    assert kept["steps"] == {"prior.depth=1": {}, "prior.depth=2": {"prior": 50}}
    made.failing = set()
    assert study("equal=[steps,time]", "engine.stages.prior.steps=100") == 0
    assert measured == [1, 2]  # not again
    names = [name for name, _ in made.trained]
    assert names == [*FOUR, "prior.depth-2-equal-time-s0", *["prior.depth-2-equal-time-s1"] * 2]
    line = next(s for s in (STUDY / "commands.sh").read_text().splitlines() if "equal-time-s1" in s)
    composed = compose(shlex.split(line)[2:])
    assert composed.engine.stages["prior"].steps == 50 and composed.components["prior"]["depth"] == 2
    rows = results()["rows"]
    assert [(row["name"], row["equal"]) for row in rows] == [
        ("prior.depth=1", "steps"),
        ("prior.depth=2", "steps"),
        ("prior.depth=2 (equal time)", "time"),
    ]


def test_what_cannot_be_measured_has_no_cell_of_equal_time(
    made: Made,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def measure(config: Any, steps: int, console: object) -> Cost:
        if config.components["prior"]["depth"] == 2:
            raise RuntimeError("too deep")
        return Cost({"prior": 0.1}, {"prior": 100})

    monkeypatch.setattr(cost, "measure", measure)
    assert study("equal=[time]") == 1
    assert [name for name, _ in made.trained] == ["prior.depth-1-equal-time-s0", "prior.depth-1-equal-time-s1"]
    assert "too deep" in results()["failed"]["prior.depth=2 (equal time)"]


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    alone = choose_launcher(None, (), "cpu")
    assert (alone.workers, alone.threads) == (8, 1) and alone.children and not alone.here
    pair = choose_launcher(2, (), "cpu")
    assert (pair.workers, pair.threads) == (2, 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert choose_launcher(None, (), "cpu").workers == 2
    assert choose_launcher(None, (), "cuda").here  # one at a time on a GPU
    named = choose_launcher(None, ("hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=60"), "cuda")
    assert not named.here and not named.children
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose_launcher(None, (), "cpu").here and "sweep" in str(choose_launcher(None, (), "cpu"))
