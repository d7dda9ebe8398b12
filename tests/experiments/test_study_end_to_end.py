"""One small study as a person runs it: in processes of their own, with a part of one's own."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_runs import SMALL, exit_code
from tiny import TRAIN

from trajgen.cli import main
from trajgen.core import registry

PART = """
import os

from trajgen.core.registry import component, register

if os.getpid() != int(os.environ["STUDY"]):
    from trajgen.viz import plans

    plans.draw_run = lambda *_, **__: []  # which takes most of an evaluation


@register("sampler", "noted")
def noted(prior):
    \"\"\"Greedy, and notes the process and its threads.\"\"\"
    import torch

    with open("noted.txt", "a") as file:
        file.write(f"{os.getpid()} {os.environ.get('OMP_NUM_THREADS')} {torch.get_num_threads()}\\n")
    return component("sampler", "greedy")()
"""
WORDS = [
    "recipe=small_mage",
    *(word for word in TRAIN if not word.startswith("engine.budget")),
    "engine.budget=0.2",
    "imports=[study_part]",
    "evaluation.latency=false",
    "evaluate=[sampler.temperature=0.25,sampler=noted]",
    "seeds=[1]",
    "executor=loky",
    "workers=1",
    "out=small",
]
STUDY = Path("small")


@pytest.fixture
def folder(tiny_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with a recipe in ``own``, and with a module that registers a sampler, forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("study_part.py").write_text(PART, encoding="utf-8")
    Path("own/recipe").mkdir(parents=True)
    Path("own/recipe/small_mage.yaml").write_text("defaults: [mage]\n", encoding="utf-8")
    yield tmp_path
    registry._registered.pop(("sampler", "noted"), None)


def test_a_study_in_processes(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("STUDY", str(os.getpid()))
    main(["study", "--config-dir", "own", *WORDS])
    out = capfd.readouterr().out
    assert "1 trainings to do" in out and "sampler.temperature-0.25-s1: trained" in out and "table.md" in out
    assert [path.name for path in (STUDY / "cells").iterdir()] == ["sampler.temperature-0.25-s1"]

    lines = [line.split() for line in Path("noted.txt").read_text().splitlines()]
    elsewhere = [line for line in lines if line[0] != str(os.getpid())]  # it is built here too, for a dry run
    assert elsewhere
    assert {(variable, threads) for _, variable, threads in elsewhere} == {("1", "1")}

    results = json.loads((STUDY / "results.json").read_text())
    assert results["failed"] == {} and [row["name"] for row in results["rows"]] == [
        "sampler.temperature=0.25",
        "sampler=noted",
    ]
    plain_row, noted_row = results["rows"]
    assert noted_row["difference"] is not None and noted_row["parameters"] == plain_row["parameters"]
    assert plain_row["seeds"] == [1] and plain_row["parameters"] > 1000
    run = STUDY / "cells" / "sampler.temperature-0.25-s1"
    config, other = (json.loads((run / name).read_text()) for name in ("config.json", "versions.json"))
    assert config["seed"] == 1 and config["recipe"] == "small_mage" and other["trajgen"]
    figures = json.loads((run / "evaluations" / "sampler-noted" / "evaluation.json").read_text())
    assert figures["overrides"]["sampler"]["name"] == "noted"
    plain = json.loads((run / "evaluation.json").read_text())
    assert "overrides" not in plain and plain["condition_error"] != figures["condition_error"]
    assert plain_row["by_seed"]["1"] == plain["ratio_to_controller"]
    assert (STUDY / "plot.png").is_file()

    lines = (STUDY / "commands.sh").read_text().splitlines()
    assert config["command"] in lines and f"--config-dir={folder / 'own'}" in config["command"]
    again = [shlex.split(line)[1:] for line in lines if line.startswith("trajgen")]
    assert [words[0] for words in again] == ["train", "evaluate"]

    before = {path: path.stat().st_mtime_ns for path in (STUDY / "cells").rglob("*")}
    main(["study", "--config-dir", "own", *WORDS])
    assert "0 trainings to do" in capfd.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (STUDY / "cells").rglob("*")}


@pytest.mark.parametrize(
    ("executor", "options"),
    [
        ("loky", []),
        pytest.param("submitit", ["executor.cluster=local"], marks=pytest.mark.nightly),
        pytest.param("ray", [], marks=pytest.mark.nightly),
    ],
)
def test_a_cell_fails_on_a_cluster_as_it_does_here(
    executor: str, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(executor, reason="of an extra")
    monkeypatch.chdir(tmp_path)
    words = ["recipe=mage", *SMALL, "data.id=nobody/has-v0", "data.maker=null", "axis=[prior.depth=1]", "seeds=[0]"]
    assert exit_code("study", *words, "out=there", f"executor={executor}", *options) == 1
    failed = json.loads(Path("there/results.json").read_text())["failed"]
    assert "must be on this machine" in failed["prior.depth-1-s0"]
    assert "DataError" in Path("there/jobs/prior.depth-1-s0.log").read_text()


def test_the_cost_of_a_step_is_measured_and_nothing_is_left(folder: Path) -> None:
    from rich.console import Console

    from trajgen.config import compose
    from trajgen.experiments.equal_time import measure

    config = compose(["recipe=mage", *TRAIN])
    cost = measure(config, 3, Console(quiet=True))
    assert set(cost.seconds) == {"tokenizer", "return_target", "prior", "action"}
    assert all(0 < s < 5 for s in cost.seconds.values())
    assert cost.steps == dict.fromkeys(cost.seconds, 24) and cost.budget == 0.5
    assert cost.total == pytest.approx(12 * sum(cost.seconds.values()))
    assert {path.name for path in folder.iterdir()} <= {"study_part.py", "own", "__pycache__"}
    both = measure(compose(["recipe=hierarchy", *TRAIN]), 3, Console(quiet=True))
    assert set(both.seconds) == set(cost.seconds)  # both levels under the options that they share
