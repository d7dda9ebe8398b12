"""Data sets larger than memory: their arrays are written once into files beside them, and mapped.

A data set's folder then holds ``mapped/KEY/``, one folder for each choice of observation entries, with a ``.npy`` file
per field, the index of the episodes, and ``about.json``, the stamp of the source. The folder may be deleted at any
time; it is written again when the set has changed, or when its files are damaged.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from trajgen.core.errors import CheckpointError, DataError
from trajgen.core.files import file_lock, read_json
from trajgen.core.observations import Key
from trajgen.core.types import Space
from trajgen.data.episodes import WIDTHS, Array, Episode, Episodes, Rounding, collect_centered, shape_of, type_of
from trajgen.data.fingerprint import checksum, fingerprint
from trajgen.security import memory_limits

FOLDER, ABOUT, INDEX, UNFINISHED = "mapped", "about.json", "index.npy", ".unfinished-"
VERSION = 1
BLOCK = 2**23
"""Bytes that are written before their memory is given back."""
DAMAGE = (CheckpointError, OSError, ValueError, KeyError, TypeError, RecursionError, EOFError)
"""What reading a missing or damaged file raises."""
OFFSETS = ("state_offset", "goal_offset")


def key_of(entries: Mapping[str, Key]) -> str:
    """The name of the folder for a choice of observation entries."""
    return sha256(json.dumps([VERSION, entries], sort_keys=True).encode()).hexdigest()[:16]


def is_large(rows: int, space: Space) -> bool:
    """Whether a data set of M rows would fill more than half of the memory that this process may use."""
    limits = [*memory_limits()]
    return bool(limits) and size_of(rows, space) > min(limits) / 2


def size_of(rows: int, space: Space) -> int:
    """Bytes of the arrays of a data set of M rows."""
    image = 0 if space.encoded else math.prod(space.image_shape or (0,))
    return rows * (4 * (space.state_dim + space.action_dim + 1 + 2 * space.goal_dim) + image)


def map_episodes(
    folder: Path,
    source: Path,
    read: Callable[[], Iterable[Episode]],
    *,
    rows: int,
    name: str,
    space: Space,
    goal_state: Sequence[int] = (),
) -> Episodes:
    """The episodes of a data set as mapped arrays, which are written first where they are not there.

    Args:
        folder: of the files.
        source: the file of the data set; when it changes, the arrays are written anew.
        read: its episodes, as a stream.
        rows, name, space: as for `Episodes.collect`.
        goal_state: indices of the state that a goal sets.

    Raises:
        DataError: if the folder cannot be written, or the data are not valid.
    """
    stamp = {"version": VERSION, "rows": rows, "source": _stamp(source)}
    opened = partial(_open, folder, stamp, name, space, tuple(goal_state))
    episodes = opened()
    if episodes is not None:
        return episodes
    lock = folder.parent / ".lock"  # all ranks come here at once
    with _writing(folder.parent, rows, space), file_lock(lock, wait=True):
        episodes = opened()  # another process may have been faster
        if episodes is not None:
            return episodes
        for unfinished in folder.parent.glob(UNFINISHED + "*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder.parent, ignore_cleanup_errors=True) as temporary:
            new_folder = Path(temporary) / "whole"
            new_folder.mkdir()
            written = _write(new_folder, read, rows, name, space, goal_state)
            offsets = {key: getattr(written.space, key) for key in OFFSETS}
            about = {**stamp, "arrays": fingerprint(written)["arrays"], "offsets": offsets}
            (new_folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")
            if folder.exists():
                folder.rename(Path(temporary) / "replaced")
            new_folder.rename(folder)
    episodes = opened()
    if episodes is None:
        raise DataError(f"The data set {name!r} changed while it was read.", fix="try again when it is complete")
    return episodes


def is_mapped(episodes: Episodes) -> bool:
    """Whether the episodes lie in files."""
    return isinstance(episodes.rewards, np.memmap)


def drop_pages(*arrays: Array | None) -> None:
    """Gives the memory of mapped arrays back to the system; what is needed again is read again."""
    for values in arrays:
        if isinstance(values, np.memmap) and isinstance(values.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            values.base.madvise(mmap.MADV_DONTNEED)


def _stamp(source: Path) -> dict[str, Any]:
    """Size, time and a sample of the bytes of a file, which show a change."""
    state = source.stat()
    with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        sample = checksum(np.frombuffer(content, np.uint8))
    return {"bytes": state.st_size, "time": state.st_mtime_ns, "sha256": sample}


def _open(folder: Path, stamp: dict[str, Any], name: str, space: Space, goal_state: tuple[int, ...]) -> Episodes | None:
    """The arrays of the folder, if they are whole and made from this source."""
    try:
        about = read_json(folder / ABOUT)
        if {key: about[key] for key in stamp} != stamp:
            return None
        state, goal = (tuple(map(float, about["offsets"][key])) for key in OFFSETS)
        if goal_state and space.goal_dim and goal != (tuple(state[index] for index in goal_state) if state else ()):
            return None  # written for options without these
        space = replace(space, state_offset=state, goal_offset=goal)
        fields: dict[str, Any] = dict.fromkeys(WIDTHS)
        for field in WIDTHS:
            if field in about["arrays"]:
                path, shape = folder / f"{field}.npy", shape_of(field, stamp["rows"], space)
                fields[field] = _map(path, shape, type_of(field))
        lengths, terminated = np.array(_map(folder / INDEX, None, np.int64))
        starts = np.concatenate([[0], np.cumsum(lengths + 1)[:-1]])
        episodes = Episodes(
            name=name, space=space, starts=starts, lengths=lengths, terminated=terminated.astype(bool), **fields
        )
        same = fingerprint(episodes)["arrays"] == about["arrays"]
        drop_pages(*fields.values())
        return episodes if same else None
    except DAMAGE:
        return None


def _write(
    folder: Path, read: Callable[[], Iterable[Episode]], rows: int, name: str, space: Space, goal_state: Sequence[int]
) -> Episodes:
    arrays: list[Any] = []

    def allocate(field: str, shape: tuple[int, ...]) -> Array:
        arrays.append(_allocate(folder / f"{field}.npy", shape, type_of(field)))
        return arrays[-1]

    def stream() -> Iterator[Episode]:
        written = 0
        arrays.clear()
        for episode in read():
            yield episode
            written += size_of(len(episode), space)
            if written > BLOCK:
                drop_pages(*arrays)
                written = 0

    def collect(raw: Iterable[Episode], space: Space, rounding: Rounding) -> Episodes:
        return Episodes.collect(raw, name=name, space=space, rows=rows, allocate=allocate, rounding=rounding)

    episodes = collect_centered(stream, collect, space, goal_state)
    for values in arrays:
        values.flush()
    np.save(folder / INDEX, np.stack([episodes.lengths, episodes.terminated.astype(np.int64)]))
    return episodes


def _allocate(path: Path, shape: tuple[int, ...], dtype: type) -> np.memmap[Any, Any]:
    """A new file of zeros with its disk space reserved: a mapped write to a full disk would end the process."""
    values = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return values


def _map(path: Path, shape: tuple[int, ...] | None, dtype: type) -> np.memmap[Any, Any]:
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(values, np.memmap) or values.dtype != dtype or shape not in (None, values.shape):
        raise ValueError(f"{path.name} has another type or shape")
    return values


@contextlib.contextmanager
def _writing(folder: Path, rows: int, space: Space) -> Iterator[None]:
    """Makes the folder; an error that it cannot be written names the ways out."""
    size = size_of(rows, space)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < size:
            raise OSError(errno.ENOSPC, f"{size / 2**30:.1f} GiB are needed, {free / 2**30:.1f} GiB are free")
        yield
    except OSError as error:
        raise DataError(
            f"The arrays of a mapped data set cannot be written into {folder}: {error.strerror}.",
            fix="data.memory_map=false if it fits into memory, or a copy of the set elsewhere: MINARI_DATASETS_PATH=…",
        ) from error
