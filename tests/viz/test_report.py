"""``trajgen report``: what the page says of runs, and that nothing of a stranger's gets onto it unescaped."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made import make_run, write_evaluation, write_metrics

from trajgen.cli import main
from trajgen.core.errors import CheckpointError, ConfigError
from trajgen.evaluation.figures import saved_figure
from trajgen.evaluation.statistics import bootstrap_interval, mean_difference
from trajgen.viz.report import charts, facts
from trajgen.viz.report.compare import option_differences, paired_differences, version_differences
from trajgen.viz.report.facts import read_facts
from trajgen.viz.report.page import figure, grouped, page, signed, write_report

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out what takes longest."""
    monkeypatch.setattr("trajgen.viz.report.page.learning_charts", lambda runs: [])


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """Two runs on the same episodes, one of which failed once; the first has a picture."""
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b", "bc", seed=7)
    write_metrics(first, "tokenizer", "prior")
    write_metrics(second, "prior", scale=2.0)
    write_evaluation(first, [1.0, 2.0, 3.0, 4.0])
    write_evaluation(second, [2.0, 2.5, None, 5.0])
    with saved_figure(first / "plots" / "plan_episode_0.png", 4, 1) as drawing:
        drawing.subplots().plot([0, 1])
    return [first, second]


def test_the_page_needs_no_other_file_and_no_script(pair: list[Path], tmp_path: Path) -> None:
    write_report(tmp_path / "page.html", pair)
    found = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    tags = {tag for tag, _ in found.elements}
    assert {"svg", "img", "table", "style"} <= tags and not {"script", "link", "iframe", "object"} & tags
    for tag, attributes in found.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), tag
            if name in ("src", "href", "xlink:href"):
                assert value and value.startswith(("data:image/png;base64,", "#"))
    assert "url(http" not in (tmp_path / "page.html").read_text()


def test_the_page_says_what_there_is_to_know(pair: list[Path]) -> None:
    text = page(read_facts(pair), title="Two runs", command="trajgen report a b")
    shown = Page(text).text
    for said in ("Two runs", "2.5 [", "3.2 [", "a walk for each seed", "a processor, 1 thread, 2026-01-02", "1,234"):
        assert said in shown, said
    for said in (
        "trajgen train recipe=mage",
        "trajgen train recipe=bc",
        "trajgen report a b",
        f"trajgen evaluate run={pair[0]}",
    ):
        assert said in shown, said
    assert "prior: total loss" in shown and "tokenizer: part" in shown
    assert "10.0 tokenizer 5.0, prior 5.0" in " ".join(shown.split())  # minutes: 6 · 50 s a stage
    assert f"trajgen plot run={pair[1]}" in shown  # where there are no pictures, how to draw them


def test_differences_are_paired_on_the_episodes_that_both_ended(pair: list[Path]) -> None:
    (found,) = paired_differences(read_facts(pair))
    own, other = [2.0, 2.5, 5.0], [1.0, 2.0, 4.0]
    assert found.difference == pytest.approx(np.mean(own) - np.mean(other)) and found.episodes == 3
    assert found.ci95 == bootstrap_interval(mean_difference, own, other) and found.clear


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"env": "run"}, "another environment"),
        ({"seeds": [4, 7]}, "another seed"),
        ({"seeds": [0, 9]}, "missing"),
        ({"seeds": "all"}, "missing"),
        ({"episode_returns": None}, "missing"),
        ({"episode_returns": {"policy": [None, None, None, None]}}, "missing"),
        ({"episode_returns": {"policy": [None, None, 1.0, None]}}, "no episode"),
    ],
)
@pytest.mark.usefixtures("no_charts")
def test_other_episodes_are_not_paired(pair: list[Path], change: dict, why: str) -> None:
    write_evaluation(pair[0], [1.0, 2.0, None, 4.0])
    write_evaluation(pair[1], [2.0, 2.5, 3.0, 5.0], **change)
    (found,) = paired_differences(read_facts(pair))
    assert found.difference is None and why in found.why and not found.clear
    assert why in Page(page(read_facts(pair), title="", command="")).text


def test_options_that_differ_stand_apart_from_those_that_are_missing(pair: list[Path]) -> None:
    differing, missing = option_differences(read_facts(pair))
    assert dict(differing)["seed"] == ["0", "7"] and dict(differing)["recipe"] == ["mage", "bc"]
    assert dict(missing)["tokenizer.name"] == ["multiscale", "–"]
    names = {name for name, _ in (*differing, *missing)}
    assert "data.id" not in names and not any(name.startswith(("space", "run_dir")) for name in names)


@pytest.mark.usefixtures("no_charts")
def test_options_of_many_runs_are_grouped_by_value(tmp_path: Path) -> None:
    runs = read_facts([make_run(tmp_path / f"run-{seed}", seed=seed // 5) for seed in range(10)])
    shown = " ".join(Page(page(runs, title="", command="")).text.split())
    assert re.search(r"seed\s*0 run-0, run-1, run-2, run-3, run-4\s*1 run-5, run-6", shown)
    assert grouped(["a", "b", "a"], ["x", "y", "z"]) == [("a", ["x", "z"]), ("b", ["y"])]


def test_versions_that_differ(pair: list[Path]) -> None:
    (pair[1] / "versions.json").write_text('{"torch": "2.10", "trajgen": "0.1.0"}')
    same, differing = version_differences(read_facts(pair))
    assert same == {"trajgen": "0.1.0"} and differing == [("torch", ["2.9", "2.10"])]


def test_weights_are_counted_without_loading_them(pair: list[Path]) -> None:
    assert read_facts(pair)[0].weights == 2 * 3 + 4


def test_a_study_stands_for_its_cells_and_no_run_is_told_twice(pair: list[Path], tmp_path: Path) -> None:
    study = tmp_path / "study"
    (study / "cells").mkdir(parents=True)
    for folder in pair:
        folder.rename(study / "cells" / folder.name)
    found = read_facts([study, study / "cells" / "a"])
    assert [run.label for run in found] == ["a", "b"]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / place / "run") for place in ("here", "there")]
    assert [run.label for run in read_facts(folders)] == ["here/run", "there/run"]


def test_a_run_that_is_not_done_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "checkpoints" / "final.safetensors").unlink()
    (run,) = read_facts([folder])
    assert run.problems == ["not evaluated", "no metrics of its training", "not trained to its end"]
    shown = Page(page([run], title="", command="")).text
    assert "not evaluated; no metrics" in shown and "No metrics of a training are there." in shown


def plant(folder: Path) -> None:
    """Writes hostile text wherever a stranger could."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"recipe": HOSTILE, "command": HOSTILE, HOSTILE: {"deep": [HOSTILE]}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "versions.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    row = {"stage": HOSTILE, "stage_index": 0, "step": 1, "seconds": 1.0, "total": 1.0, HOSTILE.replace("/", ""): 2.0}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"step": 2}))
    hardware = {"cpu": HOSTILE, "threads": 1, "cuda": HOSTILE}
    changes = {"env": HOSTILE, "protocol": HOSTILE, "date": HOSTILE, "hardware": hardware}
    write_evaluation(folder, [1.0, 2.0], **changes, normalized={HOSTILE: {"mean": 1, "ci95": [0, 1], "bounds": [0, 1]}})


def test_everything_of_a_stranger_s_is_escaped(pair: list[Path]) -> None:
    plant(pair[1])
    hostile = pair[1].with_name("<b onclick=alert(3)>&amp;")
    pair[1].rename(hostile)
    plain = Page(page(read_facts(pair[:1]), title=HOSTILE, command=HOSTILE))
    found = Page(page(read_facts([pair[0], hostile]), title=HOSTILE, command=HOSTILE))
    assert {tag for tag, _ in found.elements} == {tag for tag, _ in plain.elements}
    assert not any(name.startswith("on") for _, attributes in found.elements for name in attributes)
    assert found.text.count("<script>alert(1)</script>") > 10 and "<b onclick=alert(3)>&amp;" in found.text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("evaluation.json", '{"return": 5, "env": [1], "episodes": {}}'),
        ("evaluation.json", '{"env": "w", "episodes": 1, "return": {"mean": "x", "iqm": 1, "ci95": [1, 2]}}'),
        ("evaluation.json", "[1, 2]"),
        ("evaluation.json", '{"return": ' * 5000),
        ("metrics.jsonl", '{"stage": [], "step": 1, "seconds": 1}\n'),
        ("metrics.jsonl", '{"stage": "a", "step": "b", "seconds": "c", "total": 1}\n'),
        ("versions.json", "null"),
        ("checkpoints/final.safetensors", "no tensors"),
        ("plots/plan_episode_0.png", "<svg onload=alert(1)>"),
    ],
)
@pytest.mark.usefixtures("no_charts")
def test_a_damaged_file_is_said_and_the_rest_is_shown(name: str, text: str, pair: list[Path]) -> None:
    (pair[0] / name).write_text(text)
    runs = read_facts(pair)
    assert len(runs[0].problems) == 1 and not runs[1].problems
    assert name.rpartition("/")[2].partition(".")[0] in runs[0].problems[0] or "checkpoints" in runs[0].problems[0]
    assert runs[0].problems[0] in Page(page(runs, title="", command="")).text


def test_a_large_picture_is_left_out(pair: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "LARGEST_PICTURE", 100)
    (run, _) = read_facts(pair)
    assert run.pictures == [] and "too large" in run.problems[0]


def test_a_link_out_of_a_run_folder_is_refused(pair: list[Path], tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes((pair[0] / "plots" / "plan_episode_0.png").read_bytes())
    os.symlink(tmp_path / "secret.png", pair[1] / "plan_episode_0.png")
    with pytest.raises(CheckpointError, match="lie within it"):
        read_facts(pair)


def test_a_curve_takes_its_colours_from_the_page(pair: list[Path]) -> None:
    drawn = charts.learning_charts(read_facts(pair))
    assert [(chart.stage, chart.loss) for chart in drawn] == [
        ("tokenizer", "total"), ("prior", "total"), ("tokenizer", "part"), ("prior", "part"),
    ]  # fmt: skip
    prior = drawn[1].svg
    assert prior.startswith("<svg") and "var(--line-0)" in prior and "var(--line-1)" in prior and "var(--ink)" in prior
    assert "var(--line-1)" not in drawn[0].svg
    every = "".join(chart.svg for chart in drawn)
    identifiers = re.findall(r'\bid="([^"]+)"', every)
    assert len(identifiers) == len({*identifiers})
    assert {*re.findall(r'(?:url\(|href=")#([^")]+)', every)} <= {*identifiers}


def test_an_interval_lies_where_it_belongs() -> None:
    bar = charts.interval_bar(5.0, (0.0, 10.0), 0.0, 10.0)
    assert 'x1="4.0" x2="196.0"' in bar and 'cx="100.0"' in bar
    assert charts.interval_bar(None, None, 0.0, 1.0) == ""


def test_numbers() -> None:
    assert [figure(None), figure(1234.56), figure(-0.5, 3), figure(12, 0)] == ["–", "1,234.6", "−0.500", "12"]
    assert [signed(1.0), signed(-1.0), signed(0.0)] == ["+1.0", "−1.0", "0.0"]


@pytest.mark.usefixtures("no_charts")
def test_the_command_writes_a_page_and_never_over_another(
    pair: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        main(["report", *map(str, pair), "title=Mine"])
    assert "2 runs on one page" in capsys.readouterr().out
    assert "<h1>Mine</h1>" in Path("report-1.html").read_text() and Path("report-2.html").exists()
    with pytest.raises(ConfigError, match="overwritten"):
        write_report(Path("report-1.html"), pair)


@pytest.mark.parametrize(
    ("words", "expected"),
    [([], "Which runs?"), (["nowhere"], "no folder nowhere"), (["ouut=x.html", "."], "did you mean 'out'")],
)
def test_mistakes_are_said(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", *words])
    error = capsys.readouterr().err
    assert expected in error and "fix:" in error
