"""Shapes and losses, put into words where they are wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trajgen.testing.contract import ContractError


def check_shape(what: str, value: Any, shape: tuple[int, ...], meaning: str) -> None:
    """Raises `ContractError` if ``value`` is not a tensor of this shape.

    Args:
        what: it is.
        value: that was found.
        shape: that was expected.
        meaning: of the shape, in letters.
    """
    if not isinstance(value, Tensor):
        raise ContractError(f"{_sentence(what)} should be a tensor.", expected=meaning, got=type(value).__name__)
    if tuple(value.shape) != shape:
        raise ContractError(
            f"{_sentence(what)} should have the shape {meaning}.", expected=shape, got=tuple(value.shape),
            look=_hint(tuple(value.shape), shape),
        )  # fmt: skip


def check_losses(losses: Any, *, total: bool = True) -> None:
    """Raises `ContractError` if these are not named finite scalars, ``total`` among them."""
    if not isinstance(losses, dict):
        raise ContractError("Losses have names.", expected='{"total": …}', got=type(losses).__name__, look="loss()")
    if total and "total" not in losses:
        raise ContractError(
            'The engine optimizes losses["total"].', expected="total", got=", ".join(losses), look="loss()"
        )
    for name, value in losses.items():
        if not isinstance(value, Tensor) or value.ndim:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ContractError(f"The loss '{name}' is not a scalar.", expected="a tensor of no dimension", got=got)
        if not torch.isfinite(value):
            raise ContractError(f"The loss '{name}' is not finite.", expected="a number", got=float(value))


def _hint(got: tuple[int, ...], expected: tuple[int, ...]) -> str | None:
    if len(got) == len(expected) and sorted(got) == sorted(expected):
        return "the order of the axes: a transpose is missing, or one too many"
    if tuple(n for n in got if n != 1) == tuple(n for n in expected if n != 1):
        return "axes of length 1: squeeze or unsqueeze"
    return None


def _sentence(what: str) -> str:
    return what[:1].upper() + what[1:]
