"""The least time of a computation: its operations and bytes over the rates that this device reaches (the roofline
model, Williams et al. 2009)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from trajgen.bench.timing import timed
from trajgen.engine.precision import CostCounter

SIDE = 1024
"""Of the matrices whose product measures operations per second."""
STREAM = 2**24
"""Bytes whose sum measures how fast they are read: the size of a small model's weights."""


@dataclass(frozen=True)
class Cost:
    """The work of a computation, as `trajgen.engine.precision.CostCounter` counts it."""

    operations: int
    bytes: int
    launches: int

    def roofline(self, rates: Rates) -> float:
        """Milliseconds that it takes at least."""
        return 1e3 * max(self.operations / rates.operations, self.bytes / rates.bytes)


@dataclass(frozen=True)
class Rates:
    """Operations and bytes per second that a device was measured to reach."""

    operations: float
    bytes: float


def count_cost(call: Callable[[], object]) -> Cost:
    """Counts the work of a function by calling it once."""
    with torch.no_grad(), CostCounter() as counter:
        call()
    return Cost(counter.operations, counter.bytes, counter.launches)


def measure_rates(device: torch.device) -> Rates:
    """The rates of a device in float32, with as many threads as torch has."""
    square = torch.randn(SIDE, SIDE, device=device)
    stream = torch.ones(STREAM // 4, device=device)
    products = timed(lambda: square @ square, device, 20)
    sums = timed(stream.sum, device, 50)
    return Rates(2e3 * SIDE**3 / min(products.values), 1e3 * STREAM / min(sums.values))
