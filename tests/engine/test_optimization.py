"""The learning rate, parameter groups, clipping, the moving average, micro-batches, and seeds by step."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from trajgen.core.errors import CheckpointError, ConfigError
from trajgen.core.stages import ParameterGroup, Stage
from trajgen.core.types import Batch
from trajgen.engine.device import autocast, choose_device
from trajgen.engine.optimization import Optimization
from trajgen.engine.options import EngineOptions, StageOptions
from trajgen.engine.step import seed_step, split
from trajgen.engine.storage import Position, read_tensors, write_tensors


def make(steps: int = 100, model: nn.Module | None = None, **changes: Any) -> tuple[Any, Optimization]:
    torch.manual_seed(0)
    model = model or nn.Linear(3, 2)
    stage = Stage("one", lambda batch: {}, list(model.parameters()))
    return model, Optimization(model, stage, StageOptions(**{"lr": 0.1, "ema_decay": 0.0, **changes}), steps)


def take_step(optimization: Optimization, loss: Tensor, number: int) -> Tensor:
    optimization.optimizer.zero_grad()
    loss.backward()
    optimization.schedule(number)
    return optimization.update()


def rate(optimization: Optimization, step: int) -> float:
    optimization.scheduler.step_update(step)
    (value,) = {group["lr"] for group in optimization.optimizer.param_groups}
    return float(value)


def test_the_rate_warms_up_and_falls_along_a_cosine() -> None:
    _, optimization = make(100, warmup=0.1)
    assert rate(optimization, 0) == pytest.approx(0.001)  # a hundredth of the peak
    assert rate(optimization, 5) == pytest.approx(0.001 + 0.5 * 0.099)
    peak = rate(optimization, 10)
    assert peak == pytest.approx(0.001 + 0.099 * (1 + math.cos(math.pi * 10 / 100)) / 2)
    assert rate(optimization, 50) == pytest.approx(0.001 + 0.099 / 2)
    falling = [rate(optimization, step) for step in range(10, 100)]
    assert falling == sorted(falling, reverse=True)
    assert rate(optimization, 31) == rate(make(100, warmup=0.1)[1], 31)  # a function of the step alone
    assert rate(make(10, warmup=0.0)[1], 0) == pytest.approx(0.1)


def test_matrices_decay_and_vectors_do_not() -> None:
    model, optimization = make(weight_decay=0.5, warmup=0.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    take_step(optimization, sum(p.sum() * 0 for p in model.parameters()), 0)
    torch.testing.assert_close(model.weight, before["weight"] * (1 - 0.1 * 0.5))
    torch.testing.assert_close(model.bias, before["bias"])


def test_groups_have_rates_of_their_own() -> None:
    """By plain gradient descent: a gradient of 1 moves each weight by its rate, at each step of the schedule."""
    model = nn.ParameterList(torch.zeros(1) for _ in range(3))
    groups = [model[0], ParameterGroup([model[1]], lr_scale=0.5), ParameterGroup([model[2]], lr_scale=0.0)]
    stage = Stage("one", lambda batch: {}, groups)
    settings = StageOptions(lr=0.1, optimizer="sgd", warmup=0.0, ema_decay=0.0, grad_clip=0.0, weight_decay=0.0)
    optimization = Optimization(model, stage, settings, 10)
    for number, expected in ((0, 0.1), (5, 0.1 + 0.001 + 0.099 / 2)):
        optimization.optimizer.zero_grad()
        for parameter in model:
            parameter.grad = torch.ones(1)
        for group in optimization.optimizer.param_groups:
            group.update(momentum=0.0, nesterov=False)
        optimization.schedule(number)
        optimization.update()
        assert [p.item() for p in model] == pytest.approx([-expected, -expected / 2, 0.0])
    assert len(stage.trained) == 3 and [group.lr_scale for group in stage.groups] == [1.0, 0.5, 0.0]


def test_the_norm_is_that_of_the_gradient_before_clipping() -> None:
    model, optimization = make(grad_clip=1e-3, optimizer="sgd", weight_decay=0.0, warmup=0.0)
    before = model.bias.clone()
    norm = take_step(optimization, (model.bias * torch.tensor([3.0, 4.0])).sum(), 0)
    assert float(norm) == pytest.approx(5.0)
    assert float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()) < 1.1e-3
    assert (model.bias - before).norm() < 1e-3
    model, optimization = make(grad_clip=0.0)
    take_step(optimization, (model.bias * torch.tensor([300.0, 400.0])).sum(), 0)
    assert float(model.bias.grad.norm()) == pytest.approx(500)


def test_the_moving_average_is_timm_s() -> None:
    """Bit for bit, with frozen weights, a buffer with a fraction, one that is replaced, and a count."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    model.register_buffer("position", torch.zeros(2))
    stage = Stage("first", lambda batch: {}, [*model[0].parameters(), *model[2].parameters()])
    optimization = Optimization(model, stage, StageOptions(lr=0.1, ema_decay=0.9), 9)
    reference = ModelEmaV3(model, decay=0.9, use_warmup=True)
    for step in range(9):
        model.position = torch.full((2,), float(step))
        take_step(optimization, model(torch.randn(5, 3)).square().sum(), step)
        reference.update(model, step=step)
    assert optimization.ema is not None
    averages, expected = {**model.state_dict(), **optimization.ema.averages}, reference.module.state_dict()
    assert averages["2.num_batches_tracked"] == 9 and not torch.equal(averages["0.weight"], model[0].weight)
    assert averages.keys() == expected.keys() and all(torch.equal(averages[name], expected[name]) for name in expected)


def test_tied_weights_are_swapped_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    optimization = make(model=model, ema_decay=0.9)[1]
    for step in range(4):
        take_step(optimization, model(torch.ones(1, 2)).square().sum(), step)
    trained, average = model[0].weight.clone(), optimization.state()["ema.0.weight"].clone()
    optimization.swap_ema()
    assert torch.equal(model[1].weight, average) and not torch.equal(average, trained)
    optimization.swap_ema()
    assert torch.equal(model[1].weight, trained)
    assert all(torch.equal(optimization.state()[f"ema.{layer}.weight"], average) for layer in (0, 1))


class WithTarget(nn.Module):
    """A weight, and a target network that follows it halfway in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.online, self.target = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        self.target.requires_grad_(False)
        with torch.no_grad():
            self.online.weight.fill_(0.0), self.target.weight.fill_(0.0)

    def follow(self) -> None:
        self.target.weight.lerp_(self.online.weight, 0.5)


def test_a_target_network_is_averaged_and_kept() -> None:
    """By hand: the weight takes the values 1, 2, 3, 4 and its target 0.5, 1.25, 2.125, 3.0625."""
    model = WithTarget()
    stage = Stage("one", lambda batch: {}, [model.online.weight], frozen=[model.target], after_step=model.follow)
    optimization = Optimization(model, stage, StageOptions(lr=1.0, optimizer="sgd", ema_decay=0.6, grad_clip=0.0), 4)
    online, target = 0.0, 0.0
    for step in range(4):
        with torch.no_grad():
            model.online.weight.fill_(step + 1.0)
        optimization.optimizer.zero_grad()
        optimization.schedule(step)
        optimization.update()
        decay = (0.0, 0.0, 1 - 2 ** (-2 / 3), 1 - 3 ** (-2 / 3))[step]  # below 0.6: the average forgets its start
        online = decay * online + (1 - decay) * (step + 1.0)
        target = decay * target + (1 - decay) * (0.5, 1.25, 2.125, 3.0625)[step]
    assert model.target.weight.item() == 3.0625
    optimization.swap_ema()
    assert model.online.weight.item() == pytest.approx(online) and model.target.weight.item() == pytest.approx(target)
    optimization.swap_ema()  # and the trained values come back, to go on with
    assert model.online.weight.item() == 4.0 and model.target.weight.item() == 3.0625
    names = {"ema.online.weight", "ema.target.weight"}
    assert names <= optimization.state().keys()


RESTORED = ("adamw", "lamb", "adan", "lookahead_adamw", "adabelief", "nadamlegacy", "lion", "muon", "sgd")


@pytest.mark.parametrize("name", RESTORED)
def test_a_restored_optimizer_goes_on_as_if_nothing_had_been(name: str, tmp_path: Path) -> None:
    results = []
    for stop in (None, 7):
        model, optimization = make(ema_decay=0.9, optimizer=name)
        for step in range(12):
            if step == stop:
                path = tmp_path / "state.safetensors"
                write_tensors(path, optimization.state(), Position())
                weights = {k: v.clone() for k, v in model.state_dict().items()}
                model, optimization = make(ema_decay=0.9, optimizer=name)
                model.load_state_dict(weights)
                optimization.load_state(read_tensors(path, torch.device("cpu"))[0], path)
            take_step(optimization, (model.bias - step).square().sum() + model.weight.square().sum(), step)
        results.append(optimization.state() | model.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_the_state_of_adamw_is_that_of_its_parameters(tmp_path: Path) -> None:
    model, optimization = make(ema_decay=0.9)
    take_step(optimization, model.weight.square().sum(), 0)
    state = optimization.state()
    assert {name.partition(".")[0] for name in state} == {"optimizer", "ema"}
    for name in ("group.2.step", "group.x.step", "group.0.params", "group.0.betas"):
        with pytest.raises(CheckpointError, match=name):
            make(ema_decay=0.9)[1].load_state({**state, name: torch.tensor(1)}, tmp_path)


@pytest.mark.parametrize("name", ["adahessian", "kronw", "lookahead_kron"])
def test_an_optimizer_that_cannot_go_on_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"optimizer={name}"):
        StageOptions(optimizer=name)


@pytest.mark.parametrize("name", ["adamw", "lion", "sgd", "muon"])
def test_optimizers_of_timm(name: str) -> None:
    model, optimization = make(optimizer=name)
    before = model.weight.clone()
    take_step(optimization, model(torch.ones(1, 3)).square().sum(), 3)
    assert not torch.equal(model.weight, before)
    with pytest.raises(ConfigError, match=f"{name}m"):
        make(optimizer=f"{name}m")


def test_an_optimizer_that_there_is_not_is_refused_where_options_are_checked() -> None:
    stages = [Stage(name, lambda batch: {}, [nn.Parameter(torch.zeros(1))]) for name in ("tokenizer", "prior")]
    options = {name: EngineOptions(stages={"prior": StageOptions(optimizer=name)}) for name in ("lion", "foo")}
    assert [each.optimizer for each in options["lion"].of(stages)] == ["adamw", "lion"]
    with pytest.raises(ConfigError, match="optimizer=foo") as caught:
        options["foo"].of(stages)
    assert "engine.stages.prior.optimizer=adamw" in str(caught.value.fix)


def test_random_numbers_depend_on_seed_and_step_alone() -> None:
    def draw(seed: int, step: int, index: int = 0) -> list[float]:
        seed_step(seed, step, index)
        return torch.rand(3).tolist()

    first = draw(1, 5)
    draw(1, 6)
    assert draw(1, 5) == first
    assert (
        len({tuple(draw(seed, step, i)) for seed in range(4) for step in range(-1, 20) for i in (0, 1)}) == 4 * 21 * 2
    )


def test_devices_and_precision() -> None:
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="device=gpu"):
        choose_device("gpu")
    x = torch.randn(4, 4)
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        with autocast(torch.device("cpu"), name):
            assert (x @ x).dtype == dtype


# --- micro-batches --------------------------------------------------------------------------------------------------


def test_micro_batches_make_up_the_batch() -> None:
    batch = tiny.batch(12)
    parts = [split(batch, index, 3) for index in range(3)]
    assert all(len(part) == 4 and part.full_batch is batch for part in parts)
    for name in ("states", "mask", "goals", "time"):
        joined = torch.stack([getattr(part, name) for part in parts], 1).flatten(0, 1)
        assert torch.equal(joined, getattr(batch, name))
    assert batch.first(4) == 4 and [part.first(4) for part in parts] == [2, 2, 2]  # rounded up


def test_means_of_micro_batches_make_up_the_mean_of_the_batch() -> None:
    """Of all real points, of the first windows', and of a mapped batch, though they differ in padding."""
    batch = tiny.batch(12)
    batch = replace(batch, mask=torch.arange(tiny.HORIZON) <= torch.arange(12).unsqueeze(1) % tiny.HORIZON)
    errors = torch.rand(12, tiny.HORIZON)

    def real(batch: Batch) -> Tensor:
        return batch.mask

    def means(batch: Batch, errors: Tensor) -> Tensor:
        mapped = batch.transform(lambda b: replace(b, mask=b.mask[:, ::2]))
        first = errors[: len(errors) // 2]
        return torch.stack([batch.mean(errors, real), batch.mean(first, real), mapped.mean(errors[:, ::2], real)])

    parts = torch.stack([means(split(batch, index, 3), errors[index::3]) for index in range(3)])
    torch.testing.assert_close(parts.mean(0), means(batch, errors))
    torch.testing.assert_close(batch.mean(errors, real), errors[batch.mask].mean())


def test_codes_begin_as_those_of_the_whole_batch_however_it_is_split() -> None:
    batch, codebooks, losses = tiny.batch(12), [], []
    for count in (1, 3):
        planner = tiny.planner().train()
        parts = []
        for index in range(count):
            seed_step(0, 0, index)
            parts.append(planner.tokenizer_loss(batch if count == 1 else split(batch, index, count))["total"])
        codebooks.append(planner.tokenizer.quantizer.codebook)
        losses.append(torch.stack(parts).mean())
    torch.testing.assert_close(codebooks[1], codebooks[0])
    torch.testing.assert_close(losses[1], losses[0])


def test_a_batch_that_cannot_be_split_is_refused() -> None:
    stages = [Stage(name, lambda batch: {}, [nn.Parameter(torch.zeros(1))]) for name in ("tokenizer", "prior")]
    options = EngineOptions(stages={"prior": StageOptions(batch_size=250), "tokenizer": StageOptions(batch_size=90)})
    options.check_batch_sizes(stages, 2)
    with pytest.raises(ConfigError, match=r"prior\.batch_size=250") as caught:
        options.check_batch_sizes(stages, 3)
    assert "prior.batch_size=249" in str(caught.value.fix)
