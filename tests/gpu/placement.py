"""Where the tensors of a simulated CUDA device are said to lie."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor

HOST = torch.device("cpu")


def device_of(tensor: Tensor) -> torch.device:
    """The device that a tensor is said to lie on."""
    device: torch.device = getattr(tensor.untyped_storage(), "simulated", HOST)
    return device


def put_on(tensor: Tensor, device: torch.device) -> None:
    storage: Any = tensor.untyped_storage()
    storage.simulated = device


def tensors_in(values: Any) -> Iterator[Tensor]:
    """The tensors among values that may be lists, tuples and dictionaries of others."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from tensors_in(value)
    elif isinstance(values, dict):
        yield from tensors_in(list(values.values()))


def pinned(tensor: Tensor) -> Tensor:
    """A copy that is said to lie in pinned memory."""
    copied = tensor.clone()
    storage: Any = copied.untyped_storage()
    storage.pinned = True
    return copied


def canonical(device: Any) -> Any:
    """A device with its number."""
    if not isinstance(device, (str, torch.device)):
        return device
    device = torch.device(device)
    return (
        torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" and device.index is None else device
    )


def where() -> str:
    """The innermost line of the package that is being run."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/trajgen/" in name and not name.endswith("randomness.py"):
            return f"{name.rpartition('/trajgen/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"
