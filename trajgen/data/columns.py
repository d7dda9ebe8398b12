"""The fields of a data set by row: on the device, or gathered from mapped files batch by batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from trajgen.data.episodes import Array
from trajgen.data.mapped import drop_pages

WINDOWS = 64
"""Windows after which mapped memory is given back; each one pages in some hundred KiB around its rows."""


class Columns(Protocol):
    """Shapes: M rows, n features, any shape (…) of rows, B windows."""

    def at(self, name: str, rows: Tensor) -> Tensor:
        """A field at the rows (…): (…, n), or (…) of one that has no features."""
        ...

    def from_each(self, name: str, rows: Tensor) -> Tensor:
        """A field at its stretch of steps from each of the rows (B,): (n, B, steps); past row M without meaning."""
        ...

    def put(self, name: str, values: Array) -> None:
        """Replaces the values of a field by others of the same shape, where they are."""
        ...

    def drop(self, name: str) -> None:
        """Gives the memory of a field back, which is not read any more."""
        ...


class Resident:
    """Columns that lie on the device.

    Args:
        fields: (M, ...).
        device: of the columns.
        stretches: the number of steps of each field that is read in stretches.
    """

    def __init__(self, fields: Mapping[str, Array], device: torch.device, stretches: Mapping[str, int]) -> None:
        self._columns = {name: torch.from_numpy(values).to(device) for name, values in fields.items()}
        self._stretched: dict[str, Tensor] = {}
        for name, steps in stretches.items():
            values = self._columns[name]
            self._stretched[name] = stretched = _stretch(values, steps)
            if values.ndim == 2:  # shares the memory of the stretches
                self._columns[name] = stretched[..., 0].t()

    def at(self, name: str, rows: Tensor) -> Tensor:
        return self._columns[name][rows].contiguous()

    def from_each(self, name: str, rows: Tensor) -> Tensor:
        return self._stretched[name][:, rows]

    def put(self, name: str, values: Array) -> None:
        self._columns[name].copy_(torch.from_numpy(values))

    def drop(self, name: str) -> None:
        del self._columns[name]


class Mapped:
    """Columns in files, of which a batch's rows are gathered on the host; arguments as of `Resident`."""

    def __init__(self, fields: Mapping[str, Array], stretches: Mapping[str, int]) -> None:
        self._files = dict(fields)
        self._views = {name: np.asarray(values) for name, values in fields.items()}  # indexed faster than a memmap
        self._steps = {name: np.arange(steps) for name, steps in stretches.items()}
        self._windows = 0

    def at(self, name: str, rows: Tensor) -> Tensor:
        return torch.from_numpy(self._gather(name, rows.numpy()))

    def from_each(self, name: str, rows: Tensor) -> Tensor:
        steps = rows.numpy()[:, None] + self._steps[name]
        values = self._gather(name, steps.clip(max=len(self._views[name]) - 1))  # (B, steps, n) or (B, steps)
        stretch = np.ascontiguousarray(np.moveaxis(values, -1, 0)) if values.ndim == 3 else values[None]
        return torch.from_numpy(stretch)

    def put(self, name: str, values: Array) -> None:
        self._files[name] = values
        self._views[name] = values

    def drop(self, name: str) -> None:
        del self._files[name], self._views[name]

    def _gather(self, name: str, rows: Array) -> Array:
        values: Array = self._views[name][rows]
        self._windows += len(rows)
        if self._windows >= WINDOWS:
            drop_pages(*self._files.values())
            self._windows = 0
        return values


def _stretch(values: Tensor, steps: int) -> Tensor:
    """A view of values (M, n) or (M,) at as many steps from each row, (n, M, steps), each in one piece of memory.

    Picking such stretches is ten times faster than picking their steps one by one.
    """
    columns = values.t() if values.ndim == 2 else values[None]
    return torch.cat([columns, columns[:, -1:].expand(-1, steps)], dim=1).unfold(1, steps, 1)[:, : columns.shape[1]]
