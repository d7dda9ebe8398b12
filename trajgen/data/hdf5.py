"""Episodes of a Minari HDF5 file, of which only the arrays that are needed are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from trajgen.core.observations import Key, as_keys, channels_last
from trajgen.data.episodes import IMAGES, Array, Episode
from trajgen.security import MAX_SHAPE, check_hdf5, hdf5_array, memory_limit, open_hdf5

READ_ERRORS = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, AssertionError, OverflowError)
"""What Minari and h5py raise on damaged files."""


@dataclass(frozen=True)
class EpisodeFile:
    """The HDF5 file of a Minari data set; Minari's own reader takes every entry, infos too, into memory.

    Args:
        path: the file.
        count: E, the number of episodes.
        entries: for each of "states", "goals", "achieved" and "images" that is read, its key in the observation.
    """

    path: Path
    count: int
    entries: Mapping[str, Key]

    @cached_property
    def rows(self) -> int:
        """M, the rows that all episodes take, with their final observations; no array is read for it.

        Raises:
            OSError, KeyError, ValueError and others of h5py: if the file is damaged, or declares more than it holds.
        """
        check_hdf5(self.path)
        with open_hdf5(self.path) as file:
            shapes = (hdf5_array(file.id, f"episode_{n}/rewards").shape for n in range(self.count))
            rows = sum((shape or (1,))[0] + 1 for shape in shapes)
        if 4 * rows > memory_limit(self.path.stat().st_size):
            raise ValueError(f"its {rows:,} rows would take more memory than it can hold")
        return rows

    def episodes(self) -> Iterator[Episode]:
        """The episodes one by one.

        Raises:
            ValueError: naming the episode, and perhaps the entry, if something cannot be read.
        """
        with self._groups() as group_of:
            for number in range(self.count):
                group = group_of(number)
                ends, rewards = read_array(group, "terminations"), read_array(group, "rewards")
                yield Episode(
                    actions=read_array(group, "actions"),
                    rewards=rewards[:, 0] if rewards.shape[1:] == (1,) else rewards,
                    terminated=bool(len(ends) and ends[-1]),
                    **{field: _observed(group, field, key, len(rewards)) for field, key in self.entries.items()},
                )

    def arrays(self, number: int, names: Iterable[str]) -> dict[str, Array]:
        """Arrays of an episode by their path in its group, as they are stored.

        Raises:
            ValueError: naming the episode, if one cannot be read.
        """
        with self._groups() as group_of:
            return {name: read_array(group_of(number), name) for name in names}

    def returns(self) -> Array:
        """The sum of the rewards of each episode (E,); nothing else is read.

        Raises:
            ValueError: naming the episode, if something cannot be read.
        """
        with self._groups() as group_of:
            return np.array([read_array(group_of(number), "rewards").sum() for number in range(self.count)], float)

    @contextmanager
    def _groups(self) -> Iterator[Callable[[int], Any]]:
        """Opens the file, and yields a function from an episode's number to its group.

        What cannot be read of the episode that was opened last is a ValueError that names it.
        """
        from h5py import h5g

        opened = 0

        def group_of(number: int) -> Any:
            nonlocal opened
            opened = number
            return h5g.open(file.id, b"episode_%d" % number)

        try:
            with open_hdf5(self.path) as file:
                yield group_of
        except READ_ERRORS as error:
            raise ValueError(f"episode {opened}: {error}") from error


def read_array(group: Any, name: str) -> Array:
    """An array of numbers of a low-level group: h5py's own objects take three times as long.

    Raises:
        KeyError, TypeError, ValueError: as `hdf5_array` of `trajgen.security`.
    """
    from h5py import h5s

    array = hdf5_array(group, name)
    values = np.empty(array.shape, array.dtype)
    array.read(h5s.ALL, h5s.ALL, values)
    return values


def read_images(group: Any, name: str) -> Array:
    """Images (n, height, width, channels) of a low-level group: an array, or n JPEG files, as Minari writes them.

    Raises:
        KeyError, TypeError, ValueError, OSError: if there are none, or one is damaged or larger than images are.
    """
    from h5py import Dataset, h5d

    stored = Dataset(h5d.open(group, name.encode()))
    if stored.ndim > 2:
        return channels_last(read_array(group, name))
    return np.stack([decoded(stored[number].tobytes(), ("JPEG",)) for number in range(len(stored))])


def decoded(content: bytes, formats: tuple[str, ...]) -> Array:
    """The image (height, width, channels) of a file of one of these formats.

    Raises:
        OSError, ValueError: if it is none, is damaged, or is larger than images are.
    """
    from PIL import Image

    with Image.open(BytesIO(content), formats=formats) as image:  # reads its header alone
        if math.prod(image.size) > MAX_SHAPE:
            raise ValueError(f"an image of {image.size} pixels")
        values = np.asarray(image)
    return values if values.ndim == 3 else values[..., None]


def _observed(group: Any, field: str, key: Key, steps: int) -> Array:
    if key == ():  # observations are images alone
        return np.zeros((steps + 1, 0), np.float32)
    names = ["observations"] if key is None else [f"observations/{name}" for name in as_keys(key)]
    parts = [read_images(group, name) if field == IMAGES else read_array(group, name) for name in names]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
