"""How fast a data set is read, and how fast batches are made of it."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch

from trajgen.bench.timing import Timing, timed


@dataclass(frozen=True)
class DataTiming:
    """Seconds to load, memory before and after, and milliseconds a batch."""

    steps: int
    seconds: float
    megabytes: float
    batches: dict[int, Timing]


def data_timed(config: Any, sizes: list[int], repeats: int, device: torch.device) -> DataTiming:
    """Times the data of a configuration; makes them first where they are not there yet.

    Args:
        config: of a run.
        sizes: of batches.
        repeats: of each.
        device: that the windows are on.
    """
    from rich.console import Console

    from trajgen import experiments

    experiments.load_episodes(config, Console(stderr=True))  # makes them if need be, and reads the disk into memory
    before, start = _peak(), time.perf_counter()
    episodes = experiments.load_episodes(config, Console(stderr=True))
    seconds = time.perf_counter() - start
    _, windows = experiments.ready(config, episodes, device)
    number = count()
    batches: dict[int, Timing] = {}
    for size in sizes:

        def draw(size: int = size) -> object:
            return windows.batch(next(number), size)

        batches[size] = timed(draw, device, repeats)
    return DataTiming(episodes.steps, seconds, _peak() - before, batches)


def _peak() -> float:
    """The most memory that this process has held, in MB."""
    unit = 1e6 if sys.platform == "darwin" else 1e3  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
