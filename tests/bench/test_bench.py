"""What the benches count and print; not how fast anything is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch

from trajgen.bench.roofline import Cost, Rates, count_cost
from trajgen.bench.timing import Timing, timed
from trajgen.cli import main
from trajgen.cli.bench import read
from trajgen.core.errors import ConfigError

SMALL = ["prior.width=16", "prior.depth=1", "prior.heads=2", "conditioner.width=16", "decoder.width=16"]


def test_timings_by_hand() -> None:
    timing = Timing((1.0, 2.0, 3.0, 4.0, 100.0))
    assert timing.median == 3 and timing.spread == 2 and timing.p95 == pytest.approx(80.8)
    assert timing.to_dict()["repeats"] == 5 and timing.to_dict()["fastest_ms"] == 1


def test_a_function_is_called_to_warm_up_and_then_as_often_as_asked() -> None:
    calls: list[int] = []
    timing = timed(lambda: calls.append(0), torch.device("cpu"), 15)
    assert len(timing.values) == 15 and len(calls) == 25


def test_operations_and_bytes_of_a_product_by_hand() -> None:
    left, right = torch.randn(2, 3), torch.randn(3, 5)
    cost = count_cost(lambda: (left @ right).t())
    assert cost == Cost(operations=2 * 2 * 3 * 5, bytes=4 * (2 * 3 + 3 * 5), launches=1)  # a view computes nothing


def test_the_roofline_is_the_larger_of_operations_and_bytes() -> None:
    cost = Cost(operations=1000, bytes=100, launches=1)
    assert cost.roofline(Rates(operations=1e6, bytes=1e9)) == pytest.approx(1.0)
    assert cost.roofline(Rates(operations=1e9, bytes=1e5)) == pytest.approx(1.0)


def test_a_decision_is_timed_beside_a_decision_transformer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    words = ["repeats=2", "batch=[1,3]", "backends=[eager]", "device=cpu", f"out={out}", "--against", "dt"]
    main(["bench", "decision", "recipe=mage", *SMALL, *words])
    figures = json.loads(out.read_text())
    named = [(line["name"], line["batch"]) for line in figures["lines"]]
    assert named == [("eager", 1), ("eager", 3), ("DT (transformers)", 1), ("DT (transformers)", 3), ("roofline", 1)]
    assert all(line["median_ms"] > 0 and line["repeats"] == 2 for line in figures["lines"][:-1])
    assert figures["lines"][-1]["operations"] > 0 and figures["machine"]["threads"] == torch.get_num_threads()
    assert "roofline at batch 1" in capsys.readouterr().out


def test_figures_are_never_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    out.write_text("mine")
    with pytest.raises(SystemExit):
        main(["bench", "decision", f"out={out}"])
    assert out.read_text() == "mine" and "nothing is overwritten" in capsys.readouterr().err


def test_a_training_step_is_told_apart_by_its_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_place: Path
) -> None:
    out = tmp_path / "figures.json"
    main(["bench", "train", *tiny.TRAIN, "repeats=2", f"out={out}"])
    lines = json.loads(out.read_text())["lines"]
    assert {line["name"] for line in lines} == {"tokenizer", "return_target", "prior"}
    assert {line["part"] for line in lines} == {"data", "forward", "backward", "optimizer"}
    assert "data %" in capsys.readouterr().out


def test_data_are_timed(tmp_path: Path, tiny_place: Path) -> None:
    out = tmp_path / "figures.json"
    main(["bench", "data", "data=pointmaze/umaze-dwell", "repeats=2", "batch=[4]", f"out={out}"])
    batch, load = json.loads(out.read_text())["lines"]
    assert batch["name"] == "batch" and batch["batch"] == 4 and load["name"] == "load" and load["steps"] > 0


def test_words_that_are_no_option_of_a_bench_are_those_of_the_recipe() -> None:
    asked = read(["recipe=flat", "batch=[2,8]", "threads=1", "prior.width=64", "backends=[eager,onnx]"])
    assert asked.overrides == ["recipe=flat", "prior.width=64"]
    assert asked.batch == (2, 8) and asked.threads == 1 and asked.backends == ("eager", "onnx")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--against", "gpt"], "--against dt"),
        (["--against"], "--against dt"),
        (["repeats=0"], "repeats=1"),
        (["batch=[]"], "batch=1"),
        (["backends=[tpu]"], "backends"),
    ],
)
def test_bad_words_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(words)


def test_a_run_is_not_measured_with_other_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "decision", "run=runs/one", "prior.width=16"])
    assert "as it was trained" in capsys.readouterr().err


def test_an_unknown_bench_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "decisions"])
    assert "decision" in capsys.readouterr().err
