"""What is only true of a GPU: the same plans as on the CPU, and training on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from rich.console import Console
from torch import Tensor

from trajgen.core.types import Batch
from trajgen.engine.device import choose_device
from trajgen.engine.loop import Training
from trajgen.engine.options import EngineOptions, StageOptions
from trajgen.export.backends import plan_fn


def on_the_gpu(batch: Batch) -> Batch:
    return batch.map(Tensor.cuda)


class Source(tiny.RandomSource):
    def batch(self, step: int, size: int, rank: int = 0) -> Batch:
        return on_the_gpu(super().batch(step, size, rank))


def ready() -> Any:
    planner = tiny.planner(sampler="greedy", return_target="quantile")
    tiny.shake(planner)
    first = planner.stages()[0]
    first.begin(planner)
    first.loss(tiny.batch(64))
    return planner.eval()


def test_auto_takes_the_gpu() -> None:
    assert choose_device("auto").type == "cuda"


def test_a_plan_is_the_same_as_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    planner, cond = ready(), tiny.cond(32)
    on_cpu = planner.plan(cond)
    planner.cuda()
    on_gpu = planner.plan(cond.map(lambda values: values.cuda()))
    same = (on_cpu.codes == on_gpu.codes.cpu()).all(1)
    assert same.float().mean() >= 0.9  # a tie between two codes may fall either way
    torch.testing.assert_close(on_cpu.trajectory[same], on_gpu.trajectory.cpu()[same], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("precision", ["float32", pytest.param("auto", marks=pytest.mark.gpu)])
def test_both_stages_train(precision: Any, tmp_path: Path) -> None:
    planner = tiny.planner(return_target="quantile").cuda()
    before = {k: v.clone() for k, v in planner.state_dict().items()}
    stages = {name: StageOptions(steps=3, batch_size=32) for name in tiny.STAGES}
    options = EngineOptions(stages=stages, precision=precision, log_every=1, checkpoint_every=2)
    device, console = torch.device("cuda"), Console(quiet=True)
    Training(planner, planner.stages(), Source(), options, tmp_path, 0, device, console).run()
    after = planner.state_dict()
    assert all(v.isfinite().all() for v in after.values() if v.is_floating_point())
    assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith("prior."))
    assert (tmp_path / "checkpoints" / "final.safetensors").exists()


@pytest.mark.gpu  # on a simulated one: test_simulated.py
def test_a_stopped_training_goes_on(tmp_path: Path) -> None:
    """It ends in the weights of one that was not stopped."""

    def train(source: Any, folder: Path, resume: bool = False) -> Any:
        planner = tiny.planner(return_target="quantile").cuda()
        stages = {name: StageOptions(steps=4, batch_size=32) for name in tiny.STAGES}
        options = EngineOptions(stages=stages, precision="float32", log_every=1, checkpoint_every=2)
        device, console = torch.device("cuda"), Console(quiet=True)
        folder.mkdir(exist_ok=True)
        Training(planner, planner.stages(), source, options, folder, 0, device, console).run(resume=resume)
        return planner

    class Stops(Source):
        def batch(self, step: int, size: int, rank: int = 0) -> Batch:
            if step == 4 * tiny.STAGES.index("prior") + 3:  # the last step of the prior
                raise InterruptedError
            return super().batch(step, size, rank)

    with pytest.raises(InterruptedError):
        train(Stops(), tmp_path / "parts")
    resumed, uninterrupted = train(Source(), tmp_path / "parts", resume=True), train(Source(), tmp_path / "whole")
    for name, value in uninterrupted.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_plan_by_a_graph_is_the_plan(batch: int) -> None:
    planner = ready().cuda()
    planner.sampler = tiny.planner(sampler="temperature").sampler
    eager, graph = plan_fn("eager", planner), plan_fn("cuda_graph", planner)
    rng, other_rng = torch.Generator("cuda").manual_seed(1), torch.Generator("cuda").manual_seed(1)
    for seed in range(3):
        cond = tiny.cond(batch, seed).map(lambda values: values.cuda())
        with torch.inference_mode():
            (_, expected), (_, plan) = eager(cond, rng), graph(cond, other_rng)
        assert torch.equal(plan.codes, expected.codes)
        torch.testing.assert_close(plan.latent, expected.latent, atol=1e-4, rtol=1e-4)
