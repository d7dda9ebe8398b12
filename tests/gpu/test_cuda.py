"""What is only true of a GPU: the same plans as on the CPU, and training on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from rich.console import Console

from trajgen.core.types import Batch
from trajgen.engine.device import choose_device
from trajgen.engine.loop import Training
from trajgen.engine.options import EngineOptions, StageOptions
from trajgen.export.backends import plan_fn

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")


def on_the_gpu(batch: Batch) -> Batch:
    return Batch(**{k: None if v is None else v.cuda() for k, v in vars(batch).items()})


class Source(tiny.RandomSource):
    def batch(self, step: int, size: int, rank: int = 0) -> Batch:
        return on_the_gpu(super().batch(step, size, rank))


def ready() -> Any:
    made = tiny.planner(sampler="greedy", return_target="quantile")
    tiny.shake(made)
    first = made.stages()[0]
    first.begin(made)
    first.loss(tiny.batch(64))
    return made.eval()


def test_auto_takes_the_gpu() -> None:
    assert choose_device("auto").type == "cuda"


def test_a_plan_is_the_same_as_on_the_cpu() -> None:
    torch.set_float32_matmul_precision("highest")
    made, known = ready(), tiny.cond(32)
    own = made.plan(known)
    made.cuda()
    other = made.plan(known.map(lambda values: values.cuda()))
    same = (own.codes == other.codes.cpu()).all(1)
    assert same.float().mean() >= 0.9  # a tie between two codes may fall either way
    torch.testing.assert_close(own.trajectory[same], other.trajectory.cpu()[same], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_both_stages_train(precision: Any, tmp_path: Path) -> None:
    made = tiny.planner(return_target="quantile").cuda()
    before = {k: v.clone() for k, v in made.state_dict().items()}
    stages = {name: StageOptions(steps=3, batch_size=32) for name in ("tokenizer", "prior")}
    options = EngineOptions(stages=stages, precision=precision, log_every=1, checkpoint_every=2)
    device, console = torch.device("cuda"), Console(quiet=True)
    Training(made, made.stages(), Source(), options, tmp_path, 0, device, console).run()
    after = made.state_dict()
    assert all(v.isfinite().all() for v in after.values() if v.is_floating_point())
    assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith("prior."))
    assert (tmp_path / "checkpoints" / "final.safetensors").exists()


def test_a_stopped_training_goes_on(tmp_path: Path) -> None:
    def train(source: Any, resume: bool) -> Any:
        made = tiny.planner(return_target="quantile").cuda()
        stages = {name: StageOptions(steps=4, batch_size=32) for name in ("tokenizer", "prior")}
        options = EngineOptions(stages=stages, precision="float32", log_every=1, checkpoint_every=2)
        device, console = torch.device("cuda"), Console(quiet=True)
        Training(made, made.stages(), source, options, tmp_path, 0, device, console).run(resume=resume)
        return made

    class Stops(Source):
        def batch(self, step: int, size: int, rank: int = 0) -> Batch:
            if step == 6:
                raise InterruptedError
            return super().batch(step, size, rank)

    with pytest.raises(InterruptedError):
        train(Stops(), resume=False)
    made = train(Source(), resume=True)
    assert all(v.isfinite().all() for v in made.state_dict().values() if v.is_floating_point())


@pytest.mark.parametrize("batch", [1, 3])
def test_a_plan_by_a_graph_is_the_plan(batch: int) -> None:
    made = ready().cuda()
    made.sampler = tiny.planner(sampler="temperature").sampler
    eager, graph = plan_fn("eager", made), plan_fn("cuda_graph", made)
    rng, other = torch.Generator("cuda").manual_seed(1), torch.Generator("cuda").manual_seed(1)
    for seed in range(3):
        cond = tiny.cond(batch, seed).map(lambda values: values.cuda())
        with torch.inference_mode():
            (_, expected), (_, plan) = eager(cond, rng), graph(cond, other)
        assert torch.equal(plan.codes, expected.codes)
        torch.testing.assert_close(plan.latent, expected.latent, atol=1e-4, rtol=1e-4)
