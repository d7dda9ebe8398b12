"""Batches of windows for which frozen networks computed their part once, before the stage."""

from __future__ import annotations

import torch

from trajgen.core.sources import Source, draw_seed
from trajgen.core.stages import Stage
from trajgen.core.types import Batch
from trajgen.engine.options import StageOptions
from trajgen.engine.step import seed_step

LARGEST = 1024
"""Windows that are prepared at once."""


class Prepared:
    """A source of batches that are drawn, with replacement, from windows in memory.

    Args:
        windows: as `trajgen.core.stages.Stage.prepare` made them.
        seed: of the draw.
    """

    on_device = True

    def __init__(self, windows: Batch, seed: int) -> None:
        self.windows, self.seed = windows, seed
        first = windows.tensors()[0]
        self.generator, self._count = torch.Generator(first.device), len(first)

    def batch(self, step: int, size: int, rank: int = 0) -> Batch:
        """The ``size`` windows of a step; the same ones at every call."""
        self.seed_draw(step, rank)
        return self.draw(size)

    def seed_draw(self, step: int, rank: int = 0) -> None:
        """Seeds the generator for the batch of a step."""
        self.generator.manual_seed(draw_seed(self.seed, step, rank))

    def draw(self, size: int) -> Batch:
        """A batch of ``size`` windows by the generator's next random numbers."""
        index = torch.randint(self._count, (size,), generator=self.generator, device=self.generator.device)
        return self.windows.map(lambda values: values[index])


def sizes_of_batches(stage: Stage, settings: StageOptions, steps: int) -> list[int]:
    """The windows of each batch that is prepared before a stage of ``steps`` steps; none where it draws no more."""
    windows = settings.prepared_windows
    if stage.prepare is None or windows >= steps * settings.batch_size:
        return []
    return [min(LARGEST, windows - first) for first in range(0, windows, LARGEST)]


@torch.no_grad()
def prepared_batch(stage: Stage, source: Source, size: int, seed: int, number: int) -> Batch:
    """The batch of step ``number`` of all, prepared; a resumed training prepares the same one."""
    if stage.prepare is None:
        raise ValueError(f"stage '{stage.name}' prepares nothing")
    seed_step(seed, number)
    return stage.prepare(source.batch(number, size))
