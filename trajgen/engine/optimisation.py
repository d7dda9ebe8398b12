"""The optimiser of one stage, its learning rate, and the running average of the weights: all from timm."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.types import Stage
from trajgen.engine.options import StageOptions


class Optimisation:
    """Optimises the parameters of a stage; its learning rate is a function of the step alone.

    Args:
        model: whose weights are averaged.
        stage: what is trained.
        options: how.
        steps: how many steps the stage takes.

    Raises:
        ConfigError: if timm knows no optimiser of this name.
    """

    def __init__(self, model: nn.Module, stage: Stage, options: StageOptions, steps: int) -> None:
        self.model, self.parameters, self.clip = model, stage.parameters, options.clip
        groups = [
            {"params": [p for p in stage.parameters if p.ndim > 1], "weight_decay": options.weight_decay},
            {"params": [p for p in stage.parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        extra: dict[str, Any] = {"fused": True} if options.optimiser == "adamw" else {}
        try:
            self.optimiser = create_optimizer_v2(
                [g for g in groups if g["params"]],
                opt=options.optimiser,
                lr=options.lr,
                weight_decay=options.weight_decay,
                **extra,
            )
        except (ValueError, AssertionError) as error:
            raise ConfigError(
                "The optimiser is one that timm knows.",
                expected="adamw, muon, lion, … (timm.optim.list_optimizers())",
                got=f"optimiser={options.optimiser}: {error}",
            ) from error
        self.rate = CosineLRScheduler(
            self.optimiser,
            t_initial=max(steps, 1),
            lr_min=options.lr * 1e-2,
            warmup_t=round(options.warmup * steps),
            warmup_lr_init=options.lr * 1e-2,
            warmup_prefix=False,
            t_in_epochs=False,
        )
        self.ema = ModelEmaV3(model, decay=options.ema, use_warmup=True) if options.ema else None

    def step(self, loss: Tensor, number: int) -> Tensor:
        """Takes step ``number`` down the gradient of ``loss``; returns the gradient's norm."""
        self.rate.step_update(number)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        limit = self.clip or float("inf")
        norm = nn.utils.clip_grad_norm_(self.parameters, limit)
        self.optimiser.step()
        if self.ema is not None:
            self.ema.update(self.model, step=number)
        return norm

    def finish(self) -> None:
        """Replaces the trained weights by their running average."""
        if self.ema is not None:
            self.model.load_state_dict(self.ema.module.state_dict())

    def tensors(self) -> dict[str, Tensor]:
        """The state of the optimiser, for a checkpoint."""
        state = self.optimiser.state_dict()["state"]
        return {f"{i}.{k}": torch.as_tensor(v) for i, values in state.items() for k, v in values.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Takes up the state that `tensors` gave."""
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = value
        whole = self.optimiser.state_dict()
        self.optimiser.load_state_dict({**whole, "state": state})
