"""The fields of a data set by row: held on the device, or gathered from mapped files batch by batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from trajgen.data.episodes import Array
from trajgen.data.mapped import let_go

WINDOWS = 64
"""Mapped memory is given back after this many windows, each of which brings in some hundred KiB around its rows: in a
set larger than memory, few of them are met again."""


class Columns(Protocol):
    """Shapes: M rows, n features, any shape (…) of rows asked for, B windows."""

    def at(self, name: str, rows: Tensor) -> Tensor:
        """A field at the rows (…): (…, n), or (…) of one that has no features."""
        ...

    def from_each(self, name: str, rows: Tensor) -> Tensor:
        """A field at its stretch of steps from each of the rows (B,) on: (n, B, steps); past row M without meaning."""
        ...


class Resident:
    """Columns that lie on the device.

    Args:
        fields: (M, n) or (M,).
        device: where they lie.
        stretches: the number of steps, for each field that is read in stretches.
    """

    def __init__(self, fields: Mapping[str, Array], device: torch.device, stretches: Mapping[str, int]) -> None:
        self._whole = {name: torch.from_numpy(values).to(device) for name, values in fields.items()}
        self._steps: dict[str, Tensor] = {}
        for name, steps in stretches.items():
            self._steps[name] = stretched = _stretched(self._whole[name], steps)
            if self._whole[name].ndim == 2:  # the same numbers, once instead of twice
                self._whole[name] = stretched[..., 0].t()

    def at(self, name: str, rows: Tensor) -> Tensor:
        return self._whole[name][rows].contiguous()

    def from_each(self, name: str, rows: Tensor) -> Tensor:
        return self._steps[name][:, rows]


class Mapped:
    """Columns that lie in files, of which a batch's rows are gathered and copied to the device.

    Args:
        fields: mapped (M, n) or (M,).
        device: where batches lie.
        stretches: the number of steps, for each field that is read in stretches.
    """

    def __init__(self, fields: Mapping[str, Array], device: torch.device, stretches: Mapping[str, int]) -> None:
        self._files, self._device = dict(fields), device
        self._views = {name: np.asarray(values) for name, values in fields.items()}  # indexed faster than a memmap
        self._steps = {name: np.arange(steps) for name, steps in stretches.items()}
        self._touched = 0

    def at(self, name: str, rows: Tensor) -> Tensor:
        return torch.from_numpy(self._gathered(name, rows.cpu().numpy())).to(self._device)

    def from_each(self, name: str, rows: Tensor) -> Tensor:
        along = rows.cpu().numpy()[:, None] + self._steps[name]
        found = self._gathered(name, along.clip(max=len(self._views[name]) - 1))  # (B, steps, n) or (B, steps)
        stretch = np.ascontiguousarray(np.moveaxis(found, -1, 0)) if found.ndim == 3 else found[None]
        return torch.from_numpy(stretch).to(self._device)

    def _gathered(self, name: str, rows: Array) -> Array:
        found: Array = self._views[name][rows]
        self._touched += len(rows)
        if self._touched >= WINDOWS:
            let_go(*self._files.values())
            self._touched = 0
        return found


def _stretched(values: Tensor, steps: int) -> Tensor:
    """Values (M, n) or (M,) at as many steps from each row on, (n, M, steps); past the last row they mean nothing.

    A view, whose stretches lie in one piece: picking them is ten times faster than picking their steps one by one.
    """
    columns = values.t() if values.ndim == 2 else values[None]
    return torch.cat([columns, columns[:, -1:].expand(-1, steps)], dim=1).unfold(1, steps, 1)[:, : columns.shape[1]]
