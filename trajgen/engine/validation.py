"""Losses on windows that are not trained on, and the weights with which they were lowest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from trajgen.core.protocols import Source
from trajgen.core.types import Stage
from trajgen.engine.optimization import Optimization
from trajgen.engine.runtime import autocast, seed_step
from trajgen.engine.storage import unsaved_buffers

BATCHES = 4
TOTAL = "val/total"
"""The figure by which one checkpoint is better than another of its stage."""


class Validation:
    """Looks at the averaged weights of a stage on held-out windows, always the same ones.

    Args:
        model: that is trained.
        source: of held-out windows.
        seed: of the random numbers that losses draw: the same at each look.
        device: of both.
        precision: of the forward pass.
    """

    def __init__(self, model: nn.Module, source: Source, seed: int, device: torch.device, precision: str) -> None:
        self.model, self.source, self.seed, self.device, self.precision = model, source, seed, device, precision

    @torch.no_grad()
    def look(self, stage: Stage, optimization: Optimization, size: int) -> dict[str, float]:
        """The mean losses of a few batches of ``size`` windows, as ``val/NAME``; nothing is learnt from them."""
        counted = {name: value.clone() for name, value in unsaved_buffers(self.model).items()}
        sums: dict[str, float] = {}
        with optimization.averaged():
            self.model.eval()
            for number in range(BATCHES):
                batch = self.source.batch(number, size)
                seed_step(self.seed, number)
                with autocast(self.device, self.precision):
                    losses = stage.loss(batch)
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + float(value) / BATCHES
        stage.begin(self.model)
        for name, value in unsaved_buffers(self.model).items():  # usage is that of the training
            value.copy_(counted[name])
        return {f"val/{name}": value for name, value in sums.items()}


def lowest(lines: Iterable[Mapping[str, Any]], stage: int) -> float:
    """The lowest held-out loss so far of a stage, among lines of metrics."""
    found = (line[TOTAL] for line in lines if line["stage_index"] == stage and TOTAL in line)
    return min(found, default=float("inf"))
