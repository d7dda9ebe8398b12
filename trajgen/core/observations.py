"""What of an observation is read: the whole, an entry of a dictionary, or several entries joined into one vector."""

from __future__ import annotations

from typing import Any

import numpy as np

Key = str | tuple[str, ...] | None
"""An entry's name, with "/" between those of nested dictionaries; several are joined in their order; None is all."""


def entry(observation: Any, key: Key) -> Any:
    """The part of an observation that a key names, batched or not.

    Args:
        observation: an array, or a dictionary of arrays, nested or not.
        key: see `Key`.

    Returns:
        An array (..., n); what several keys name is joined along the last axis.

    Raises:
        KeyError: if there is no such entry.
    """
    if key is None:
        return observation
    if not isinstance(key, str):
        return np.concatenate([np.asarray(entry(observation, each)) for each in key], axis=-1)
    for name in key.split("/"):
        observation = observation[name]
    return observation


def put(observation: Any, key: Key, values: np.ndarray) -> Any:
    """The observation with other values in the part that a key names; dictionaries are changed in place.

    Args:
        observation: unbatched, as the environment gave it.
        key: see `Key`.
        values: (n,), as wide as the part; of several entries the last one takes what is left.

    Returns:
        The observation, or ``values`` where the key is None.
    """
    if key is None:
        return values
    keys = (key,) if isinstance(key, str) else key
    for each in keys:
        *path, last = each.split("/")
        parent = entry(observation, "/".join(path)) if path else observation
        width = len(values) if each is keys[-1] else len(np.atleast_1d(parent[last]))
        parent[last], values = values[:width], values[width:]
    return observation
