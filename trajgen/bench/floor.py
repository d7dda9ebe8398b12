"""What a computation must cost at least: its operations and bytes over the rates that this device reaches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from trajgen.bench.timing import timed

SIDE = 1024
"""Of the matrices whose product measures operations per second."""
STREAM = 2**24
"""Bytes whose sum measures how fast they are read: what a small model's weights take."""


@dataclass(frozen=True)
class Cost:
    """What a computation does.

    ``operations`` are those of matrix products, two for each multiply-add; ``bytes`` are read by them, each operand
    once for each product; ``launches`` are the calls of operations that compute something.
    """

    operations: int
    bytes: int
    launches: int

    def floor(self, rates: Rates) -> float:
        """Milliseconds that it takes at least."""
        return 1e3 * max(self.operations / rates.operations, self.bytes / rates.bytes)


@dataclass(frozen=True)
class Rates:
    """Operations and bytes per second that a device was measured to reach."""

    operations: float
    bytes: float


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations = self.bytes = self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.launches += 1
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.operations += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
            self.bytes += sum(a.numel() * a.element_size() for a in args if isinstance(a, torch.Tensor))
        return result


def counted(call: Callable[[], object]) -> Cost:
    """Counts what a function does when it is called once."""
    with torch.no_grad(), _Counting() as counting:
        call()
    return Cost(counting.operations, counting.bytes, counting.launches)


def measured(device: torch.device) -> Rates:
    """The rates of a device in float32, with as many threads as torch has."""
    square = torch.randn(SIDE, SIDE, device=device)
    stream = torch.ones(STREAM // 4, device=device)
    products = timed(lambda: square @ square, device, 20)
    sums = timed(stream.sum, device, 50)
    return Rates(2e3 * SIDE**3 / min(products.values), 1e3 * STREAM / min(sums.values))
