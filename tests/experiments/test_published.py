"""Studies of several tasks, with a paper's figures beside what is reached."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_runs import FakeRuns

from trajgen.cli import main
from trajgen.cli.data import catalogue
from trajgen.cli.study import read_study_words
from trajgen.config import data_files, study_files
from trajgen.core.errors import ConfigError
from trajgen.experiments.definition import Study, read_study
from trajgen.experiments.published import add_reached
from trajgen.experiments.table import published_columns, published_notes

PAPER = study_files()["paper_table"]
TASKS = list(yaml.safe_load(PAPER.read_text(encoding="utf-8"))["tasks"])
FIGURES = {
    "adroit": [(21.4, 38.3), (49.2, 66.9)],
    "kitchen": [(72.5, 88.8)],
    "antmaze": [(78.1, 89.7)],
    "maze2d": [(139.9, 153.3)],
    "multi2d": [(149.9, 155.0)],
    "locomotion": [()],
    "ogbench": [
        (9, 79, 58, 95, 100, 100),
        (29, 58, 44, 99, 98, 99.8),
        (1, 46, 0, 92, 100, 97.1),
        (96, 100, 97.3),
        (91, 98, 93.3),
        (65, 94, 86.5),
        (89, 98.6),
        (0, 0, 68, 87, 100),
        (0, 65, 85, 87),
    ],
}
"""Best method before and MAGE, as reported: means of normalized scores. Of the last two, MAGE's are not public."""


def results(study: Study, scores: dict[str, float | None]) -> dict[str, Any]:
    rows = [{"variant": name, "normalized": score} for name, score in scores.items()]
    return {"published": add_reached(study.published, rows), "seeds": list(study.seeds)}


@pytest.mark.parametrize("task", TASKS)
def test_each_task_of_the_paper_table_is_a_study_of_presets(task: str) -> None:
    study, tasks = read_study(PAPER, task), catalogue()
    assert study.name == f"paper_table-{task}" and "?" in study.question
    for name, variant in study.variants.items():
        preset = variant.train[0].removeprefix("data=")
        assert preset in data_files() and preset.endswith(f"/{name}")
        options = [word for word in (*study.base, *variant.train) if not word.startswith(("data=", "data.id="))]
        recipe = "mage_graph" if task == "ogbench" and "maze" in name else "mage"
        # What it needs there is composed by itself.
        assert options[-1] == f"recipe={recipe}" and {*options} <= {*study.base, options[-1]} and preset in tasks
    figures = [tuple(mean.figures.values()) for mean in study.published]
    assert figures == FIGURES[task.removeprefix("local-")]
    full_study = read_study(PAPER, task.removeprefix("local-"))
    assert {name for mean in study.published for name in mean.over} <= {*full_study.variants}
    for mean in study.published:
        assert "2602.23770" in mean.source and mean.differs
    assert ("local" in task) == any("data.id" in word for v in study.variants.values() for word in v.train)


def test_a_mean_without_published_figures_is_shown_with_its_source() -> None:
    result = results(read_study(PAPER, "locomotion"), {"hopper-expert": 90.0, "walker2d-expert": 110.0})
    table = published_columns(result)
    assert table == {"published mean": ["mean"], "here": ["100.0"], "tasks": ["2 of 9"]}
    assert any("first in seven of nine tasks" in note for note in published_notes(result))


def test_the_study_of_a_task_is_asked_for_by_its_name() -> None:
    study = read_study_words(["study=paper_table", "task=kitchen", "engine.budget=0.1"])[2]
    assert list(study.variants) == ["complete", "partial", "mixed"] and "engine.budget=0.1" in study.base


@pytest.mark.parametrize(
    ("study", "task", "message"),
    [("paper_table", None, "task=adroit"), ("paper_table", "kitchn", "kitchen"), ("levels", "adroit", "no tasks")],
)
def test_a_task_must_be_one_of_the_study(study: str, task: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_study(study_files()[study], task)


def test_ours_is_the_mean_over_the_tasks_that_there_are() -> None:
    study = read_study(PAPER, "kitchen")
    (mean,) = results(study, {"complete": 90.0, "partial": 70.0, "mixed": None})["published"]
    assert (mean["ours"], mean["tasks"], mean["of"]) == (80.0, 2, 3)
    (none,) = results(study, {"complete": None})["published"]
    assert none["ours"] is None and none["tasks"] == 0


def test_the_table_says_what_is_published_where_it_stands_and_what_differs() -> None:
    result = results(read_study(PAPER, "adroit"), {"pen-expert": 100.0})
    table = published_columns(result)
    assert table["published mean"] == ["mean without expert", "mean of all"]
    assert table["MAGE (paper)"] == ["38.3", "66.9"] and table["DT (best before)"] == ["–", "49.2"]
    assert table["here"] == ["–", "100.0"] and table["tasks"] == ["0 of 8", "1 of 12"]
    notes = published_notes(result)
    assert sum("2602.23770" in note for note in notes) == 1 and any("training seeds 0, 1, 2" in n for n in notes)
    assert published_columns({"published": []}) == {} and published_notes({"published": []}) == []


@pytest.mark.parametrize(
    ("published", "message"),
    [
        ("mean: 3", "has figures"),
        ("mean: {figures: {A: 1}, source: x}", "needs over"),
        ("mean: {figures: {A: one}, over: [a], source: x}", "wrong type"),
    ],
)
def test_an_incomplete_published_mean_is_refused(tmp_path: Path, published: str, message: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(f"variants: {{a: [prior.depth=1]}}\npublished:\n  {published}\n")
    with pytest.raises(ConfigError, match=message):
        read_study(path)


def test_a_study_prints_its_figures_beside_the_papers(fake_runs: FakeRuns, capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.yaml").write_text(
        "# How near are we?\n"
        "base: [recipe=mage]\n"
        "tasks:\n"
        "  small:\n"
        "    variants: {one: [data=kitchen/complete], two: [data=kitchen/mixed]}\n"
        "    published:\n"
        "      source: a paper\n"
        "      differs: the environments.\n"
        "      mean: {figures: {theirs: 60.0}, over: [one, two, three]}\n"
    )
    fake_runs.figures = {"normalized": {"name": "d4rl kitchen", "mean": 30.0}}
    main(["study", "study=own.yaml", "task=small", "seeds=[0,1]", "workers=1", "device=cpu"])
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "theirs" in shown
        and "60.0" in shown
        and "2 of 3" in shown
        and "What differs from it: the environments." in shown
    )
    folder = Path("studies/own-small")
    results = json.loads((folder / "results.json").read_text())
    assert results["published"][0]["ours"] == 30.0 and results["normalized"] == "d4rl kitchen"
    assert all(row["difference"] is None and not row["reference"] for row in results["rows"])  # tasks, not rivals
    page = (folder / "table.md").read_text()
    assert "| mean | 60.0 | 30.0 | 2 of 3 |" in page and "Published: a paper." in page and "reference:" not in page
