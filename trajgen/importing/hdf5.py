"""D4RL's and robomimic's HDF5 files.

D4RL: a table at the root, whose rows hold an observation, the action taken there and its reward. Source: the D4RL wiki,
"Dataset format". robomimic: a group ``data/demo_N`` for each demonstration, with ``obs``, ``next_obs``, ``actions``,
``rewards`` and ``dones``; observations are entries of their own. Source: its documentation, "Datasets: overview".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trajgen.core.errors import DataError
from trajgen.data.episodes import Array
from trajgen.data.hdf5 import read_array
from trajgen.importing.options import ImportOptions
from trajgen.importing.source import Recorded, absent, joined
from trajgen.importing.tables import Table
from trajgen.security import NUMBER_KINDS, hdf5_array, memory_limit


def open_d4rl(path: Path, file: Any, options: ImportOptions) -> Table:
    """The episodes of a D4RL file, which h5py has opened."""
    import h5py

    shapes: dict[str, tuple[int, ...]] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            shapes[name] = item.shape

    file.visititems(visit)

    def rows(name: str, first: int, last: int) -> Array:
        values: Array = h5py.Dataset(hdf5_array(file.id, name))[first:last]
        return values

    return Table(shapes, rows, options, path.name)


class Demonstrations:
    """The demonstrations of a robomimic file.

    Args:
        path: its path, for messages.
        file: the same, opened by h5py.
        options: which observations are the state, and which are images; by default all vectors, in alphabetical
            order, and all images in uint8.
    """

    def __init__(self, path: Path, file: Any, options: ImportOptions) -> None:
        self._data = file["data"]
        self._names = sorted(self._data, key=lambda name: (len(name), name))  # demo_2 before demo_10
        self._columns = options.columns(self._vectors(), "actions", "rewards")
        self._reward_is_named = options.reward is not None
        self._entries = self._columns["states"]
        self._images = self._pictured() if options.images == "auto" else options.images
        self.about = f"state: {', '.join(self._entries) or 'none'}"
        self.about += f"; images: {', '.join(self._images)}" if self._images else ""

    def __len__(self) -> int:
        return len(self._names)

    def label(self, number: int) -> str:
        return self._names[number]

    def read(self, number: int) -> Recorded:
        origin = self._names[number]
        demo = self._data[origin]
        if "obs" not in demo:
            raise DataError(
                f"A demonstration must hold observations, and {origin} has no group 'obs'.",
                fix="robomimic's script dataset_states_to_obs.py adds them",
            )

        def get(name: str) -> Any:
            if name not in demo:
                raise absent(name, [*demo, *(f"obs/{each}" for each in demo["obs"])], origin)
            return read_array(demo.id, name)

        def entries(group: str) -> tuple[str, ...]:
            return tuple(f"{group}/{name}" for name in self._entries)

        steps = len(get(self._columns["actions"][0]))
        samples = demo.attrs.get("num_samples", steps)
        if samples != steps:
            rule = f"{origin} has {samples} steps by its attribute num_samples, and {steps} actions."
            raise DataError(rule, fix=f"correct the source, or leave it out: skip=[{number}]")
        dones = get("dones") if "dones" in demo else np.zeros(0)
        rest: dict[str, Any] = {"terminated": bool(len(dones) and dones[-1])}
        if "next_obs" in demo and steps:
            following = entries("next_obs")
            rest["final"] = joined([get(name) for name in following], following, origin)[-1] if following else None
            for name in self._columns.get("achieved", ()):
                rest["final_achieved"] = get(f"next_{name}")[-1] if f"next_{name}" in demo else None
            following = tuple(name for name in self._images if name in demo["next_obs"])
            rest["final_images"] = {f"obs/{name}": get(f"next_obs/{name}")[-1] for name in following}
        if self._columns["rewards"][0] not in demo and not self._reward_is_named:
            rest["rewards"] = None
        images = [f"obs/{name}" for name in self._images]
        recorded = Recorded.read(get, self._columns | {"states": entries("obs")}, origin, images=images, **rest)
        return replace(recorded, images=_short(recorded.images), final_images=_short(recorded.final_images))

    def _vectors(self) -> tuple[str, ...]:
        names = tuple(name for name, item in self._observations() if _is_vector(item))
        return names or (() if self._pictured() else ("object",))

    def _pictured(self) -> tuple[str, ...]:
        return tuple(name for name, item in self._observations() if _is_image(item) and _fits(item))

    def _observations(self) -> list[tuple[str, Any]]:
        first: Any = self._data[self._names[0]] if self._names else {}
        return sorted(first["obs"].items()) if "obs" in first else []


def _short(entries: Mapping[str, Array]) -> dict[str, Array]:
    """Entries by their names within the group of observations."""
    return {name.removeprefix("obs/"): values for name, values in entries.items()}


def _is_image(item: Any) -> bool:
    return getattr(item, "dtype", None) == np.uint8 and len(item.shape) == 4


def _fits(item: Any) -> bool:
    """Whether an array takes no more memory than its file can hold; a few gray images, packed, may name terabytes."""
    return bool(item.nbytes <= memory_limit(item.file.id.get_filesize()))


def _is_vector(item: Any) -> bool:
    dtype = getattr(item, "dtype", None)
    return dtype is not None and dtype.kind in NUMBER_KINDS and len(item.shape) in (1, 2)
