"""D4RL's HDF5 files: one table of many episodes at the root, with terminals and timeouts.

A row holds an observation, the action taken there and its reward. The observation after an episode's last row is not in
the table, unless it has ``next_observations``. Source: the D4RL wiki, "Tasks" and "Dataset format".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trajgen.data.episodes import Array
from trajgen.data.hdf5 import array_of
from trajgen.data.importing.flat import FlatTable
from trajgen.data.importing.options import ImportOptions


def open_d4rl(path: Path, file: Any, options: ImportOptions) -> FlatTable:
    """The episodes of a D4RL file.

    Args:
        path: its path, for messages.
        file: the same, opened by h5py and checked.
        options: names of entries.
    """
    import h5py

    shapes: dict[str, tuple[int, ...]] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            shapes[name] = item.shape

    file.visititems(visit)

    def rows(name: str, first: int, last: int) -> Array:
        values: Array = h5py.Dataset(array_of(file.id, name))[first:last]
        return values

    return FlatTable(shapes, rows, options, path.name)
