"""Timings of a function, and the machine that they are of."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

WARM_UP = 10
LONGEST = 20.0
"""Seconds after which no more repetitions begin."""


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

    def to_dict(self) -> dict[str, float | int]:
        names = {"median_ms": self.median, "p95_ms": self.p95, "spread_ms": self.spread}
        return {**names, "fastest_ms": min(self.values), "repeats": len(self.values)}


def timed(call: Callable[[], object], device: torch.device, repeats: int) -> Timing:
    """Times a function that waits for nothing, each call until the device has done its work.

    Args:
        call: the function.
        device: that it keeps busy.
        repeats: how often; fewer where that would take longer than `LONGEST`.
    """
    for _ in range(min(WARM_UP, repeats)):
        call()
    values: list[float] = []
    begun = time.perf_counter()
    while len(values) < repeats and (not values or time.perf_counter() - begun < LONGEST):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        values.append(1e3 * (time.perf_counter() - start))
    return Timing(tuple(values))


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> dict[str, object]:
    """What the timings are of: the device, the processor, threads, load and versions."""
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "device": named,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": load,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
