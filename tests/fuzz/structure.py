"""HDF5 files that are whole, and that Minari never wrote."""

from __future__ import annotations

from random import Random

import h5py
import numpy as np
from mutate import anything


def spoil_structure(file: h5py.File, name: str, draw: Random) -> None:
    """One mutation of the item of an HDF5 file that has this name."""
    kind = draw.randrange(9)
    holder = file[name.rpartition("/")[0] or "/"]
    last = name.rpartition("/")[2]
    item = file.get(name)
    if kind == 0:
        del holder[last]
    elif kind == 1 and isinstance(item, h5py.Dataset):
        shape = tuple(draw.choice([0, 1, 2, 3, 5, 17]) for _ in range(draw.randrange(4)))
        del holder[last]
        holder.create_dataset(last, data=np.full(shape, draw.choice([0.0, np.nan, np.inf, 1e300])))
    elif kind == 2 and isinstance(item, h5py.Dataset):
        dtype = draw.choice(["i8", "u1", "f2", "f8", "c16", "S5", "?", h5py.string_dtype(), [("a", "i4")]])
        shape = item.shape
        del holder[last]
        holder.create_dataset(last, shape=shape, dtype=dtype)
    elif kind == 3 and isinstance(item, h5py.Dataset):  # declares far more than the file holds
        rows = draw.choice([2**20, 2**28, 2**40])
        del holder[last]
        holder.create_dataset(last, shape=(rows, *item.shape[1:]), dtype="f4", chunks=(1024, *item.shape[1:]))
    elif kind == 4:
        where = file.get(name) if item is not None else file
        where.attrs[draw.choice(["total_steps", "id", "seed", "options/a"])] = draw.choice(
            [-1, 2**62, 1e300, "x", [1, 2]]
        )
    elif kind == 5:
        del holder[last]
        holder[last] = draw.choice(
            [h5py.SoftLink("/" + name), h5py.ExternalLink("/etc/passwd", "/"), h5py.SoftLink("/")]
        )
    elif kind == 6:
        other = draw.choice(["x", "episode_9", "observations2", "infos"])
        if other not in holder and last in holder:
            holder.move(last, other)
    elif kind == 7:
        del holder[last]
        holder.create_group(last)
    elif isinstance(item, h5py.Dataset) and item.dtype.kind == "f" and 0 < item.size < 1000:
        values = item[()]
        values.flat[draw.randrange(values.size)] = draw.choice([np.nan, np.inf, -np.inf, 1e39])
        item[...] = values
    else:
        holder.attrs["x"] = str(anything(draw))[:100].replace("\0", "").encode("utf-8", "replace")
