"""Timings of a function, and the machine they were measured on."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trajgen.engine.device import synchronize
from trajgen.evaluation.hardware import hardware

WARM_UP = 10
LONGEST = 20.0
"""Seconds after which no more repetitions begin."""
TIMES = ("median ms", "p95 ms", "spread ms")


@dataclass(frozen=True)
class Timing:
    """Milliseconds of repeated calls, in their order."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.values))

    @property
    def p95(self) -> float:
        return float(np.percentile(self.values, 95))

    @property
    def spread(self) -> float:
        """From the lower to the upper quartile."""
        low, high = np.percentile(self.values, [25, 75])
        return float(high - low)

    def cells(self) -> list[str]:
        """The cells under `TIMES`."""
        return [f"{self.median:.3g}", f"{self.p95:.3g}", f"{self.spread:.2g}"]

    def to_dict(self) -> dict[str, float | int]:
        names = {"median_ms": self.median, "p95_ms": self.p95, "spread_ms": self.spread}
        return {**names, "fastest_ms": min(self.values), "repeats": len(self.values)}


def timed(call: Callable[[], object], device: torch.device, repeats: int) -> Timing:
    """Times a function, each call until the device has finished; fewer repeats if they take longer than `LONGEST`."""
    for _ in range(min(WARM_UP, repeats)):
        call()
    values: list[float] = []
    began = time.perf_counter()
    while len(values) < repeats and (not values or time.perf_counter() - began < LONGEST):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        values.append(1e3 * (time.perf_counter() - start))
    return Timing(tuple(values))


def machine(device: torch.device) -> dict[str, Any]:
    """What the timings were measured on: the device, the processor, threads, load and versions."""
    host = hardware(device)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    versions = {"torch": torch.__version__, "python": platform.python_version(), "system": platform.system()}
    return host | {"device": host["cuda"] or host["cpu"], "load": load} | versions
