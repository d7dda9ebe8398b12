"""Episodes of a Minari HDF5 file, read without what trajgen has no use for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trajgen.core.observations import Key
from trajgen.data.declared import check_arrays, opened
from trajgen.data.episodes import NUMBERS, Array, Episode

READ_ERRORS = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, AssertionError, OverflowError)
"""What Minari and h5py raise on damaged files."""


@dataclass(frozen=True)
class EpisodeFile:
    """The HDF5 file of a Minari data set.

    Minari's own reader takes every entry of every episode into memory, the infos too; this one takes the arrays that
    are asked for, and tells the sizes beforehand.

    Args:
        path: the file.
        count: E, the number of episodes.
        entries: for each of "states", "goals" and "achieved" that is wanted, what of the observation it is.
    """

    path: Path
    count: int
    entries: Mapping[str, Key]

    @cached_property
    def rows(self) -> int:
        """M, the rows that all episodes take, with their final observations; nothing is read for it.

        Raises:
            OSError, KeyError, ValueError and others of h5py: if the file is damaged.
        """
        from h5py import h5d

        check_arrays(self.path)
        with opened(self.path) as file:
            shapes = (h5d.open(file.id, b"episode_%d/rewards" % n).shape for n in range(self.count))
            return sum((shape or (1,))[0] + 1 for shape in shapes)

    def episodes(self) -> Iterator[Episode]:
        """The episodes one by one.

        Raises:
            ValueError: naming the episode, and perhaps the entry, if something cannot be read.
        """
        from h5py import h5g

        number = 0
        try:
            with opened(self.path) as file:
                for number in range(self.count):
                    yield self._episode(h5g.open(file.id, b"episode_%d" % number))
        except READ_ERRORS as error:
            raise ValueError(f"episode {number}: {error}") from error

    def _episode(self, group: Any) -> Episode:
        ends = numbers(group, "terminations")
        return Episode(
            actions=numbers(group, "actions"),
            rewards=numbers(group, "rewards"),
            terminated=bool(len(ends) and ends[-1]),
            **{field: _observed(group, key) for field, key in self.entries.items()},
        )


def _observed(group: Any, key: Key) -> Array:
    """The part of an episode's observations that a key names."""
    if key is None:
        return numbers(group, "observations")
    parts = [numbers(group, f"observations/{name}") for name in ([key] if isinstance(key, str) else key)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def numbers(group: Any, name: str) -> Array:
    """An array of numbers, read by h5py's low-level interface: its own objects take three times as long.

    Args:
        group: a low-level group.
        name: path of the array in it.

    Raises:
        KeyError: if there is none.
        TypeError, ValueError: if it is no array of numbers, or is kept in another file; it is not read then.
    """
    from h5py import h5s

    array = array_of(group, name)
    values = np.empty(array.shape, array.dtype)
    array.read(h5s.ALL, h5s.ALL, values)
    return values


def array_of(group: Any, name: str) -> Any:
    """A low-level array of numbers of a low-level group, not read yet.

    Raises:
        KeyError, TypeError, ValueError: if there is none, it holds no numbers, or it is kept in another file.
    """
    from h5py import h5d

    array = h5d.open(group, name.encode())
    stored = array.get_create_plist()
    if stored.get_layout() == h5d.VIRTUAL or stored.get_external_count():
        raise ValueError(f"{name!r} is kept in another file")
    if array.dtype.kind not in NUMBERS:
        raise TypeError(f"{name!r} holds {array.dtype}, not numbers")
    return array
