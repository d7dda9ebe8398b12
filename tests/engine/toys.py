"""A model of two parts and its two stages, which know nothing of trajectories: all that the engine needs."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from trajgen.core.stages import Stage
from trajgen.core.types import Losses, Record
from trajgen.engine.loop import Training
from trajgen.engine.options import EngineOptions, StageOptions

FIRST, SECOND = 6, 9
TIMED = ("seconds", "windows_per_second")


@dataclass(frozen=True)
class Rows(Record):
    """A batch (B, 4)."""

    values: Tensor
    full_batch: Rows | None = None


class Toy(nn.Module):
    """Two linear maps with dropout, trained one after the other; an exact copy must draw the same random numbers."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.dropout, self.noise = nn.Dropout(0.3), 0.1

    def stages(self) -> list[Stage]:
        return [
            Stage("one", partial(self.loss, self.one), list(self.one.parameters()), report=lambda: {"usage/all": 0.5}),
            Stage("two", partial(self.loss, self.two), list(self.two.parameters())),
        ]

    def loss(self, linear: nn.Linear, batch: Rows) -> Losses:
        """The squared error of reversing a row."""
        error = (self.dropout(linear(batch.values)) - batch.values.flip(1)).square().mean()
        noise = torch.randn(())
        return {"total": error * (1 + self.noise * noise), "error": error}


@dataclass
class Numbers:
    """Batches as a function of the step; ``at`` names a step before whose batch something happens."""

    at: int | None = None
    happens: Callable[[], Any] = lambda: None
    requests: list[tuple[int, int]] = field(default_factory=list)
    poison: int | None = None

    def batch(self, step: int, size: int, rank: int = 0) -> Rows:
        self.requests.append((step, size))
        if step == self.at:
            self.happens()
        values = torch.randn(size, 4, generator=torch.Generator().manual_seed(step))
        return Rows(values * torch.nan if step == self.poison else values)


def term() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


class CrashError(Exception):
    """Stands for a power cut."""


def crash() -> None:
    raise CrashError


def options(**changes: Any) -> EngineOptions:
    stages = {
        "one": StageOptions(steps=FIRST, batch_size=8, lr=0.05, ema_decay=0.9),
        "two": StageOptions(steps=SECOND, batch_size=4, lr=0.02, ema_decay=0.8, grad_clip=0.5),
    }
    usual: dict[str, Any] = {"stages": stages, "precision": "float32", "log_every": 2, "checkpoint_every": 4}
    return EngineOptions(**(usual | changes))


def training(folder: Path, source: Any = None, *, model: Toy | None = None, **changes: Any) -> Training:
    model, device, console = model or Toy(), torch.device("cpu"), Console(quiet=True)
    folder.mkdir(exist_ok=True)
    return Training(model, model.stages(), source or Numbers(), options(**changes), folder, 7, device, console)


def metrics(folder: Path, *, timed: bool = False) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return lines if timed else [{k: v for k, v in line.items() if k.partition("/")[0] not in TIMED} for line in lines]
