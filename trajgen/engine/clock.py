"""Where the time of a stage goes, without waiting for the device in between."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PARTS = ("data", "forward", "backward", "optimizer", "logging")
"""Of a step; logging is all that is looked at and written, held-out losses and checkpoints included."""


class Clock:
    """Adds up the seconds of the parts of steps.

    On CUDA the host runs ahead of the device, so parts are marked by events in the device's own queue, and read when a
    line is logged, where the losses are waited for anyway. What the host alone does there is on its own clock.

    Args:
        device: that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._cuda = device.type == "cuda"
        self._marked: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is done within it is counted as ``name``, one of `PARTS`."""
        if self._cuda and name != "logging":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._marked.append((name, begin, end))
            return
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """Seconds so far, as ``seconds/PART``."""
        for name, begin, end in self._marked:
            end.synchronize()
            self.seconds[name] += begin.elapsed_time(end) / 1e3
        self._marked.clear()
        return {f"seconds/{name}": value for name, value in self.seconds.items()}
