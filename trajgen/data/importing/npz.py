"""Files of numpy arrays: a folder with one ``.npz`` per episode, or OGBench's one file of many episodes.

In OGBench's file, as it is downloaded, the row that ``terminals`` marks is the final observation of an episode that ran
out of time; its action is no step. A file with ``next_observations`` or ``timeouts`` has a step in every row instead.
Source: OGBench's ``load_dataset``.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trajgen.core.errors import DataError
from trajgen.data.declared import RATIO, SLACK
from trajgen.data.episodes import NUMBERS, Array
from trajgen.data.importing.flat import FlatTable
from trajgen.data.importing.options import ImportOptions
from trajgen.data.importing.source import TIMEOUTS, Recorded, from_mapping


class Archive(Mapping[str, Array]):
    """The arrays of an ``.npz`` file: nothing is unpickled, and nothing read that is larger than the file can hold.

    Raises:
        ValueError, OSError, zipfile.BadZipFile: if it is no such file, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.shapes: dict[str, tuple[int, ...]] = {}
        with zipfile.ZipFile(path) as file:
            for info in file.infolist():
                if not info.filename.endswith(".npy"):
                    raise ValueError(f"{info.filename[:80]!r} is no array")
                with file.open(info) as member:
                    shape, kind = _header(member)
                    length = member.tell()
                name = info.filename[:-4]
                if kind.kind not in NUMBERS:
                    raise TypeError(f"{name[:80]!r} holds {kind}, not numbers")
                held = math.prod(shape) * kind.itemsize
                if held + length != info.file_size or info.file_size > RATIO * info.compress_size + SLACK:
                    raise ValueError(f"{name[:80]!r} declares {held:,} bytes and has {info.compress_size:,}")
                self.shapes[name] = shape

    def __getitem__(self, name: str) -> Array:
        if name not in self.shapes:
            raise KeyError(name)
        with np.load(self._path, allow_pickle=False) as file:
            values: Array = file[name]
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


class Folder:
    """A folder with one file per episode, in the order of their names.

    Args:
        path: the folder.
        options: names of entries.
    """

    about = ""

    def __init__(self, path: Path, options: ImportOptions) -> None:
        self._files, self._options = sorted(path.glob("*.npz")), options

    def __len__(self) -> int:
        return len(self._files)

    def label(self, number: int) -> str:
        return self._files[number].name

    def read(self, number: int) -> Recorded:
        return from_mapping(Archive(self._files[number]), self._options, self._files[number].name)


def open_npz(path: Path, options: ImportOptions) -> Folder | FlatTable:
    """The episodes of a folder of files, or of one file.

    Raises:
        DataError, ValueError and others of `Archive`: if there are none, or the file is damaged.
    """
    if path.is_dir():
        return Folder(path, options)
    archive = Archive(path)
    held: dict[str, Array] = {}

    def rows(name: str, first: int, last: int) -> Any:
        if name not in held:
            held[name] = archive[name]
        return held[name][first:last]

    steps_only = {"next_observations", *TIMEOUTS} & archive.keys()
    if options.ends == "terminal" and not steps_only:
        raise DataError(
            "The marked rows of this table are final observations of episodes that ran out of time.",
            expected="ends=data or ends=timeout, or a table with 'timeouts' or 'next_observations'",
            got=f"{path.name}: ends=terminal",
            fix="leave out ends",
        )
    return FlatTable(archive.shapes, rows, options, path.name, closing=not steps_only)


def _header(member: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"an array of version {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read(member)
    return shape, kind
