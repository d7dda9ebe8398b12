"""Figures and tables come out for every shape of input they claim to take, whatever names they hold."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console
from rich.text import Text
from walks import Constant, walk_env

from trajgen.core.tables import Table, interval, number, percent
from trajgen.evaluation.evaluate import EvaluationOptions, evaluate
from trajgen.viz import training
from trajgen.viz.figure import STYLE, captions, new_figure
from trajgen.viz.plans import plan_curves, plan_maps
from trajgen.viz.returns import draw_returns
from trajgen.viz.study import draw_curves, draw_study
from trajgen.viz.summary import print_evaluation, summary_markdown
from trajgen.viz.training import curves, draw_losses, draw_usage

WALLS = [(0, 0, 4, 1), (0, 3, 4, 1), (0, 1, 1, 2), (3, 1, 1, 2)]


def size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG file, from its header."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 4000
    return struct.unpack(">II", content[16:24])


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense"])
def test_a_backend_that_is_not_installed_is_not_needed(backend: str, tmp_path: Path) -> None:
    """A notebook exports MPLBACKEND to the commands that are run from its cells."""
    code = (
        "import os, pathlib; from trajgen.viz.returns import draw_returns; "
        f"draw_returns(pathlib.Path('returns.png'), [1.0], [2.0]); assert os.environ['MPLBACKEND'] == '{backend}'"
    )
    environ = os.environ | {"MPLBACKEND": backend}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, check=True, timeout=60)
    assert size(tmp_path / "returns.png")[0] > 500


@pytest.mark.parametrize(("study", "variant"), [("s", "$x^{$"), ("$\\frac{$", "a")])
def test_names_are_not_read_as_formulas(study: str, variant: str, tmp_path: Path) -> None:
    row = {"variant": variant, "equal": "steps", "reference": True, "mean": 1.0, "ci95": [0.5, 1.5]}
    rows = [row | {"by_seed": {"0": 1.0}}, row | {"equal": "time", "by_seed": {}, "ci95": [None, None]}]
    draw_study(tmp_path / "study.png", rows, title=study, reference=variant, unit="$_{$")
    metrics = [{"stage": f"{study}{variant}", "step": step, variant: 10.0**step, f"usage/{variant}": 0.5}
               for step in range(3)]  # fmt: skip
    assert draw_losses(tmp_path / "losses.png", metrics) and draw_usage(tmp_path / "usage.png", metrics)
    assert size(tmp_path / "study.png")[0] > 500


STUDY_ROW = {"variant": "prior.depth=2", "equal": "steps", "reference": True, "mean": 0.9, "ci95": [0.8, 1.0]}


@pytest.mark.parametrize("suffix", ["pdf", "svg"])
def test_pictures_for_papers_have_the_given_title_and_labels(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"plot.{suffix}"
    with captions("Depth of the prior", {"prior.depth=2": "two layers", "x": "share of the controller's return"}):
        draw_study(path, [STUDY_ROW | {"by_seed": {"0": 1.0}}], title="own", reference="", unit="ratio")
    content = path.read_bytes()
    assert content.startswith(b"%PDF" if suffix == "pdf" else b"<?xml")
    if suffix == "svg":
        text = content.decode()
        for word in ("Depth of the prior", "two layers", "share of the controller's return"):
            assert word in text
        assert "prior.depth" not in text and ">own<" not in text
    draw_losses(tmp_path / "after.svg", [{"stage": "own", "step": 1, "total": 1.0}])
    assert ">own<" in (tmp_path / "after.svg").read_text()  # captions are those of the pictures within


def test_one_seed_is_no_interval_over_seeds(tmp_path: Path) -> None:
    for seeds, words in ((1, "95 % over the episodes of one seed"), (2, "95 % over seeds and episodes")):
        rows = [STUDY_ROW | {"by_seed": {str(seed): 0.9 for seed in range(seeds)}}]
        draw_study(tmp_path / f"{seeds}.svg", rows, title="t", reference="", unit="ratio")
        assert words in (tmp_path / f"{seeds}.svg").read_text()


def test_scores_against_minutes_are_a_curve_of_each_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr("trajgen.viz.figure.write", lambda figure, path: (path.touch(), figures.append(figure)))
    rows = [
        STUDY_ROW | {"curve": curve, "minutes": minutes, "mean": (minutes or 0) / 100, "by_seed": {"0": 0.9}}
        for curve, minutes in (("mage", 30.0), ("bc", 2.0), ("mage", 10.0), (None, 5.0), ("bc", None))
    ]
    assert draw_curves(tmp_path / "curve.png", rows, title="t", unit="ratio")
    lines = {line.get_label(): line for line in figures[0].axes[0].lines}
    assert lines["mage"].get_xydata().tolist() == [[10, 0.1], [30, 0.3]]
    assert lines["bc"].get_xydata().tolist() == [[2, 0.02]]
    assert not draw_curves(tmp_path / "none.png", [row | {"curve": None} for row in rows], title="t", unit="ratio")
    assert len(figures) == 1


def test_a_curve_of_a_single_point_shows_a_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr("trajgen.viz.figure.write", lambda figure, path: (path.touch(), figures.append(figure)))
    draw_losses(tmp_path / "x.png", [{"stage": "a", "step": 5, "total": 1.0}])
    draw_losses(tmp_path / "x.png", [{"stage": "a", "step": step, "total": 1.0} for step in (5, 10)])
    assert [figure.axes[0].lines[0].get_marker() for figure in figures] == ["o", "None"]


def test_labels_of_a_logarithmic_axis_are_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    monkeypatch.setattr(
        "trajgen.viz.figure.write",
        lambda figure, path: (path.touch(), figure.draw_without_rendering(), figures.append(figure)),
    )
    draw_losses(tmp_path / "x.png", [{"stage": "a", "step": step, "total": 10.0**-step} for step in range(4)])
    labels = [label.get_text() for label in figures[0].axes[0].get_yticklabels()]
    assert {"0.01", "0.1", "1"} <= {*labels} and not any("$" in label for label in labels)


@pytest.mark.parametrize(("scales", "executed", "goal"), [(1, None, None), (4, 9, (2.5, 2.5)), (8, 1, (2.5, 2.5))])
def test_plans_over_a_maze(tmp_path: Path, scales: int, executed: int | None, goal: tuple | None) -> None:
    plans = np.random.default_rng(0).uniform(1, 3, (scales, 3, 6, 2))
    path = None if executed is None else plans[-1, 0][:1].repeat(executed, 0)
    titles = [f"scale {k}" for k in range(scales)]
    plan_maps(tmp_path / "new" / "plan.png", WALLS, plans, plans[-1, 0, 0], goal, path, titles)
    width, height = size(tmp_path / "new" / "plan.png")
    rows, columns = {1: (1, 1), 4: (1, 5), 8: (2, 5)}[scales]  # nine panels wrap
    assert 0.8 * rows / columns < height / width < 1.4 * rows / columns


def test_a_subgoal_is_marked_where_plans_lead_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr("trajgen.viz.figure.write", lambda figure, path: (path.touch(), figures.append(figure)))
    plans = np.random.default_rng(0).uniform(1, 3, (2, 3, 6, 2))
    for subgoal in (None, (1.5, 2.0)):
        plan_maps(tmp_path / "plan.png", WALLS, plans, plans[-1, 0, 0], (2.5, 2.5), plans[-1, 0], ["1", "2"], subgoal)
    marks = [[mark for ax in figure.axes for mark in ax.lines if mark.get_label() == "subgoal"] for figure in figures]
    assert [len(each) for each in marks] == [0, 2]  # not over the executed path
    assert marks[1][0].get_xydata().tolist() == [[1.5, 2.0]]


def test_curves_show_what_varies_most(tmp_path: Path) -> None:
    states = np.random.default_rng(0).normal(size=(4, 2, 6, 9)) * np.array([1, 0, 1, 0, 0, 0, 0, 0, 0])
    plan_curves(tmp_path / "most.png", states, list("abcd"), executed=states[-1, 0])
    plan_curves(tmp_path / "two.png", states[..., :2], list("abcd"), limits=(-np.ones(2), np.ones(2)))
    assert size(tmp_path / "two.png")[1] < size(tmp_path / "most.png")[1]


def test_training_has_a_panel_a_stage(tmp_path: Path) -> None:
    rows = [
        {"stage": stage, "step": step, "total": 1 / (step + 1), "part": -1.0, "note": "x", "usage/a": 0.5}
        for stage in ("tokenizer", "prior")
        for step in range(5)
    ]
    assert draw_losses(tmp_path / "two.png", rows) and draw_losses(tmp_path / "one.png", rows[:5])
    assert size(tmp_path / "two.png")[0] == 2 * size(tmp_path / "one.png")[0]
    assert not draw_losses(tmp_path / "none.png", []) and not (tmp_path / "none.png").exists()


def test_hundreds_of_stages_are_no_picture_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"stage": str(number), "step": 1, "total": 1.0, "usage/a": 0.5} for number in range(400)]
    assert training.MOST_STAGES * 3.7 * STYLE["savefig.dpi"] < 2**16
    monkeypatch.setattr(training, "MOST_STAGES", 4)
    for draw in (draw_losses, draw_usage):
        assert draw(tmp_path / "many.svg", rows)
        assert "the first 4 of 400 stages" in (tmp_path / "many.svg").read_text()


def test_usage_is_read_stage_by_stage(tmp_path: Path) -> None:
    rows = [
        {"stage": "high", "step": 1, "usage/a": 0.5, "usage/b": float("nan"), "perplexity/a": 3.0},
        {"stage": "low", "step": 1, "usage/a": 0.25},
        {"stage": "low", "step": 2, "usage/a": 0.75, "usage/text": "x"},
    ]
    assert curves(rows, "usage") == {"high": {"a": [(1, 0.5)]}, "low": {"a": [(1, 0.25), (2, 0.75)]}}
    assert draw_usage(tmp_path / "usage.png", rows) and size(tmp_path / "usage.png")[0] > 500
    assert not draw_usage(tmp_path / "none.png", [{"stage": "a", "step": 1, "total": 2.0}])


def test_returns_leave_out_failures(tmp_path: Path) -> None:
    for name, returns in (("some", [1.0, np.nan, 3.0]), ("none", [np.nan] * 3)):
        draw_returns(tmp_path / f"{name}.png", returns, [2.0, 2.0, 2.0])
        assert size(tmp_path / f"{name}.png")[0] > 500


def test_a_failed_figure_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError), new_figure(1, 1, tmp_path / "x.png"):
        _ = 1 / 0
    assert not (tmp_path / "x.png").exists()

    def full(_: Figure, path: Path) -> None:
        path.write_text("half of it")
        raise OSError(28, "No space left on device")

    (tmp_path / "x.png").write_text("before")
    monkeypatch.setattr("trajgen.viz.figure.write", full)
    with pytest.raises(OSError, match="No space"), new_figure(1, 1, tmp_path / "x.png"):
        pass
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_a_table_is_the_same_in_a_terminal_in_markdown_and_as_csv() -> None:
    table = Table.of({"run": ["a[/b]|c", "d"], "[x": ["1.0", "–"]})
    text = StringIO()
    console = Console(file=text, width=80)
    console.print(table.rich("title [/b]", "caption", edges=False), table.rich())
    shown = text.getvalue()
    assert shown.count("a[/b]|c") == 2 and "[x" in shown and "title [/b]" in shown and "caption" in shown
    assert table.markdown() == "| run | [x |\n| --- | ---: |\n| a[/b]\\|c | 1.0 |\n| d | – |"
    assert table.csv() == "run,[x\na[/b]|c,1.0\nd,–\n"
    assert Table(("a", "b"), [(Text("x", "red"), "y")], numeric=False).markdown().endswith("| x | y |")


def test_numbers_of_tables() -> None:
    assert [number(None), number(1234.56), number(-0.5, 3), number(12, 0)] == ["–", "1,234.6", "-0.500", "12"]
    assert [percent(None), percent(0.5)] == ["–", "50%"]
    assert [interval(None), interval([None, 1]), interval([0, 2000.0])] == ["–", "–", "[0.0, 2,000.0]"]


@pytest.fixture(scope="module")
def evaluation() -> dict:
    options = EvaluationOptions(episodes=4)
    figures = evaluate(Constant(0.8), walk_env(), options).to_dict()
    return figures | {"condition_error": {"state": 0.125}}


def test_summary_is_one_page_with_its_figures(evaluation: dict) -> None:
    config = {"recipe": "mage", "seed": 3, "data": {"id": "a/walk-v0"}}
    tokenizer = {
        "name": "tokenizer", "steps": 100, "minutes": 1.25, "precision": "bfloat16",
        "parts": {"data": 0.05, "forward": 0.5, "backward": 0.7},
        "losses": {"total": 0.01234}, "usage": {"1": 0.5, "2": 1.0},
    }  # fmt: skip
    captured = {
        "name": "action",
        "steps": 9,
        "minutes": 0.04,
        "parts": {"forward": 0.03, "backward": 0.0, "data": 0.01},
    }
    stages = [tokenizer, {"name": "prior", "steps": 200}, captured]
    errors = {"state": 0.125, "state_units": 0.1, "state_other_latent": 0.5, "state_zero_latent": 0.6}
    evaluation = evaluation | {"condition_error": errors, "hardware": {"cpu": "Z80", "threads": 1}}
    page = summary_markdown(config, evaluation, stages, ["plots/plan.png"], versions={"torch": "2.9"})
    for words in (
        "# mage on walk",
        "| ratio to the controller | 0.800 |",
        "| normalized by two to six (2 to 6) |",
        "| score | value | 95 % interval, or note |",
        "| condition error, state | 0.125 | 0.1 in its units, 0.5 with another plan's latent, 0.6 with zeros |",
        "- hardware: Z80, 1 thread\n",
        "- data: a/walk-v0",
        "- versions: torch 2.9",
        "| tokenizer | 100 | 1.2 | bfloat16 | backward 56%, forward 40%, data 4% | total 0.0123 |",
        "| prior | 200 | – | – | – | – |",
        "| action | 9 | 0.04 | – | forward and backward 75%, data 25% | – |",
        "| 2 | 100% |",
        "![plan](plots/plan.png)",
        "trajgen train recipe=mage seed=3",
    ):
        assert words in page
    assert page.count("\n") < 80 and "\n\n\n" not in page and "None" not in page
    least = summary_markdown({}, {"env": "walk", "episodes": 1, "return": evaluation["return"]}, [], [])
    assert "| return, mean |" in least and "None" not in least


def test_an_evaluation_in_a_terminal_names_what_failed(evaluation: dict) -> None:
    errors = [{"seed": 7, "step": 2, "error": "RuntimeError: [diverged]"}]
    text = StringIO()
    print_evaluation(evaluation | {"errors": errors, "env": "a[/b]"}, Console(file=text, width=120))
    shown = text.getvalue()
    assert "a[/b]" in shown and "0.800" in shown and "1 failed" in shown
    assert "seed 7 failed at step 2: RuntimeError: [diverged]" in shown
