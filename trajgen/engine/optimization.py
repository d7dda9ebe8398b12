"""One stage's optimizer, learning rate and moving average of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from trajgen.core.errors import CheckpointError, ConfigError
from trajgen.core.stages import Stage
from trajgen.engine.options import StageOptions
from trajgen.engine.storage import check_state, under

FLOOR = 1e-2
"""Of the peak learning rate: where warm-up begins and the cosine ends."""
NUMBERS: dict[type, torch.dtype] = {int: torch.int64, float: torch.float64, bool: torch.bool}
"""How a checkpoint holds the numbers of an optimizer that are no tensors."""


class Optimization:
    """Optimizes the parameters of a stage, with a learning rate that is a function of the step alone.

    Args:
        model: whose weights are averaged.
        stage: whose parameters are optimized.
        options: of the stage.
        steps: of the stage.

    Raises:
        ConfigError: if timm has no optimizer of this name.
    """

    def __init__(self, model: nn.Module, stage: Stage, options: StageOptions, steps: int) -> None:
        self.stage, self.parameters = stage, stage.trained
        self.max_norm = options.grad_clip or float("inf")
        groups: list[dict[str, Any]] = []
        for group in stage.groups:  # timm's scheduler multiplies the rate of each group by its lr_scale
            matrices, vectors = ([p for p in group.parameters if (p.ndim > 1) == large] for large in (True, False))
            groups.append({"params": matrices, "weight_decay": options.weight_decay, "lr_scale": group.lr_scale})
            groups.append({"params": vectors, "weight_decay": 0.0, "lr_scale": group.lr_scale})
        self.device = device = self.parameters[0].device
        self.capturable = device.type == "cuda" and options.optimizer == "adamw"
        extra: dict[str, Any] = {}
        if options.optimizer == "adamw":
            extra = {"fused": True, "capturable": self.capturable}
        try:
            self.optimizer = create_optimizer_v2(
                [group for group in groups if group["params"]],
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
        self.scheduler = CosineLRScheduler(
            self.optimizer,
            t_initial=max(steps, 1),
            lr_min=options.lr * FLOOR,
            warmup_t=round(options.warmup * steps),
            warmup_lr_init=options.lr * FLOOR,
            warmup_prefix=False,
            t_in_epochs=False,
        )
        groups = self.optimizer.param_groups
        self._fresh_numbers = [{k: v for k, v in group.items() if type(v) in NUMBERS} for group in groups]
        moved = None if stage.after_step is not None else self.parameters
        self.ema = EMA(model, moved) if options.ema_decay else None
        self.ema_decay, self._ema_weight = options.ema_decay, 1.0
        # A CUDA graph reads numbers that change with the step from the device.
        self._rates = [torch.zeros((), device=device) for _ in self.optimizer.param_groups]
        self._ema_weight_on_device = torch.zeros((), device=device)

    def gradients(self) -> list[Tensor]:
        """The gradients of the parameters that have one."""
        return [p.grad for p in self.parameters if p.grad is not None]

    def schedule(self, number: int) -> None:
        """Sets the learning rates, and the weight of the new values in the moving average, of step ``number``.

        The decay rises with the step as in timm, 1 - step^(-2/3), so that the average forgets its start.
        """
        self.scheduler.step_update(number)
        self._ema_weight = 1 - min(self.ema_decay, 1 - number ** -(2 / 3)) if number > 1 else 1.0
        if self.capturable:
            for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate.fill_(group["lr"])
            self._ema_weight_on_device.fill_(self._ema_weight)

    def update(self) -> Tensor:
        """Takes a step by what `schedule` set: optimizer, ``after_step``, EMA; returns the norm of the gradient."""
        norm = nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        self.optimizer.step()
        if self.stage.after_step is not None:
            with torch.no_grad():
                self.stage.after_step()
        if self.ema is not None:
            self.ema.update(self._ema_weight_on_device if self.capturable else self._ema_weight)
        return norm

    def swap_ema(self) -> None:
        """Exchanges the model's state and its moving average, where there is one."""
        if self.ema is not None:
            self.ema.swap()

    def state(self) -> dict[str, Tensor]:
        """The state of the optimizer and the moving average, as ``optimizer.INDEX.KEY`` and ``ema.NAME``.

        Numbers of a group of parameters that the optimizer has changed, as its count of steps, are ``group.INDEX.KEY``.
        """
        state = self.optimizer.state_dict()["state"]
        tensors = {f"optimizer.{i}.{k}": _tensor(v) for i, entry in state.items() for k, v in entry.items()}
        for i, (group, fresh) in enumerate(zip(self.optimizer.param_groups, self._fresh_numbers, strict=True)):
            numbers = {k: v for k, v in group.items() if _is_number(v) and k != "lr"}
            tensors |= {f"group.{i}.{k}": _tensor(v) for k, v in numbers.items() if fresh.get(k) is not v}
        averages = self.ema.averages if self.ema is not None else {}
        return tensors | {f"ema.{name}": value for name, value in averages.items()}

    def load_state(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Loads what `state` returned.

        Raises:
            CheckpointError: naming ``path``, if it is the state of another model or another optimizer.
        """
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        groups = self.optimizer.state_dict()["param_groups"]
        state: dict[int, dict[str, Any]] = {}
        for name, value in under("optimizer", tensors).items():
            index, _, key = name.partition(".")
            parameter = parameters[int(index)] if index in map(str, range(len(parameters))) and key else None
            if parameter is None or (value.ndim >= parameter.ndim and value.shape != parameter.shape):
                raise _of_another_training(path, f"optimizer.{name}", value)
            state.setdefault(int(index), {})[key] = _plain(value)
        for name, value in under("group", tensors).items():
            index, _, key = name.partition(".")
            group = groups[int(index)] if index in map(str, range(len(groups))) else None
            if group is None or value.ndim or not _is_number(group.get(key, 0)):
                raise _of_another_training(path, f"group.{name}", value)
            group[key] = _plain(value)
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        if self.ema is not None:
            averages = under("ema", tensors)
            check_state(self.ema.averages, {k: v for k, v in averages.items() if k not in self.ema.constant}, path)
            self.ema.averages = {name: averages[name].clone() for name in self.ema.averages}


def _is_number(value: Any) -> bool:
    return torch.is_tensor(value) or type(value) in NUMBERS


def _tensor(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=NUMBERS.get(type(value)))


def _plain(value: Tensor) -> Any:
    return value.item() if value.ndim == 0 and value.dtype in NUMBERS.values() else value


def _of_another_training(path: Path, name: str, value: Tensor) -> CheckpointError:
    return CheckpointError(
        "The checkpoint belongs to another training.",
        got=f"{path}: {name} of shape {tuple(value.shape)}",
        fix="delete it to go on from the one before, or train again",
    )


class EMA:
    """The exponential moving average of what a stage changes in a model's state; the rest stays as it is.

    By torch's own functions: timm's ModelEmaV3 keeps a second model, and in every step looks up and averages all of its
    state.

    Args:
        model: whose buffers and parameters are averaged.
        parameters: those that change; None for all, where ``after_step`` may move any (target networks).
    """

    def __init__(self, model: nn.Module, parameters: Iterable[nn.Parameter] | None = None) -> None:
        changing = None if parameters is None else {id(p) for p in parameters}
        named_parameters = dict(model.named_parameters(remove_duplicate=False))
        state = model.state_dict()
        self.constant = {name for name, p in named_parameters.items() if changing is not None and id(p) not in changing}
        self.averages = {name: value.clone() for name, value in state.items() if name not in self.constant}
        self._model = model
        self._parameters = {name: p for name, p in named_parameters.items() if name in self.averages}
        # Buffers are looked up at each step: a module may assign another tensor.
        names = {name: name.rpartition(".") for name in self.averages if name not in named_parameters}
        self._buffers = {name: (model.get_submodule(module), buffer) for name, (module, _, buffer) in names.items()}

    @torch.no_grad()
    def update(self, weight: float | Tensor) -> None:
        """Moves the averages towards the state by ``weight``; integers are copied."""
        state = {**self._parameters, **{name: getattr(*owner) for name, owner in self._buffers.items()}}
        averages, values = [], []
        for name, value in state.items():
            if value.is_floating_point():
                averages.append(self.averages[name])
                values.append(value)
            else:
                self.averages[name].copy_(value)
        if torch.is_tensor(weight):  # which no lerp takes without waiting for the device
            differences = torch._foreach_sub(values, averages)
            torch._foreach_mul_(differences, weight)
            torch._foreach_add_(averages, differences)
        else:
            torch._foreach_lerp_(averages, values, weight)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges state and averages in place."""
        swapped = set()
        for name, value in self._model.state_dict().items():
            if name in self.averages and value.data_ptr() not in swapped:  # tied weights are one under several names
                swapped.add(value.data_ptr())
                before = value.clone()
                value.copy_(self.averages[name])
                self.averages[name].copy_(before)
