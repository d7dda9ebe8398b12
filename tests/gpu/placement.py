"""Where the tensors of a simulated CUDA device are said to lie."""

from __future__ import annotations

import sys
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


def tensors_in(values: Any) -> list[Tensor]:
    """The tensors among values that may be lists, tuples and dictionaries of others."""
    if isinstance(values, Tensor):
        return [values]
    tensors: list[Tensor] = []
    for value in values.values() if isinstance(values, dict) else values if isinstance(values, (list, tuple)) else ():
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, (list, tuple, dict)):
            tensors += tensors_in(value)
    return tensors


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
