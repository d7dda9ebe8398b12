"""The optimizer of one stage, its learning rate, and the running average of the weights: all from timm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from trajgen.core.errors import CheckpointError, ConfigError
from trajgen.core.types import Stage
from trajgen.engine.checkpoint import load_state
from trajgen.engine.options import StageOptions
from trajgen.engine.storage import part


class Optimization:
    """Optimizes the parameters of a stage; its learning rate is a function of the step alone.

    Args:
        model: whose weights are averaged.
        stage: what is trained.
        options: how.
        steps: how many steps the stage takes.

    Raises:
        ConfigError: if timm knows no optimizer of this name.
    """

    def __init__(self, model: nn.Module, stage: Stage, options: StageOptions, steps: int) -> None:
        self.model, self.parameters, self.clip = model, stage.parameters, options.grad_clip
        groups = [
            {"params": [p for p in stage.parameters if p.ndim > 1], "weight_decay": options.weight_decay},
            {"params": [p for p in stage.parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        extra: dict[str, Any] = {"fused": True} if options.optimizer == "adamw" else {}
        try:
            self.optimizer = create_optimizer_v2(
                [g for g in groups if g["params"]],
                opt=options.optimizer,
                lr=options.lr,
                weight_decay=options.weight_decay,
                **extra,
            )
        except (ValueError, AssertionError) as error:
            raise ConfigError(
                "The optimizer is one that timm knows.",
                expected="adamw, muon, lion, … (timm.optim.list_optimizers())",
                got=f"optimizer={options.optimizer}: {error}",
                fix=f"engine.stages.{stage.name}.optimizer=adamw",
            ) from error
        self.rate = CosineLRScheduler(
            self.optimizer,
            t_initial=max(steps, 1),
            lr_min=options.lr * 1e-2,
            warmup_t=round(options.warmup * steps),
            warmup_lr_init=options.lr * 1e-2,
            warmup_prefix=False,
            t_in_epochs=False,
        )
        self.ema = ModelEmaV3(model, decay=options.ema_decay, use_warmup=True) if options.ema_decay else None
        self.moving = Moving(model, self.ema.module, stage.parameters) if self.ema else None

    def step(self, loss: Tensor, number: int) -> Tensor:
        """Takes step ``number`` down the gradient of ``loss``; returns the gradient's norm."""
        self.forget()
        loss.backward()
        return self.follow(number)

    def forget(self) -> None:
        """Drops the gradient of the step before."""
        self.optimizer.zero_grad(set_to_none=True)

    def gradients(self) -> list[Tensor]:
        """The gradients that have come about."""
        return [p.grad for p in self.parameters if p.grad is not None]

    def follow(self, number: int) -> Tensor:
        """Takes step ``number`` down the gradient that has come about; returns its norm."""
        self.rate.step_update(number)
        limit = self.clip or float("inf")
        norm = nn.utils.clip_grad_norm_(self.parameters, limit)
        self.optimizer.step()
        if self.ema is not None and self.moving is not None:
            self.moving.average(self.ema.get_decay(number))
        return norm

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it, the model has the running average of its weights."""
        own = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.finish()
        yield
        self.model.load_state_dict(own)

    def finish(self) -> None:
        """Replaces the trained weights by their running average."""
        if self.ema is not None:
            self.model.load_state_dict(self.ema.module.state_dict())

    def tensors(self) -> dict[str, Tensor]:
        """The state of the optimizer, for a checkpoint."""
        state = self.optimizer.state_dict()["state"]
        return {f"{i}.{k}": torch.as_tensor(v) for i, values in state.items() for k, v in values.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Takes up the state that `tensors` gave."""
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = value
        whole = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**whole, "state": state})


class Moving:
    """What changes in a stage, beside its running average: the stage's parameters, and buffers wherever they are.

    All else is equal to its average, so that averaging it, as timm does, would cost time and change nothing.

    Args:
        model: that is trained.
        average: a copy of it.
        parameters: of the stage.
    """

    def __init__(self, model: nn.Module, average: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
        trained, kept = {id(p) for p in parameters}, average.state_dict(keep_vars=True)
        self.parameters = [(kept[name], p) for name, p in model.named_parameters() if id(p) in trained]
        self.buffers = []
        for name in kept.keys() & dict(model.named_buffers()).keys():
            place, _, own = name.rpartition(".")
            self.buffers.append((kept[name], model.get_submodule(place), own))

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """Moves the averages of all that has a fraction towards it; whole numbers are copied."""
        # Buffers are looked up each time: a module may put another tensor in a buffer's place.
        pairs = self.parameters + [(average, getattr(module, name)) for average, module, name in self.buffers]
        averages = [average for average, _ in pairs if average.is_floating_point()]
        get_ema_multi_avg_fn(decay)(averages, [now for average, now in pairs if average.is_floating_point()], 0)
        for average, now in pairs:
            if not average.is_floating_point():
                average.copy_(now)


def restore(optimization: Optimization, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Takes up the state of an optimizer and of the running average.

    Raises:
        CheckpointError: if they are those of another model or another optimizer.
    """
    parameters = [p for group in optimization.optimizer.param_groups for p in group["params"]]
    state = part(tensors, "optimizer")
    wrong = []
    for name, value in state.items():
        number, _, key = name.partition(".")
        own = parameters[int(number)] if number in map(str, range(len(parameters))) and key else None
        if own is None or (value.ndim >= own.ndim and value.shape != own.shape):
            wrong.append(f"optimizer.{name} of shape {tuple(value.shape)}")
    if wrong:
        raise CheckpointError(
            "The checkpoint belongs to another training.",
            expected="what the optimizer of this stage keeps",
            got=f"{path}: {', '.join(wrong[:3])}",
            fix="delete it to go on from the one before, or train again",
        )
    optimization.restore(state)
    if optimization.ema is not None:
        load_state(optimization.ema.module, part(tensors, "ema"), path)
