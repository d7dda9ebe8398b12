"""Figures of the table against hand computation, and what is shown where a figure is missing."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runs import Returns, composed, evaluation
from rich.console import Console

from trajgen.core.errors import CheckpointError
from trajgen.evaluation.statistics import bootstrap_interval, mean, mean_difference, ratio_difference
from trajgen.experiments.cells import Cell, Row
from trajgen.experiments.definition import Study, Variant
from trajgen.experiments.results import RATIO, RETURN, differences, drop_failed, gather, score, scores
from trajgen.experiments.table import columns, markdown, print_results, write_results


def by_seed(*returns: Returns, controller: Returns | None = (4.0, 4.0)) -> dict[int, dict[str, Any]]:
    return {seed: evaluation(each, controller) for seed, each in enumerate(returns)}


def test_an_interval_over_seeds_and_episodes_by_hand() -> None:
    rows = np.array([[0.0, 0.0], [4.0, 4.0]])  # all that differs is the seed: means 0, 2, 4 in shares 1/4, 1/2, 1/4
    assert bootstrap_interval(mean, rows, draw_rows=True) == (0.0, 4.0)
    assert bootstrap_interval(mean, rows, draw_rows=True, confidence=0.4) == (2.0, 2.0)
    assert bootstrap_interval(mean, rows) == (2.0, 2.0)  # of these seeds alone
    one = np.array([[1.0, 2.0, 3.0]])
    assert bootstrap_interval(mean, one, draw_rows=True) == bootstrap_interval(mean, one)


def test_a_bootstrap_of_seeds_and_of_the_episodes_that_all_of_them_play_is_the_naive_loop() -> None:
    generator = np.random.default_rng(0)
    rows = generator.normal(generator.normal(0, 3, (4, 1)), 1.0, (4, 9)) + generator.normal(0, 2, 9)
    means = []
    for _ in range(4000):
        seeds, episodes = generator.integers(4, size=4), generator.integers(9, size=9)
        means.append(np.mean([rows[seed, episode] for seed in seeds for episode in episodes]))
    low, high = bootstrap_interval(mean, rows, draw_rows=True)
    assert [low, high] == pytest.approx(np.percentile(means, [2.5, 97.5]).tolist(), abs=0.2)
    pooled = bootstrap_interval(mean, rows)
    assert high - low > 2 * (pooled[1] - pooled[0])


def test_seeds_that_do_the_same_are_no_more_episodes() -> None:
    one = np.random.default_rng(0).normal(0, 5, (1, 48))
    interval = bootstrap_interval(mean, one, draw_rows=True)
    assert bootstrap_interval(mean, np.repeat(one, 5, axis=0), draw_rows=True) == pytest.approx(interval)


def test_pairs_are_drawn_together() -> None:
    first = np.random.default_rng(0).normal(0, 5, (3, 7))
    low, high = bootstrap_interval(mean_difference, first + 1.5, first, draw_rows=True)
    assert (low, high) == (pytest.approx(1.5), pytest.approx(1.5))
    unit = np.full((3, 7), 3.0)
    ends = bootstrap_interval(ratio_difference, first + 1.5, unit, first, unit, draw_rows=True)
    assert ends == (pytest.approx(0.5), pytest.approx(0.5))


def test_scores_by_hand() -> None:
    result = scores(by_seed((1, 3), (2, 2)), RATIO)
    assert result["mean"] == pytest.approx(0.5)  # 8 / 16
    assert result["iqm"] == pytest.approx(0.5)  # (2 + 2) / 2 of the middle half, over 4
    assert result["by_seed"] == {0: 0.5, 1: 0.5}
    skewed = scores(by_seed((0, 0), (2, 20)), RATIO)
    assert skewed["mean"] == pytest.approx(22 / 16) and skewed["iqm"] == pytest.approx(1 / 4)
    assert skewed["ci95"] == (0.0, pytest.approx(20 / 4))  # seed 1, and its episode of 20, twice each: in 1/16
    assert scores(by_seed((1, 3), (2, 2), controller=None), RETURN)["mean"] == pytest.approx(2.0)
    assert scores({}, RATIO)["mean"] is None


def test_differences_by_hand() -> None:
    one, two = by_seed((1, 3), (2, 2)), by_seed((2, 4), (3, 3))
    assert differences(one, two, RATIO)["difference"] == pytest.approx(-0.25)
    assert differences(one, two, RATIO)["difference_ci95"] == pytest.approx((-0.25, -0.25))
    assert differences(one, two, RETURN)["difference"] == pytest.approx(-1.0)
    del two[0]  # only seed 1 is common: 2 against 3
    assert differences(one, two, RATIO)["difference"] == pytest.approx(-0.25)
    pushed = by_seed((1, 1), (1, 1), controller=(2.0, 2.0))  # as evaluation.disturbance does, to the controller as well
    assert differences(pushed, by_seed((2, 2), (2, 2)), RATIO)["difference"] == pytest.approx(1 / 2 - 2 / 4)


@pytest.mark.parametrize(
    "other", [{"first": 7}, {"env": "another"}, {"protocol_name": "first_hit"}, {"goals": "fixed"}]
)
def test_other_episodes_have_no_difference(other: dict[str, Any]) -> None:
    one, two = {1: evaluation((1, 3))}, {1: evaluation((3, 30), **other)}
    assert differences(one, two, RATIO) == {"difference": None, "difference_ci95": None}


def test_an_episode_that_failed_once_is_left_out_everywhere() -> None:
    assert scores(by_seed((1, 3), (None, 2)), RATIO)["mean"] == pytest.approx(5 / 8)
    samples = drop_failed(np.array([[1.0, np.nan]]), np.array([[2.0, 3.0]]))
    assert [sample.tolist() for sample in samples] == [[[1.0]], [[2.0]]]
    assert scores(by_seed((None, 1), (1, None)), RATIO)["mean"] is None


@pytest.mark.parametrize(
    ("figures", "value"),
    [
        ({"ratio_to_controller": 0.5, "return": {"mean": 7.0}}, 0.5),
        ({"return": {"mean": 7.0}}, 7.0),
        ({}, None),
        ({"return": {"mean": None}}, None),
        ({"ratio_to_controller": "high"}, None),
        ({"return": 3}, None),
    ],
)
def test_the_score_is_the_ratio_or_the_return(figures: dict[str, Any], value: float | None, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps(figures))
    if value is None:
        with pytest.raises(CheckpointError):
            score(tmp_path)
    else:
        assert score(tmp_path) == value


STUDY = Study(name="fake", question="Which is best?", variants={"a|b": Variant(), "c": Variant()}, seeds=(0, 1))


def cells_of(folder: Path, **figures: Any) -> list[Cell]:
    """Cells of two variants whose evaluations are there."""
    cells = []
    for name, returns in {"a|b": (1.0, 3.0), "c": (2.0, 4.0)}.items():
        row = Row(name, name, (), composed(("recipe=bc",)), {}, name)
        for seed in STUDY.seeds:
            cell = Cell(row, seed, folder)
            cell.out.mkdir(parents=True)
            (cell.out / "evaluation.json").write_text(json.dumps(evaluation(returns, **figures)))
            cells.append(cell)
    return cells


@pytest.fixture(autouse=True)
def _no_planner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trajgen.experiments.results._count_parameters", lambda folder: 1234)


FULL = {
    "normalized": {"name": "d4rl", "mean": 120.0},
    "success": 0.5,
    "condition_error": {"state": 0.02, "return": 0.03},
    "decision_ms": {"batch_1": {"median": 7.0}},
}


def test_a_table_with_everything(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, **FULL)
    for cell in cells:
        lines = [{"stage": "one", "step": 5, "seconds": 60.0}, {"stage": "two", "step": 9, "seconds": 30.0 + cell.seed}]
        (cell.run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = gather(STUDY, cells, {})
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    table = columns(result)
    assert table["ratio"] == ["0.500", "0.750"] and table["IQM"] == ["0.500", "0.750"]
    assert table["difference"] == ["reference", "+0.250"] and table["its 95 % interval"] == ["–", "[0.250, 0.250]"]
    assert table["score"] == ["120.0", "120.0"] and table["success"] == ["50%", "50%"]
    assert table["state error"] == ["0.020"] * 2 and table["return error"] == ["0.030"] * 2
    assert table["minutes"] == ["1.5"] * 2 and table["decision ms"] == ["7.0"] * 2
    assert table["parameters"] == ["1,234"] * 2 and "seeds" not in table
    assert result["rows"][0]["steps"] == {"one": 5, "two": 9}
    page = (Path(__file__).parents[2] / "docs" / "studies.md").read_text(encoding="utf-8")
    assert [head for head in table if head != "variant" and f"`{head}`" not in page] == []
    text = markdown(result)
    assert "Which is best?" in text and "| a\\|b | 0.500 |" in text and "d4rl" in text


def test_shares_of_episodes_are_told_apart(tmp_path: Path) -> None:
    """As in mazes that end on arrival, whose return is 0 or 1."""
    cells = cells_of(tmp_path)
    for cell in cells:
        returns = [1.0] * (61 if cell.row.name == "c" else 57) + [0.0] * 39
        (cell.out / "evaluation.json").write_text(json.dumps(evaluation(returns[:96], controller=None)))
    result = gather(STUDY, cells, {})
    table = columns(result)
    assert table["return"] == ["0.59", "0.64"] and table["difference"] == ["reference", "+0.04"]
    assert columns(result | {"rows": [row | {"mean": 100.0} for row in result["rows"]]})["return"] == ["100.0"] * 2


def test_variants_in_other_environments_have_no_difference(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, **FULL)
    for cell in cells:  # the environment of both is called the same, as chains of 2 and of 8 masses are
        masses = 2 if cell.row.name == "c" else 8
        (cell.run / "data.json").write_text(json.dumps({"env": {"id": "a/Chain-v0", "options": {"masses": masses}}}))
    table = columns(gather(STUDY, cells, {}))
    assert table["difference"] == ["reference", "–"] and "its 95 % interval" not in table


def test_a_variant_without_an_environment_does_not_cost_the_others_their_figures(tmp_path: Path) -> None:
    cells = cells_of(tmp_path)
    for cell in cells[2:]:  # of "c", whose data name none
        figures = {"action_error": {"mean": 0.3}, "episode_action_errors": [0.2, 0.4], "decision_ms": {}}
        (cell.out / "evaluation.json").write_text(json.dumps(figures))
    table = columns(gather(STUDY, cells, {}))
    assert table["return"] == ["2.00", "–"] and table["difference"] == ["reference", "–"]


def test_a_table_where_much_is_missing(tmp_path: Path) -> None:
    result = gather(STUDY, cells_of(tmp_path, controller=None), {"c-s1": "It broke.", "c-s0": "It broke."})
    table = columns(result)
    assert table["return"] == ["2.00", "–"] and table["seeds"] == ["2 of 2", "0 of 2"]
    assert not {"ratio", "success", "state error", "score", "decision ms", "minutes"} & set(table)
    write_results(tmp_path, result, [("trajgen train seed=0", None), ("trajgen train seed=0", "trajgen evaluate")])
    assert "- c-s1, c-s0: It broke." in (tmp_path / "table.md").read_text()
    assert (tmp_path / "plot.png").is_file()
    lines = (tmp_path / "commands.sh").read_text().splitlines()
    assert lines[-2:] == ["trajgen train seed=0", "trajgen evaluate"]
    assert (tmp_path / "commands.sh").stat().st_mode & 0o100


@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_table_on_the_screen_has_every_figure(width: int, tmp_path: Path) -> None:
    console = Console(width=width, file=io.StringIO())
    print_results(gather(STUDY, cells_of(tmp_path, **FULL), {"c-s1": "[oddly] it broke"}), console)
    text = console.file.getvalue()
    assert "0.500" in text and "+0.250" in text and "7.0" in text and "a|b" in text and "[oddly] it broke" in text
    assert max(map(len, text.splitlines())) <= width


def test_no_number_is_broken_where_the_table_is_narrow(tmp_path: Path) -> None:
    result = gather(STUDY, cells_of(tmp_path, **FULL), {})
    large = {"mean": 11110.5, "iqm": 11110.5, "difference": -1518.4, "minutes": 12.3, "parameters": 1289192}
    for row in result["rows"]:
        row |= large | {"name": "L_inv on sampled pref", "difference_ci95": [-2752.9, -283.9], "seeds": [0]}
    console = Console(width=80, file=io.StringIO())
    print_results(result, console)
    cells = [cell for name, cells in columns(result).items() if name != "variant" for cell in cells]
    words = [word for cell in cells for word in cell.split()]
    assert [word for word in words if word not in console.file.getvalue()] == [] and "1,289,192" in words


def test_variants_that_differ_in_their_budget_are_a_curve(tmp_path: Path) -> None:
    words = {
        "bc 1x": ("recipe=bc", "engine.budget=1"),
        "bc 3x": ("recipe=bc", "engine.budget=3"),
        "tt 1x": ("recipe=tt", "engine.budget=1"),
    }
    study = Study(name="compute", variants=dict.fromkeys(words, Variant()), seeds=(0,))
    cells = [
        Cell(Row(name, name, overrides, composed(("recipe=bc",)), {}, name), 0, tmp_path)
        for name, overrides in words.items()
    ]
    for cell in cells:
        cell.out.mkdir(parents=True)
        (cell.out / "evaluation.json").write_text(json.dumps(evaluation((1.0, 3.0))))
        (cell.run / "metrics.jsonl").write_text(json.dumps({"stage": "one", "step": 5, "seconds": 60.0}) + "\n")
    result = gather(study, cells, {})
    assert [row["curve"] for row in result["rows"]] == ["bc", "bc", None]
    greedy = replace(cells[0], row=replace(cells[0].row, name="greedy", overrides={"sampler": {"name": "greedy"}}))
    greedy.out.mkdir(parents=True)
    (greedy.out / "evaluation.json").write_text(json.dumps(evaluation((1.0, 3.0))))
    assert [row["curve"] for row in gather(study, [cells[0], greedy], {})["rows"]] == [None, None]
    write_results(tmp_path, result, [])
    assert "(curve.png)" in (tmp_path / "table.md").read_text() and (tmp_path / "curve.png").is_file()


def test_nothing_finished_still_makes_a_page(tmp_path: Path) -> None:
    cells = cells_of(tmp_path)
    result = gather(STUDY, cells, {cell.name: "It broke." for cell in cells})
    write_results(tmp_path, result, [])
    assert "It broke." in (tmp_path / "table.md").read_text() and (tmp_path / "plot.png").exists()
