"""The learning rate, the running average, clipping, and random numbers that depend on the step alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from trajgen.core.errors import ConfigError
from trajgen.core.types import Stage
from trajgen.engine.optimization import Optimization
from trajgen.engine.options import StageOptions
from trajgen.engine.runtime import autocast, choose_device, seed_step


def make(steps: int = 100, **changes: Any) -> tuple[nn.Linear, Optimization]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    stage = Stage("one", model, list(model.parameters()))
    return model, Optimization(model, stage, StageOptions(**{"lr": 0.1, "ema_decay": 0.0, **changes}), steps)


def rate(optimization: Optimization, step: int) -> float:
    optimization.rate.step_update(step)
    (value,) = {group["lr"] for group in optimization.optimizer.param_groups}
    return float(value)


def test_the_rate_warms_up_and_falls_along_a_cosine() -> None:
    _, made = make(100, warmup=0.1)
    assert rate(made, 0) == pytest.approx(0.001)  # a hundredth of the peak
    assert rate(made, 5) == pytest.approx(0.001 + 0.5 * 0.099)
    peak = rate(made, 10)
    assert peak == pytest.approx(0.001 + 0.099 * (1 + math.cos(math.pi * 10 / 100)) / 2)
    assert max(rate(made, step) for step in range(100)) == pytest.approx(peak, rel=0.1)
    assert rate(made, 50) == pytest.approx(0.001 + 0.099 / 2)
    assert rate(made, 99) == pytest.approx(0.001, rel=0.05)
    falling = [rate(made, step) for step in range(10, 100)]
    assert falling == sorted(falling, reverse=True)


def test_the_rate_is_a_function_of_the_step_alone() -> None:
    (_, one), (_, other) = make(50), make(50)
    for step in range(30):
        rate(one, step)
    assert rate(one, 31) == rate(other, 31)


def test_without_warm_up_the_rate_starts_at_its_peak() -> None:
    _, made = make(10, warmup=0.0)
    assert rate(made, 0) == pytest.approx(0.1)


def test_matrices_decay_and_vectors_do_not() -> None:
    model, made = make(weight_decay=0.5, warmup=0.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    made.step(sum(p.sum() * 0 for p in model.parameters()), 0)
    torch.testing.assert_close(model.weight, before["weight"] * (1 - 0.1 * 0.5))
    torch.testing.assert_close(model.bias, before["bias"])


def test_the_norm_is_that_of_the_gradient_before_clipping() -> None:
    model, made = make(grad_clip=1e-3, optimizer="sgd", weight_decay=0.0, warmup=0.0)
    before = model.bias.clone()
    norm = made.step((model.bias * torch.tensor([3.0, 4.0])).sum(), 0)
    assert float(norm) == pytest.approx(5.0)
    assert float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()) < 1.1e-3
    assert (model.bias - before).norm() < 1e-3


def test_no_clipping_at_zero() -> None:
    model, made = make(grad_clip=0.0)
    made.step((model.bias * torch.tensor([300.0, 400.0])).sum(), 0)
    assert float(model.bias.grad.norm()) == pytest.approx(500)


def test_the_running_average_by_hand() -> None:
    model, made = make(ema_decay=0.9)
    assert made.ema is not None
    averages = []
    for step in range(4):
        before = made.ema.module.bias.clone()
        made.step(model.bias.sum(), step)
        decay = min(0.9, made.ema.get_decay(step))
        averages.append(decay)
        torch.testing.assert_close(made.ema.module.bias, decay * before + (1 - decay) * model.bias)
    assert averages == sorted(averages)  # young averages forget faster
    average = made.ema.module.bias.clone()
    assert not torch.equal(model.bias, average)
    made.finish()
    assert torch.equal(model.bias, average)


def test_averaging_what_a_stage_changes_is_averaging_everything() -> None:
    """Bit for bit, with weights of another stage, a buffer with a fraction, one that is replaced, and a count."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    model.register_buffer("place", torch.zeros(2))
    stage = Stage("first", model, [*model[0].parameters(), *model[2].parameters()])
    made = Optimization(model, stage, StageOptions(lr=0.1, ema_decay=0.9), 9)
    whole = ModelEmaV3(model, decay=0.9, use_warmup=True)
    for step in range(9):
        model.place = torch.full((2,), float(step))
        made.step(model(torch.randn(5, 3)).square().sum(), step)
        whole.update(model, step=step)
    assert made.ema is not None
    own, all_of_it = made.ema.module.state_dict(), whole.module.state_dict()
    assert own["2.num_batches_tracked"] == 9 and not torch.equal(own["0.weight"], model[0].weight)
    assert own.keys() == all_of_it.keys() and all(torch.equal(own[name], all_of_it[name]) for name in own)


def test_a_restored_optimiser_goes_on_as_if_nothing_had_been() -> None:
    results = []
    for stop in (None, 3):
        model, made = make()
        for step in range(6):
            if step == stop:
                kept, weights = made.tensors(), {k: v.clone() for k, v in model.state_dict().items()}
                model, made = make()
                model.load_state_dict(weights)
                made.restore({k: v.clone() for k, v in kept.items()})
            made.step((model.bias - step).square().sum() + model.weight.square().sum(), step)
        results.append(model.weight.clone())
    assert torch.equal(*results)


@pytest.mark.parametrize("name", ["adamw", "lion", "sgd", "muon"])
def test_optimisers_of_timm(name: str) -> None:
    model, made = make(optimizer=name)
    before = model.weight.clone()
    made.step(model(torch.ones(1, 3)).square().sum(), 3)
    assert not torch.equal(model.weight, before)


def test_an_unknown_optimiser_is_refused() -> None:
    with pytest.raises(ConfigError, match="adamm"):
        make(optimizer="adamm")


def test_random_numbers_depend_on_seed_and_step_alone() -> None:
    def draw(seed: int, step: int) -> list[float]:
        seed_step(seed, step)
        return torch.rand(3).tolist()

    first = draw(1, 5)
    draw(1, 6)
    assert draw(1, 5) == first
    drawn = {tuple(draw(seed, step)) for seed in range(8) for step in range(-1, 40)}
    assert len(drawn) == 8 * 41


def test_devices_and_precision() -> None:
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="device=gpu"):
        choose_device("gpu")
    x = torch.randn(4, 4)
    with autocast(torch.device("cpu"), "bfloat16"):
        assert (x @ x).dtype == torch.bfloat16
    with autocast(torch.device("cpu"), "float32"):
        assert (x @ x).dtype == torch.float32
