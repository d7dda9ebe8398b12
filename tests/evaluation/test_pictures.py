"""Pictures and reports come out, for every shape of input they claim to take."""

from __future__ import annotations

import json
import struct
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from walks import Constant, walk_env

from trajgen.core.files import read_metrics
from trajgen.evaluation.evaluate import EvaluationOptions, evaluate
from trajgen.viz.plots import curves_figure, plan_figure, returns_figure, training_figure
from trajgen.viz.summary import print_evaluation, summary_markdown

WALLS = [(0, 0, 4, 1), (0, 3, 4, 1), (0, 1, 1, 2), (3, 1, 1, 2)]


def size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG file, from its header."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 4000
    return struct.unpack(">II", content[16:24])


@pytest.mark.parametrize(("scales", "executed", "goal"), [(1, None, None), (4, 9, (2.5, 2.5)), (8, 1, (2.5, 2.5))])
def test_plan_over_a_maze(tmp_path: Path, scales: int, executed: int | None, goal: tuple | None) -> None:
    plans = np.random.default_rng(0).uniform(1, 3, (scales, 3, 6, 2))
    path = None if executed is None else plans[-1, 0][:1].repeat(executed, 0)
    plan_figure(tmp_path / "new" / "plan.png", WALLS, plans, plans[-1, 0, 0], goal, path, range(1, scales + 1))
    width, height = size(tmp_path / "new" / "plan.png")
    rows = {1: 1, 4: 1, 8: 2}[scales]  # nine panels wrap
    columns = {1: 1, 4: 5, 8: 5}[scales]
    assert 0.8 * rows / columns < height / width < 1.4 * rows / columns


def test_curves_show_what_varies_most(tmp_path: Path) -> None:
    states = np.random.default_rng(0).normal(size=(4, 2, 6, 3)) * np.array([1, 0, 1])
    curves_figure(tmp_path / "all.png", states, (1, 2, 3, 6), executed=states[-1, 0])
    curves_figure(tmp_path / "two.png", states, (1, 2, 3, 6), names=["x", "y", "z"], most=2)
    assert size(tmp_path / "two.png")[1] < size(tmp_path / "all.png")[1]


def test_training_has_a_panel_a_stage(tmp_path: Path) -> None:
    rows = [
        {"stage": stage, "step": step, "total": 1 / (step + 1), "seconds": 0.1}
        for stage in ("tokenizer", "prior")
        for step in range(5)
    ]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"stage": "pri')
    assert read_metrics(metrics) == rows
    training_figure(tmp_path / "two.png", metrics)
    metrics.write_text("")
    training_figure(tmp_path / "none.png", metrics)
    assert size(tmp_path / "two.png")[0] == 2 * size(tmp_path / "none.png")[0]


def test_returns_leave_out_failures(tmp_path: Path) -> None:
    returns_figure(tmp_path / "returns.png", [1.0, np.nan, 3.0], [2.0, 2.0, 2.0])
    returns_figure(tmp_path / "none.png", [np.nan], [1.0])
    assert size(tmp_path / "returns.png")[0] > 500 and size(tmp_path / "none.png")[0] > 500


@pytest.fixture(scope="module")
def figures() -> dict:
    options = EvaluationOptions(episodes=4)
    return evaluate(Constant(0.8), walk_env(), options, extra={"condition_error": {"state": 0.125}}).to_dict()


def test_summary_is_one_page_with_its_figures(figures: dict) -> None:
    config = {"recipe": "mage", "seed": 3, "data": {"id": "a/walk-v0"}}
    stages = [
        {
            "name": "tokenizer",
            "steps": 100,
            "minutes": 1.25,
            "parts": {"data": 0.05, "forward": 0.5, "backward": 0.7},
            "losses": {"total": 0.01234},
            "usage": [0.5, 1.0],
        },
        {"name": "prior", "steps": 200},
    ]
    page = summary_markdown(config, figures, stages, ["plots/plan.png"], versions={"torch": "2.9"})
    for words in (
        "# mage on walk",
        "| ratio to the controller | 0.800 |",
        "| normalized by two to six (2 to 6) |",
        "| condition error, state | 0.125 |",
        "- data: a/walk-v0",
        "- versions: torch 2.9",
        "| tokenizer | 100 | 1.2 | backward 56%, forward 40%, data 4% | total 0.0123 |",
        "| prior | 200 | – | – | – |",
        "| 2 | 100% |",
        "![plan](plots/plan.png)",
        "trajgen train recipe=mage seed=3",
    ):
        assert words in page
    assert page.count("\n") < 80 and "\n\n\n" not in page and "None" not in page


def test_summary_of_the_least(figures: dict) -> None:
    least = {"env": "walk", "episodes": 1, "return": figures["return"]}
    page = summary_markdown({}, least, [], [])
    assert "| return, mean |" in page and "None" not in page


def test_terminal_table_and_failures(figures: dict) -> None:
    failed = [{"seed": 7, "step": 2, "error": "RuntimeError: [diverged]"}]
    text = StringIO()
    print_evaluation(figures | {"errors": failed}, Console(file=text, width=120))
    shown = text.getvalue()
    assert "walk" in shown and "0.800" in shown and "1 failed" in shown
    assert "seed 7 failed at step 2: RuntimeError: [diverged]" in shown
