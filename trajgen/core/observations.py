"""What of an observation is read: the whole, an entry of a dictionary, or several entries joined into one vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Key = str | tuple[str, ...] | None
"""An entry's name, with "/" between those of nested dictionaries; several are joined in their order; None is all."""


def as_keys(key: Key) -> tuple[str, ...]:
    """The names of the entries that a key joins; none for all of an observation."""
    return () if key is None else (key,) if isinstance(key, str) else key


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


def join_images(observation: Any, key: Key) -> np.ndarray:
    """The images of an observation, batched or not, in one array.

    Channels are last, or first where the first axis of an image is its smallest.

    Args:
        observation: an image, or a dictionary with some.
        key: of one image, or of several of one size, which are joined along the channels.

    Returns:
        An array (..., height, width, channels), of the images' own type.

    Raises:
        KeyError: if there is no such entry.
        ValueError: if it has less than three axes, or sizes differ.
    """
    parts = [entry(observation, each) for each in as_keys(key)] or [observation]
    return np.concatenate([channels_last(np.asarray(part)) for part in parts], axis=-1)


def channels_last(images: np.ndarray) -> np.ndarray:
    """Images (..., height, width, channels) or (..., channels, height, width) with their channels last, as a view."""
    if images.ndim < 3:
        raise ValueError(f"an image has height, width and channels, and here the shape {images.shape}")
    first, middle, last = images.shape[-3:]
    return np.moveaxis(images, -3, -1) if first < min(middle, last) else images


def nested_entries(leaves: Mapping[str, Any], group: Callable[[dict[str, Any]], Any]) -> Any:
    """Entries by path, "/" between the names of nested dictionaries, as such dictionaries.

    Args:
        leaves: by path.
        group: makes a dictionary, or what stands for one.
    """
    nodes: dict[str, dict[str, Any]] = {}
    for path, value in leaves.items():
        name, _, rest = path.partition("/")
        nodes.setdefault(name, {})[rest] = value
    return group({name: node[""] if "" in node else nested_entries(node, group) for name, node in nodes.items()})


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
    keys = as_keys(key)
    for each in keys:
        *path, last = each.split("/")
        parent = entry(observation, "/".join(path)) if path else observation
        width = len(values) if each is keys[-1] else len(np.atleast_1d(parent[last]))
        parent[last], values = values[:width], values[width:]
    return observation
