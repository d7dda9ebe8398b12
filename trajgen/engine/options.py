"""How stages are trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from trajgen.core.errors import ConfigError, nearest

if TYPE_CHECKING:
    from trajgen.core.stages import Stage


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """How one stage is trained."""

    steps: int = 1000
    """Optimizer steps, before ``engine.budget`` multiplies them."""
    batch_size: int = 256
    """Windows per step."""
    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.01
    """Of matrices; vectors are not decayed."""
    warmup: float = 0.05
    """Fraction of the steps of linear warmup; a cosine follows."""
    optimizer: str = "adamw"
    """Any optimizer of timm but adahessian and kron."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; 0 for no limit."""
    ema_decay: float = 0.999
    """Decay of the average of the weights that replaces them at the end of the stage; 0 for none."""
    prepared_windows: int = 0
    """Windows whose part by frozen networks is computed once, before the stage; 0 for at each step."""

    def __post_init__(self) -> None:
        limits = {
            "steps": (self.steps >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "lr": (self.lr > 0, "above 0"),
            "optimizer": (
                not any(name in self.optimizer for name in ("adahessian", "kron")),
                "not adahessian, which needs second derivatives, nor kron, whose state no checkpoint holds",
            ),
            "warmup": (0 <= self.warmup < 1, "at least 0 and below 1"),
            "ema_decay": (0 <= self.ema_decay < 1, "at least 0 and below 1"),
            "grad_clip": (self.grad_clip >= 0, "at least 0, which is no limit"),
            "prepared_windows": (self.prepared_windows >= 0, "at least 0, which prepares none"),
        }
        for name, (holds, limit) in limits.items():
            if not holds:
                default = StageOptions.__dataclass_fields__[name].default
                raise ConfigError(
                    f"A stage's {name} is {limit}.",
                    got=f"{name}={getattr(self, name)}",
                    fix=f"engine.stages.STAGE.{name}={default}",
                )


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How a planner is trained."""

    stages: dict[str, StageOptions] = field(default_factory=dict)
    """Options by the stage's name."""
    budget: float = 1.0
    """Multiplies the steps of every stage."""
    accumulate: int = 1
    """Micro-batches into which each process splits its share of a batch."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the forward pass; auto is bfloat16 in stages where the device is faster in it, else float32. On CUDA, float32
    matrix products of a training use TF32, those of decisions do not."""
    compile: bool = False
    """Whether torch.compile compiles the losses, which takes minutes and makes long trainings faster."""
    cuda_graph: bool = True
    """Whether steps are CUDA graphs, on a single CUDA device, with AdamW and without ``accumulate``."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl, and checks that losses are finite."""
    checkpoint_every: int = 500
    """Steps between checkpoints; the last two are kept."""
    log: tuple[str, ...] = ()
    """Loggers besides metrics.jsonl: tensorboard, wandb, wandb_offline."""

    def __post_init__(self) -> None:
        if not 0 < self.budget < math.inf:
            raise ConfigError("engine.budget is above 0, and finite.", got=f"{self.budget}", fix="engine.budget=1")
        for name in ("accumulate", "log_every", "checkpoint_every"):
            if (value := getattr(self, name)) < 1:
                default = EngineOptions.__dataclass_fields__[name].default
                raise ConfigError(f"engine.{name} is at least 1.", got=f"{value}", fix=f"engine.{name}={default}")

    def of(self, stages: Sequence[Stage]) -> list[StageOptions]:
        """The options of each stage: its own, or those of its ``options_of``.

        Raises:
            ConfigError: if options name a stage that the planner does not have, prepare windows for one whose loss is
                not computed in part by frozen networks, or name an optimizer that cannot be made.
        """
        names = [stage.name for stage in stages] + [stage.options_of for stage in stages if stage.options_of]
        if absent := [name for name in self.stages if name not in names]:
            close = nearest(absent[0], {*names})
            raise ConfigError(
                f"The planner has no stage '{absent[0]}'.",
                expected=", ".join(dict.fromkeys(names)),
                got=", ".join(f"engine.stages.{name}" for name in absent),
                fix=(f"{close} " if close.startswith("did you mean") else "")
                + " ".join(f"'~engine.stages.{name}'" for name in absent)
                + " to leave out what is not trained",
            )
        default = StageOptions()
        for name, options in self.stages.items():
            can_prepare = (stage.prepare is not None for stage in stages if name in (stage.name, stage.options_of))
            if options.prepared_windows and not any(can_prepare):
                raise ConfigError(
                    f"Nothing of stage '{name}' can be computed before it.",
                    got=f"engine.stages.{name}.prepared_windows={options.prepared_windows}",
                    fix=f"engine.stages.{name}.prepared_windows=0",
                )
        chosen = [self.stages.get(stage.name, self.stages.get(stage.options_of or "", default)) for stage in stages]
        for stage, options in zip(stages, chosen, strict=True):
            if stage.parameters and options.optimizer != default.optimizer:
                _try_optimizer(stage, options)
        return chosen

    def check_batch_sizes(self, stages: Sequence[Stage], processes: int) -> None:
        """Raises a `ConfigError` unless the batch of each stage can be split into equal shares."""
        count = processes * self.accumulate
        for stage, options in zip(stages, self.of(stages), strict=True):
            if stage.parameters and options.batch_size % count:
                fitting = count * max(1, round(options.batch_size / count))
                raise ConfigError(
                    "A batch is split into equal shares, one for each process and micro-batch.",
                    expected=f"a multiple of {processes} processes times engine.accumulate={self.accumulate}",
                    got=f"engine.stages.{stage.name}.batch_size={options.batch_size}",
                    fix=f"engine.stages.{stage.name}.batch_size={fitting}, or another number of processes",
                )

    def steps(self, stage: StageOptions) -> int:
        """How many steps a stage takes under the budget."""
        return max(1, round(stage.steps * self.budget))


def _try_optimizer(stage: Stage, options: StageOptions) -> None:
    """Makes the optimizer of a stage, so that one that timm does not have is refused before there is a run folder."""
    from torch.nn import Module

    from trajgen.engine.optimization import Optimization

    Optimization(Module(), stage, options, steps=1)
