"""The fingerprint of a data set: whether a run resumes with the data that it began with."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import numpy as np

from trajgen.core.errors import DataError
from trajgen.data.episodes import WIDTHS, Episodes

ARRAYS = (*WIDTHS, "starts", "lengths", "terminated")
SAMPLED = 2**24
"""Bytes up to which an array is read whole; of larger ones, blocks of this size in all, spread evenly."""
BLOCKS = 256


def fingerprint(episodes: Episodes) -> dict[str, Any]:
    """The id, the sizes, and the shape, type and checksum of each array."""
    arrays = {name: getattr(episodes, name) for name in ARRAYS}
    space = episodes.space
    offsets = {"offsets": [*space.state_offset, *space.goal_offset]} if space.state_offset or space.goal_offset else {}
    return {
        "id": episodes.name,
        "episodes": len(episodes),
        "steps": episodes.steps,
        "arrays": {
            name: {"shape": list(values.shape), "type": str(values.dtype), "sha256": checksum(values)}
            for name, values in arrays.items()
            if values is not None
        },
        **offsets,
    }


def require_same(stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raises a DataError that names the differences if a run's stored fingerprint is not the current one."""
    sizes = [k for k in ("id", "episodes", "steps") if stored.get(k) != current[k]]
    differing = [f"{k}: {stored.get(k)} then, {current[k]} now" for k in sizes]
    if not differing and stored != current:
        arrays = stored.get("arrays")
        arrays = arrays if isinstance(arrays, Mapping) else {}
        names = dict.fromkeys([*arrays, *current["arrays"]])
        differing = [f"other {', '.join(k for k in names if arrays.get(k) != current['arrays'].get(k)) or 'entries'}"]
    if differing:
        raise DataError(
            f"The data set {stored.get('id')!r} has changed since the run began.",
            got="; ".join(differing),
            fix="bring it back as it was, or train anew in another folder: run_dir=ANOTHER",
        )


def checksum(values: np.ndarray) -> str:
    """A checksum of an array's bytes, of a sample where there are many; no more of a mapped one is read."""
    flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    if flat.nbytes <= SAMPLED:
        return sha256(flat.data).hexdigest()
    size = SAMPLED // BLOCKS
    digest = sha256()
    for first in np.linspace(0, flat.nbytes - size, BLOCKS).astype(int):
        digest.update(flat[first : first + size].data)
    return digest.hexdigest()
