"""``trajgen report``: what the page tells of runs, and that nothing of a stranger's gets onto it unescaped."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from run_folders import make_run, write_evaluation, write_metrics

from trajgen.cli import main
from trajgen.core.errors import CheckpointError, ConfigError
from trajgen.evaluation.statistics import bootstrap_interval, mean_difference
from trajgen.experiments import reporting
from trajgen.experiments.reporting import read_facts, write_report
from trajgen.viz.figure import new_figure
from trajgen.viz.report.charts import learning_charts
from trajgen.viz.report.compare import option_differences, paired_difference, version_differences
from trajgen.viz.report.page import interval_bar, page

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """The elements of a page, and its text with single spaces."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def shown(folders: list[Path], title: str = "") -> Page:
    return Page(page(read_facts(folders), title=title, command=title))


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
    with new_figure(4, 1, first / "plots" / "plan_episode_0.png") as figure:
        figure.subplots().plot([0, 1])
    return [first, second]


def test_the_page_tells_its_facts_without_another_file_or_a_script(pair: list[Path], tmp_path: Path) -> None:
    write_report(tmp_path / "page.html", pair, title="Two runs")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    rendered = Page(text)
    tags = {tag for tag, _ in rendered.elements}
    assert {"svg", "img", "table", "style"} <= tags and not {"script", "link", "iframe", "object"} & tags
    for tag, attributes in rendered.elements:
        assert not any(name.startswith("on") for name in attributes), tag
        for value in (attributes[name] for name in ("src", "href", "xlink:href") if name in attributes):
            assert value and value.startswith(("data:image/png;base64,", "#"))
    assert "url(http" not in text
    for words in ("Two runs", "2.50 [", "3.17 [", "a walk for each seed", "a processor, 1 thread, 2026-01-02", "1,234"):
        assert words in rendered.text, words
    for command in ("train recipe=mage", "train recipe=bc", f"report {pair[0]} {pair[1]}", f"evaluate run={pair[0]}"):
        assert f"trajgen {command}" in rendered.text, command
    assert "prior: total loss" in rendered.text and "tokenizer: part loss" in rendered.text
    assert "10.0 tokenizer 5.0, prior 5.0" in rendered.text  # minutes: 6 · 50 s a stage
    assert f"trajgen plot run={pair[1]}" in rendered.text  # where there are no pictures, how to draw them
    assert read_facts(pair)[0].weights == 2 * 3 + 4


def test_differences_are_paired_on_the_episodes_that_both_completed(pair: list[Path]) -> None:
    first, second = read_facts(pair)
    paired = paired_difference(second, first)
    returns, reference = [2.0, 2.5, 5.0], [1.0, 2.0, 4.0]
    assert paired.difference == pytest.approx(np.mean(returns) - np.mean(reference)) and paired.episodes == 3
    assert paired.ci95 == bootstrap_interval(mean_difference, returns, reference) and paired.clear


def test_differences_use_the_episodes_that_two_runs_share(pair: list[Path]) -> None:
    write_evaluation(pair[0], [1.0, 2.0, 3.0, 4.0], first_seed=0)
    write_evaluation(pair[1], [2.5, 4.5], first_seed=2)
    first, second = read_facts(pair)
    paired = paired_difference(second, first)
    assert paired.episodes == 2 and paired.difference == pytest.approx(np.mean([2.5 - 3.0, 4.5 - 4.0]))


@pytest.mark.usefixtures("no_charts")
def test_evaluations_of_a_run_are_compared(pair: list[Path]) -> None:
    greedy = pair[0] / "evaluations" / "view-name-other"
    greedy.mkdir(parents=True)
    write_evaluation(greedy, [2.0, 3.0, 4.0, 6.0], overrides={"view": {"name": "other"}})
    runs = read_facts([pair[0], greedy])
    assert [run.label for run in runs] == ["a", "view-name-other"] and runs[1].command == runs[0].command
    assert paired_difference(runs[1], runs[0]).difference == pytest.approx(1.25)
    assert option_differences(runs)[0] == {"view.name": ["fields", "other"]}
    assert "view-name-other" in shown([pair[0], greedy]).text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"env": "run"}, "another environment"),
        ({"seeds": [4, 7]}, "no episode"),
        ({"protocol_name": "first_hit"}, "another protocol"),
        ({"seeds": [0, 9]}, "missing"),
        ({"seeds": "all"}, "missing"),
        ({"episode_returns": None}, "missing"),
        ({"episode_returns": {"policy": [None, None, None, None]}}, "missing"),
        ({"episode_returns": {"policy": [None, None, 1.0, None]}}, "no episode"),
        ({"overrides": {"data": {"resets": [{"goal_cell": [1, 1]}]}}}, "other starts or goals"),
        ({"overrides": {"data": {"env_options": {"continuing_task": False}}}}, "other options of the environment"),
        ({"overrides": {"data": {"shift": {"blocked": [[3, 3]]}}}}, "other cells of the maze blocked"),
    ],
)
@pytest.mark.usefixtures("no_charts")
def test_other_episodes_are_not_paired(pair: list[Path], change: dict, reason: str) -> None:
    write_evaluation(pair[0], [1.0, 2.0, None, 4.0])
    write_evaluation(pair[1], [2.0, 2.5, 3.0, 5.0], **change)
    first, second = read_facts(pair)
    paired = paired_difference(second, first)
    assert paired.difference is None and reason in paired.reason and not paired.clear
    assert reason in shown(pair).text


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [("options", {"masses": 8}, "other options of the environment"), ("max_episode_steps", 50, "another length")],
)
def test_data_sets_that_name_other_episodes_are_not_paired(
    pair: list[Path], option: str, value: object, reason: str
) -> None:
    for folder, env in zip(pair, ({"options": {}}, {option: value}), strict=True):
        (folder / "data.json").write_text(json.dumps({"env": {"id": "a/Chain-v0", **env}}))
    first, second = read_facts(pair)
    assert reason in paired_difference(second, first).reason
    (pair[1] / "data.json").write_text('{"env": ["damaged"]}')
    assert paired_difference(*read_facts(pair)).episodes == 3


@pytest.mark.usefixtures("no_charts")
def test_options_and_versions_that_differ(pair: list[Path], tmp_path: Path) -> None:
    (pair[1] / "versions.json").write_text('{"torch": "2.10", "trajgen": "0.1.0"}')
    runs = read_facts(pair)
    differing, missing = option_differences(runs)
    assert differing["seed"] == ["0", "7"] and differing["recipe"] == ["mage", "bc"]
    assert missing["tokenizer.name"] == ["multiscale", "–"]
    assert not any(name.startswith(("space", "run_dir", "data.id")) for name in (*differing, *missing))
    assert version_differences(runs) == ({"trajgen": "0.1.0"}, {"torch": ["2.9", "2.10"]})
    many = [make_run(tmp_path / f"run-{seed}", seed=seed // 5) for seed in range(10)]  # grouped by value
    assert re.search(r"seed ?0 run-0, run-1, run-2, run-3, run-4 ?1 run-5, run-6", shown(many).text)


def test_runs_are_told_apart_and_a_study_stands_for_its_cells(pair: list[Path], tmp_path: Path) -> None:
    study = tmp_path / "study"
    (study / "cells").mkdir(parents=True)
    for folder in pair:
        folder.rename(study / "cells" / folder.name)
    assert [run.label for run in read_facts([study, study / "cells" / "a"])] == ["a", "b"]
    folders = [make_run(tmp_path / parent / "run") for parent in ("here", "there")]
    assert [run.label for run in read_facts(folders)] == ["here/run", "there/run"]


@pytest.mark.usefixtures("no_charts")
def test_all_that_lies_beside_runs_is_taken_or_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "zoo/b", "sweeps/monday/0", "sweeps/monday/1"):
        make_run(Path("runs", name))
    Path("runs/empty").mkdir()
    Path("runs/notes.txt").write_text("mine")
    main(["report", *(f"runs/{name}" for name in ("a", "empty", "notes.txt", "sweeps", "zoo"))])
    out = capsys.readouterr().out
    assert "runs/empty: there is no run in it\nruns/notes.txt: there is no run in it\n" in out
    assert "4 runs on one page" in out
    with pytest.raises(CheckpointError, match="holds no run"):
        read_facts([Path("runs/empty")])


def test_a_run_that_is_not_finished_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "checkpoints" / "final.safetensors").unlink()
    text = shown([folder]).text
    assert "not evaluated; no metrics of its training; not trained to its end." in text
    assert "No metrics of a training are there." in text


def test_everything_of_a_stranger_s_is_escaped(pair: list[Path]) -> None:
    """Hostile text wherever a stranger could write it."""
    plain = shown(pair[:1], HOSTILE)
    folder = pair[1].with_name("<b onclick=alert(3)>&amp;")
    pair[1].rename(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"recipe": HOSTILE, "command": HOSTILE, HOSTILE: {"deep": [HOSTILE]}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "versions.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    row = {"stage": HOSTILE, "stage_index": 0, "step": 1, "seconds": 1.0, "total": 1.0, HOSTILE.replace("/", ""): 2.0}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"step": 2}))
    changes = dict.fromkeys(("env", "protocol", "date"), HOSTILE)
    changes |= {"hardware": {"cpu": HOSTILE, "threads": 1, "cuda": HOSTILE}}
    write_evaluation(folder, [1.0, 2.0], **changes, normalized={HOSTILE: {"mean": 1, "ci95": [0, 1], "bounds": [0, 1]}})
    rendered = shown([pair[0], folder], HOSTILE)
    assert {tag for tag, _ in rendered.elements} == {tag for tag, _ in plain.elements}
    assert not any(name.startswith("on") for _, attributes in rendered.elements for name in attributes)
    assert rendered.text.count("<script>alert(1)</script>") > 10 and "<b onclick=alert(3)>&amp;" in rendered.text


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
        ("plots/plan_episode_0.png", "\x89PNG" * 60),  # too large
    ],
)
@pytest.mark.usefixtures("no_charts")
def test_a_damaged_file_is_reported_and_the_rest_is_shown(
    name: str, text: str, pair: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "LARGEST_PICTURE", 200)
    (pair[0] / name).write_text(text)
    if not name.startswith("plots"):
        (pair[0] / "plots" / "plan_episode_0.png").unlink()
    first, second = read_facts(pair)
    assert len(first.problems) == 1 and not second.problems
    assert first.problems[0].startswith(name.removeprefix("plots/")) and first.problems[0] in shown(pair).text


def test_a_link_out_of_a_run_folder_is_refused(pair: list[Path], tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes((pair[0] / "plots" / "plan_episode_0.png").read_bytes())
    os.symlink(tmp_path / "secret.png", pair[1] / "plan_episode_0.png")
    with pytest.raises(CheckpointError, match="lie within it"):
        read_facts(pair)


def test_a_chart_takes_its_colors_from_the_page(pair: list[Path]) -> None:
    charts = learning_charts(read_facts(pair))
    names = [(chart.stage, chart.loss) for chart in charts]
    assert names == [("tokenizer", "total"), ("prior", "total"), ("tokenizer", "part"), ("prior", "part")]
    prior = charts[1].svg
    assert prior.startswith("<svg") and all(f"var(--{name})" in prior for name in ("line-0", "line-1", "ink"))
    assert "var(--line-1)" not in charts[0].svg
    svg = "".join(chart.svg for chart in charts)
    identifiers = re.findall(r'\bid="([^"]+)"', svg)
    assert len(identifiers) == len({*identifiers})
    assert {*re.findall(r'(?:url\(|href=")#([^")]+)', svg)} <= {*identifiers}
    bar = interval_bar(0, 5.0, (0.0, 10.0), 0.0, 10.0)
    assert 'x1="4.0" x2="196.0" y1="8" y2="8" class="whisker"' in bar and 'cx="100.0"' in bar
    assert interval_bar(0, None, None, 0.0, 1.0) == ""


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
    ("words", "message"),
    [([], "No run folder was named"), (["nowhere"], "no folder nowhere"), (["ouut=x.html", "."], "did you mean 'out'")],
)
def test_mistakes_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", *words])
    error = capsys.readouterr().err
    assert message in error and "fix:" in error
