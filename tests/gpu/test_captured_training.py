"""Steps that are captured as CUDA graphs are the steps that are taken kernel by kernel."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from rich.console import Console
from test_cuda import Source
from torch import Tensor

from trajgen.engine.loop import Training
from trajgen.engine.options import EngineOptions, StageOptions


def train(folder: Path, *, cuda_graph: bool) -> tuple[dict[str, Tensor], list[dict[str, Any]], str]:
    torch.manual_seed(0)
    planner = tiny.planner(return_target="quantile").cuda()
    stages = {name: StageOptions(steps=12, batch_size=32) for name in ("tokenizer", "return_target", "prior")}
    options = EngineOptions(stages=stages, log_every=4, checkpoint_every=100, cuda_graph=cuda_graph)
    text, device = StringIO(), torch.device("cuda")
    folder.mkdir()
    Training(planner, planner.stages(), Source(), options, folder, 0, device, Console(file=text)).run()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [{k: v for k, v in line.items() if k in ("step", "total", "gradient_norm")} for line in lines]
    return planner.state_dict(), losses, text.getvalue()


@pytest.mark.gpu  # on a simulated one: test_simulated.py
def test_captured_steps_end_in_the_same_weights(tmp_path: Path) -> None:
    captured, losses, text = train(tmp_path / "captured", cuda_graph=True)
    expected, expected_losses, _ = train(tmp_path / "by_kernel", cuda_graph=False)
    assert "without a CUDA graph" not in text  # no stage waits for the device
    for name, value in expected.items():
        torch.testing.assert_close(captured[name], value, atol=1e-4, rtol=1e-4)
    for line, expected_line in zip(losses, expected_losses, strict=True):
        assert line == pytest.approx(expected_line, rel=1e-3)
