"""Timings of a function, the machine they were measured on, and how they are shown and written."""

from __future__ import annotations

import datetime
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trajgen.core.errors import ConfigError
from trajgen.evaluation.hardware import hardware

if TYPE_CHECKING:
    from rich.console import Console

    from trajgen.viz.tables import Table

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


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> dict[str, Any]:
    """What the timings were measured on: the device, the processor, threads, load and versions."""
    host = hardware()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else host["cpu"],
        "processor": host["cpu"],
        "cores": host["cores"],
        "threads": host["threads"],
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def report(
    console: Console,
    title: str,
    table: Table,
    figures: Sequence[Mapping[str, Any]],
    device: torch.device,
    *,
    out: Path | None,
    command: str,
) -> None:
    """Prints a table with the machine below it, and writes the figures as JSON into a new file if one is named."""
    host = machine(device)
    caption = f"{host['device']}, {host['threads']} of {host['cores']} threads, torch {host['torch']}"
    if host["load"] is not None and host["load"] > 1.5:  # such timings are worth nothing
        caption += f"; load {host['load']:.1f}: other work was running"
    console.print(table.rich(title, caption))
    if out is not None:
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        result = {"command": command, "date": date, "machine": host, "lines": list(figures)}
        with out.open("x", encoding="utf-8") as file:
            file.write(json.dumps(result, indent=2) + "\n")


def check_out(out: Path | None) -> None:
    """Refuses to overwrite a file before anything is measured."""
    if out is not None and out.exists():
        raise ConfigError(f"{out} exists, and nothing is overwritten.", fix="out=ANOTHER, or remove that file first")
