"""Every recipe on a GPU: trained by graphs and kernel by kernel, acting, and what commands do there."""

from __future__ import annotations

import json
import socket
import warnings
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import profile_steps
import pytest
import small
import tiny
import torch
import torch.distributed as dist
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from trajgen.cli import main
from trajgen.data import windows
from trajgen.engine.loop import Training
from trajgen.engine.options import EngineOptions, StageOptions

CPU = torch.device("cpu")


def train(setup: small.Setup, folder: Path, **changes: Any) -> str:
    """Trains each stage for eight steps, and returns what was printed."""
    folder.mkdir()
    text, stages = StringIO(), setup.planner.stages()
    settings = {stage.name: StageOptions(steps=8, batch_size=16) for stage in stages}
    options = EngineOptions(**{"stages": settings, "precision": "float32", "log_every": 4} | changes)
    console = Console(file=text, width=200)
    Training(setup.planner, stages, setup.source, options, folder, 0, setup.source.device, console).run()
    return text.getvalue()


def close(one: small.Setup, other: small.Setup) -> None:
    for name, value in one.planner.state_dict().items():
        torch.testing.assert_close(value, other.planner.state_dict()[name], atol=1e-3, rtol=1e-3, msg=name)


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", small.RECIPES)
def test_a_recipe_trains_and_acts_by_graphs_as_without(recipe: str, tmp_path: Path) -> None:
    captured, eager = small.Setup(recipe, "cuda"), small.Setup(recipe, "cuda")
    assert "without a CUDA graph" not in train(captured, tmp_path / "captured")  # no stage waits
    train(eager, tmp_path / "eager", cuda_graph=False)
    close(captured, eager)
    actions = small.actions(captured.policy())
    assert np.isfinite(actions).all()
    graph = small.actions(captured.policy(backend="cuda_graph"))
    np.testing.assert_allclose(graph, actions, atol=1e-3)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_checkpoint_of_one_device_acts_on_the_other(device: str, tmp_path: Path) -> None:
    trained, other = (small.Setup("bc", name) for name in (device, "cpu" if device == "cuda" else "cuda"))
    train(trained, tmp_path / "run")
    weights = load_file(tmp_path / "run" / "checkpoints" / "final.safetensors")
    other.planner.load_state_dict({name.removeprefix("model."): value for name, value in weights.items()})
    np.testing.assert_allclose(small.actions(trained.policy()), small.actions(other.policy()), atol=1e-2)


def test_data_of_the_host_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resident = small.Setup("mage", "cuda")
    monkeypatch.setattr(windows, "_home", lambda episodes, device: CPU)
    setup, on_the_cpu = small.Setup("mage", "cuda"), small.Setup("mage", "cpu")
    assert resident.source.on_device and not setup.source.on_device
    for step in range(3):
        if step == 2:
            torch.cuda.set_sync_debug_mode("error")
        try:
            batch = setup.source.batch(step, 16)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        expected = on_the_cpu.source.batch(step, 16)
        for name, value in vars(expected).items():
            if isinstance(value, Tensor):
                torch.testing.assert_close(getattr(batch, name).cpu(), value)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Synchronization debug mode")  # is not the user's concern
        assert "without a CUDA graph" not in train(setup, tmp_path / "run")


def test_prepared_windows_are_drawn_within_a_graph(tmp_path: Path) -> None:
    captured, eager = small.Setup("mage", "cuda"), small.Setup("mage", "cuda")
    stages = {stage.name: StageOptions(steps=1, batch_size=16) for stage in captured.planner.stages()}
    stages["action"] = StageOptions(steps=5, batch_size=16, prepared_windows=32)
    assert "without a CUDA graph" not in train(captured, tmp_path / "captured", stages=stages)
    train(eager, tmp_path / "eager", stages=stages, cuda_graph=False)
    close(captured, eager)


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("dt", {"accumulate": 2}),
        pytest.param("mage", {"compile": True}, marks=pytest.mark.gpu),
    ],
    ids=str,
)
def test_other_ways_of_training(recipe: str, changes: dict[str, Any], tmp_path: Path) -> None:
    setup = small.Setup(recipe, "cuda")
    train(setup, tmp_path / "run", **changes)
    assert all(value.isfinite().all() for value in setup.planner.parameters())


@pytest.mark.gpu
def test_commands_on_the_gpu(run: Path, tmp_path: Path) -> None:
    main(["evaluate", f"run={run}", "device=cuda", "policy.backend=cuda_graph", f"out={tmp_path / 'evaluation'}"])
    evaluation = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert evaluation["hardware"]["cuda"] == torch.cuda.get_device_name()
    main(["export", f"run={run}", "format=torch_export", f"out={tmp_path / 'exported'}"])
    assert (tmp_path / "exported" / "plan.pt2").exists()
    words = [word for word in tiny.TRAIN if not word.startswith("device")]
    main(["bench", "train", *words, "device=cuda", "repeats=2", f"out={tmp_path / 'train.json'}"])
    main(["bench", "decision", f"run={run}", "repeats=2", "batch=[1]", f"out={tmp_path / 'decision.json'}"])
    lines = json.loads((tmp_path / "decision.json").read_text())["lines"]
    assert {line["name"] for line in lines} >= {"eager", "cuda_graph"}


@pytest.mark.simulated  # on a GPU: device_check.sh
def test_the_profile_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script that ``device_check.sh`` runs measures all stages that are trained."""
    monkeypatch.setenv("DEVICE", "cpu")
    monkeypatch.setenv("REPEATS", "1")
    profile_steps.main(str(tmp_path / "profile.json"), tiny.TRAIN[0], *tiny.TRAIN[2:])
    stages = json.loads((tmp_path / "profile.json").read_text())["stages"]
    assert set(stages) == set(tiny.STAGES)
    assert all(figures["ms"] > 0 for figures in stages.values())


@pytest.mark.gpu
def test_collectives_of_one_process_by_nccl() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    device = torch.device("cuda", 0)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=address, rank=0, world_size=1, device_id=device)
    try:
        for kind in (torch.float32, torch.int64, torch.bool):
            dist.broadcast(torch.ones(3, device=device).to(kind), src=0)
        dist.gather(torch.ones(2, device=device), [torch.empty(2, device=device)], dst=0)
        dist.all_reduce(torch.ones(3, device=device))
        flag = torch.tensor([1])
        work = dist.all_reduce(flag, async_op=True)
        assert work is not None
        work.wait()
        dist.broadcast_object_list([{"a": 1}], src=0, device=CPU)
    finally:
        dist.destroy_process_group()
