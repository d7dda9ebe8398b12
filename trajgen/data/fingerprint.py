"""The fingerprint of a data set: whether a run goes on with the data that it began with."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import numpy as np

from trajgen.core.errors import DataError
from trajgen.data.episodes import Episodes

ARRAYS = ("states", "actions", "rewards", "goals", "achieved", "starts", "lengths", "terminated")
WHOLE = 2**24
"""Bytes up to which an array is read whole; of larger ones, blocks of this size in all, spread evenly."""
BLOCKS = 256


def fingerprint(episodes: Episodes) -> dict[str, Any]:
    """The id, the sizes, and for each array its shape and a checksum of its bytes, sampled where there are many.

    Args:
        episodes: as they were read; M rows of E episodes.
    """
    arrays = {name: getattr(episodes, name) for name in ARRAYS}
    return {
        "id": episodes.name,
        "episodes": len(episodes),
        "steps": episodes.steps,
        "arrays": {
            name: {"shape": list(values.shape), "type": str(values.dtype), "sha256": checksum(values)}
            for name, values in arrays.items()
            if values is not None
        },
    }


def require_same(stored: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Compares the fingerprint that a run keeps with that of the data set as it is now.

    Raises:
        DataError: if they differ; it names what does.
    """
    sizes = [k for k in ("id", "episodes", "steps") if stored.get(k) != found[k]]
    differing = [f"{k}: {stored.get(k)} then, {found[k]} now" for k in sizes]
    if not differing and stored != found:
        before = stored.get("arrays")
        known = before if isinstance(before, Mapping) else {}
        names = dict.fromkeys([*known, *found["arrays"]])
        differing = [f"other {', '.join(k for k in names if known.get(k) != found['arrays'].get(k)) or 'entries'}"]
    if differing:
        raise DataError(
            "A run goes on with the data set that it began with.",
            expected=f"data set {stored.get('id')!r}, unchanged since",
            got="; ".join(differing),
            fix="bring it back as it was, or train anew in another folder: run_dir=ANOTHER",
        )


def checksum(values: np.ndarray) -> str:
    """A checksum of an array's bytes, sampled where there are many; no more of a mapped one is read."""
    flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    if flat.nbytes <= WHOLE:
        return sha256(flat.data).hexdigest()
    size = WHOLE // BLOCKS
    digest = sha256()
    for first in np.linspace(0, flat.nbytes - size, BLOCKS).astype(int):
        digest.update(flat[first : first + size].data)
    return digest.hexdigest()
