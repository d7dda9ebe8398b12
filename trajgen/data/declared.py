"""What the files of a data set declare, before any of it is read: a small file must not fill the memory."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RATIO, SLACK = 64, 2**26
"""Bytes in memory for each byte of a file, and bytes beyond: packed data have a tenth of it."""
EACH = 1024
"""Bytes for which an array or a group counts beside its numbers: the same ones may be named again and again."""
DEEPEST = 16
MOST_EPISODES = 2**24
LARGEST_SHAPE = 2**24
"""Numbers in one entry of an observation."""


INDEX_CACHE = 2**20
"""Bytes in which HDF5 keeps what it knows of a file's objects; left to itself it takes forty times as many."""


def opened(path: Path) -> Any:
    """An HDF5 file for reading, an ``h5py.File``, with little memory beside what is read."""
    import h5py

    file = h5py.File(path, "r")
    cache = file.id.get_mdc_config()
    cache.set_initial_size, cache.initial_size = True, INDEX_CACHE
    cache.min_size = cache.max_size = INDEX_CACHE
    file.id.set_mdc_config(cache)
    return file


def check_arrays(path: Path) -> None:
    """Raises a ValueError if an HDF5 file declares far more than it holds, or leads out of itself."""
    from h5py import h5d, h5g, h5l, h5o

    limit = RATIO * os.stat(path).st_size + SLACK

    def size(group: Any, depth: int) -> int:
        total = 0
        for number in range(group.get_num_objs()):
            name = group.get_objname_by_idx(number)
            if group.links.get_info(name).type != h5l.TYPE_HARD or depth > DEEPEST:
                raise ValueError(f"{name.decode(errors='replace')[:80]!r} leads elsewhere")
            item = h5o.open(group, name)
            if isinstance(item, h5d.DatasetID):
                total += EACH + math.prod(item.shape) * item.get_type().get_size()
            elif isinstance(item, h5g.GroupID):
                total += EACH + size(item, depth + 1)
            if total > limit:
                raise ValueError(f"its arrays would take more than {limit:,} bytes of memory")
        return total

    with opened(path) as file:
        size(file.id, 0)  # h5py's own objects would take four times as long


def check_about(content: Mapping[str, Any]) -> None:
    """Raises a ValueError, TypeError, KeyError or RecursionError for metadata that Minari never wrote."""
    for key, largest in (("total_episodes", MOST_EPISODES), ("total_steps", 2**53)):
        if type(content[key]) is not int or not 0 <= content[key] <= largest:
            raise ValueError(f"{key} is {str(content[key])[:80]}")
    for key in ("dataset_id", "env_spec", "eval_env_spec", "minari_version"):
        if not isinstance(content.get(key), str | None):
            raise TypeError(f"{key} is {str(content[key])[:80]}")
    for key in ("observation_space", "action_space"):
        _check_space(json.loads(content[key]) if key in content else None)
    for key in ("env_spec", "eval_env_spec"):
        json.loads(content.get(key) or "null")


def _check_space(space: Any) -> None:
    if isinstance(space, Mapping):
        shape = space.get("shape", space.get("n", 0) if space.get("type") == "MultiBinary" else 0)
        if math.prod(shape if isinstance(shape, list) else [shape]) > LARGEST_SHAPE:
            raise ValueError(f"a space of shape {str(shape)[:80]}")
    for each in space.values() if isinstance(space, Mapping) else space if isinstance(space, list) else ():
        if isinstance(each, Mapping | list):
            _check_space(each)
