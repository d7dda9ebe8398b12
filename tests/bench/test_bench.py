"""What the benches count and print; not how fast anything is."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import candidates
import pytest
import tiny
import torch

from trajgen.bench import decision
from trajgen.bench.roofline import Cost, Rates, count_cost
from trajgen.bench.timing import Timing, timed
from trajgen.cli import main
from trajgen.core.errors import ConfigError
from trajgen.core.planning import plan_step
from trajgen.evaluation.evaluate import EvaluationOptions

SMALL = ["prior.width=16", "prior.depth=1", "prior.heads=2", "conditioner.width=16", "decoder.width=16"]


def test_timings_by_hand() -> None:
    timing = Timing((1.0, 2.0, 3.0, 4.0, 100.0))
    assert timing.median == 3 and timing.spread == 2 and timing.p95 == pytest.approx(80.8)
    assert timing.to_dict()["repeats"] == 5 and timing.to_dict()["fastest_ms"] == 1
    calls: list[int] = []
    timing = timed(lambda: calls.append(0), torch.device("cpu"), 15)
    assert len(timing.values) == 15 and len(calls) == 25  # ten to warm up


def test_the_roofline_of_a_product_by_hand() -> None:
    left, right = torch.randn(2, 3), torch.randn(3, 5)
    cost = count_cost(lambda: (left @ right).t())
    assert cost == Cost(operations=2 * 2 * 3 * 5, bytes=4 * (2 * 3 + 3 * 5), launches=1)  # a view computes nothing
    cost = Cost(operations=1000, bytes=100, launches=1)
    assert cost.roofline(Rates(operations=1e6, bytes=1e9)) == pytest.approx(1.0)
    assert cost.roofline(Rates(operations=1e9, bytes=1e5)) == pytest.approx(1.0)


def test_a_decision_is_timed_beside_a_decision_transformer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    words = ["repeats=2", "batch=[1,3]", "backends=[eager]", "threads=1", "device=cpu", f"out={out}", "--against", "dt"]
    main(["bench", "decision", "recipe=mage", *SMALL, *words])
    figures = json.loads(out.read_text())
    names = [(line["name"], line["batch"]) for line in figures["lines"]]
    assert names == [*((name, batch) for name in ("eager", "DT (transformers)") for batch in (1, 3)), ("roofline", 1)]
    assert all(line["median_ms"] > 0 and line["repeats"] == 2 for line in figures["lines"][:-1])
    assert figures["lines"][-1]["operations"] > 0 and figures["machine"]["threads"] == torch.get_num_threads() == 1
    assert figures["command"].startswith("trajgen bench decision recipe=mage")
    assert "roofline at batch 1" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["bench", "decision", f"out={out}"])
    assert json.loads(out.read_text()) == figures and "nothing is overwritten" in capsys.readouterr().err


def test_a_run_for_another_device_is_timed_by_the_backends_that_are_asked_for(run: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "run", tmp_path / "figures.json"
    shutil.copytree(run, folder)
    config = json.loads((folder / "config.json").read_text())
    config["policy"]["backend"] = "cuda_graph"
    (folder / "config.json").write_text(json.dumps(config))
    words = ["device=cpu", "imports=[json]", "backends=[eager]", "repeats=1", "batch=[1]", f"out={out}"]
    main(["bench", "decision", f"run={folder}", *words])
    assert json.loads(out.read_text())["lines"][0]["name"] == "eager"


def test_what_a_backend_cannot_run_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient within the plan, which ONNX cannot take, leaves the other figures as they are."""

    def refuse(backend: str, planner: Any) -> Any:
        if backend == "onnx":
            raise ConfigError("An exported plan takes no gradients.", got="value_scale=0.1")
        return partial(plan_step, planner)

    monkeypatch.setattr(decision, "plan_fn", refuse)
    out = tmp_path / "figures.json"
    words = ["repeats=2", "batch=[1,2]", "threads=1", "device=cpu", f"out={out}", "backends=[onnx,eager]"]
    main(["bench", "decision", "recipe=mage", *SMALL, *words])
    lines = json.loads(out.read_text())["lines"]
    assert [line["name"] for line in lines] == ["eager", "eager", "roofline", "onnx"]
    assert lines[-1]["refused"] == "An exported plan takes no gradients. value_scale=0.1"
    assert "onnx is not measured: An exported plan takes no gradients." in capsys.readouterr().out


def test_training_steps_and_data_are_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_place: Path
) -> None:
    train, data = tmp_path / "train.json", tmp_path / "data.json"
    main(["bench", "train", *tiny.TRAIN, "repeats=2", f"out={train}"])
    lines = json.loads(train.read_text())["lines"]
    assert {line["name"] for line in lines} == {"tokenizer", "return_target", "prior", "action"}
    assert {line["part"] for line in lines} == {"data", "forward", "backward", "optimizer"}
    assert {"stage", "backward", "optimizer", "windows/s"} <= {*capsys.readouterr().out.split()}  # on 80 columns
    main(["bench", "data", "data=pointmaze/umaze-dwell", "repeats=2", "batch=[4]", f"out={data}"])
    batch, load = json.loads(data.read_text())["lines"]
    assert batch["name"] == "batch" and batch["batch"] == 4 and load["name"] == "load" and load["steps"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["decision", "--against", "gpt"], "'gpt'"),
        (["decision", "repeats=0"], "repeats=1"),
        (["decision", "batch=[]"], "batch=1"),
        (["decision", "backends=[tpu]"], "backends"),
        (["decision", "run=runs/one", "prior.width=16"], "as it was trained"),
        (["decisions"], "Did you mean 'decision'"),
    ],
)
def test_mistakes_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", *words])
    assert message in capsys.readouterr().err


def test_the_curve_of_candidates_has_a_line_for_each_number(run: Path) -> None:
    choice = {"sampler": "best_of_n", "critic": "return"}
    options = EvaluationOptions(episodes=1, reference=False, latency=False)
    rows = candidates.curve(run, choice, (1, 3), options, repeats=2)
    assert [row[0] for row in rows] == ["one, not chosen", "1", "3"]
    assert rows[0][5] == "1.00" and all(len(row) == 8 and float(row[5]) > 0 and row[6].endswith("%") for row in rows)
