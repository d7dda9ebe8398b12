"""Data sets larger than memory: their arrays laid out once in files beside them, and mapped instead of read.

A data set's folder then holds ``mapped/KEY/``, one folder for each choice of observation entries, with a ``.npy`` file
per field, the index of the episodes, and ``about.json``, which says what the files were made from. The folder may be
deleted at any time; it is laid out again when the set has changed, or when the files are not what they were.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from trajgen.core.errors import DataError
from trajgen.core.files import file_lock, write_file, write_json
from trajgen.core.observations import Key
from trajgen.core.types import Space
from trajgen.data.episodes import WIDTHS, Array, Episode, Episodes
from trajgen.data.fingerprint import checksum, fingerprint

FOLDER, ABOUT, INDEX, UNFINISHED = "mapped", "about.json", "index.npy", ".unfinished-"
VERSION = 1
BLOCK = 2**17
"""Rows that are laid out before their memory is given back."""
SPOILT = (OSError, ValueError, KeyError, TypeError, RecursionError, EOFError)
"""What reading a file raises that is not there, or not what was laid out."""


def key_of(entries: Mapping[str, Key]) -> str:
    """The name of the folder for a choice of observation entries."""
    return sha256(json.dumps([VERSION, entries], sort_keys=True).encode()).hexdigest()[:16]


def is_large(rows: int, space: Space) -> bool:
    """Whether a data set of M rows would fill more than half of the memory that this process may use."""
    limits = [*_limits()]
    return bool(limits) and size_of(rows, space) > min(limits) / 2


def size_of(rows: int, space: Space) -> int:
    """Bytes of the arrays of a data set of M rows."""
    return 4 * rows * (space.state_dim + space.action_dim + 1 + 2 * space.goal_dim)


def laid_out(
    folder: Path, source: Path, read: Callable[[], Iterable[Episode]], *, rows: int, name: str, space: Space
) -> Episodes:
    """The episodes of a data set as mapped arrays, laid out first where that has not been done.

    Args:
        folder: where the files lie, or will.
        source: the file of the data set; when it changes, the arrays are laid out anew.
        read: its episodes, as a stream.
        rows: M.
        name, space: as for `Episodes.collect`.

    Raises:
        DataError: if the folder cannot be written, or the data are not valid.
    """
    stamp = {"version": VERSION, "rows": rows, "source": _stamp(source)}
    found = _opened(folder, stamp, name, space)
    if found is not None:
        return found
    with _writing(folder.parent, rows, space), file_lock(folder.parent / ".lock", wait=True):
        found = _opened(folder, stamp, name, space)  # another process may have been faster
        if found is not None:
            return found
        for left in folder.parent.glob(UNFINISHED + "*"):
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder.parent, ignore_cleanup_errors=True) as place:
            whole = Path(place) / "whole"
            whole.mkdir()
            made = _written(whole, read, rows, name, space)
            about = {**stamp, "arrays": fingerprint(made)["arrays"]}
            write_json(whole / ABOUT, about)
            if folder.exists():
                folder.rename(Path(place) / "replaced")
            whole.rename(folder)
    found = _opened(folder, stamp, name, space)
    if found is None:
        raise DataError(
            "A data set must not change while it is read.",
            expected="the files that were there at the beginning",
            got=f"data set {name!r} was replaced while its arrays were laid out",
            fix="try again when it is complete",
        )
    return found


def mapped_returns(
    episodes: Episodes, discount: float, compute: Callable[[Episodes, float, Array, slice], None]
) -> Array:
    """The returns-to-go (M,) of mapped episodes for a discount, laid out first where that has not been done.

    Args:
        episodes: of `laid_out`.
        discount: per environment step.
        compute: writes those of some of the episodes into an array of zeros.
    """
    states: Any = episodes.states  # a numpy.memmap, which knows its file
    folder, shape = Path(str(states.filename)).parent, episodes.rewards.shape
    path = folder / f"returns-{discount!r}.npy"
    note = path.with_suffix(".sha256")
    with contextlib.suppress(*SPOILT):
        values = _mapped(path, shape)
        if note.read_text(encoding="utf-8") == checksum(values):
            return values
    with (
        _writing(folder, len(episodes.rewards), Space(0, 0)),
        file_lock(folder.parent / ".lock", wait=True),
        tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as place,
    ):
        made = _allocated(Path(place) / path.name, shape)
        for part in _blocks(episodes):
            compute(episodes, discount, made, part)
            let_go(made, episodes.rewards)
        made.flush()
        write_file(note, checksum(made))
        (Path(place) / path.name).replace(path)
    return _mapped(path, shape)


def is_mapped(episodes: Episodes) -> bool:
    """Whether the episodes lie in files."""
    return isinstance(episodes.states, np.memmap)


def let_go(*arrays: Array | None) -> None:
    """Lets the system take back the memory of mapped arrays; what is needed again is read again."""
    for values in arrays:
        if isinstance(values, np.memmap) and isinstance(values.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            values.base.madvise(mmap.MADV_DONTNEED)


def _stamp(source: Path) -> dict[str, Any]:
    """What tells a changed file: its size, its time, and a sample of its bytes."""
    state = source.stat()
    with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        sample = checksum(np.frombuffer(content, np.uint8))
    return {"bytes": state.st_size, "time": state.st_mtime_ns, "sha256": sample}


def _opened(folder: Path, stamp: dict[str, Any], name: str, space: Space) -> Episodes | None:
    """The arrays of the folder, if they are whole and made from this source."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if {key: about[key] for key in stamp} != stamp:
            return None
        rows = stamp["rows"]
        fields: dict[str, Any] = dict.fromkeys(WIDTHS)
        for field, width in WIDTHS.items():
            if field in about["arrays"]:
                fields[field] = _mapped(folder / f"{field}.npy", (rows, *([getattr(space, width)] if width else [])))
        lengths, terminated = np.array(_mapped(folder / INDEX, None, np.int64))
        starts = np.concatenate([[0], np.cumsum(lengths + 1)[:-1]])
        made = Episodes(
            name=name, space=space, starts=starts, lengths=lengths, terminated=terminated.astype(bool), **fields
        )
        same = fingerprint(made)["arrays"] == about["arrays"]
        let_go(*fields.values())
        return made if same else None
    except SPOILT:
        return None


def _written(folder: Path, read: Callable[[], Iterable[Episode]], rows: int, name: str, space: Space) -> Episodes:
    arrays: list[Any] = []

    def allocate(field: str, shape: tuple[int, ...]) -> Array:
        arrays.append(_allocated(folder / f"{field}.npy", shape))
        return arrays[-1]

    def sparing() -> Iterator[Episode]:
        held = 0
        for episode in read():
            yield episode
            held += len(episode)
            if held > BLOCK:
                let_go(*arrays)
                held = 0

    made = Episodes.collect(sparing(), name=name, space=space, rows=rows, allocate=allocate)
    for values in arrays:
        values.flush()
    np.save(folder / INDEX, np.stack([made.lengths, made.terminated.astype(np.int64)]))
    return made


def _blocks(episodes: Episodes) -> Iterator[slice]:
    """The episodes in parts that are not much longer than a block."""
    first = 0
    for number, start in enumerate(episodes.starts):
        if start - episodes.starts[first] > BLOCK:
            yield slice(first, number)
            first = number
    yield slice(first, len(episodes))


def _allocated(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """A new file of zeros whose place on the disk is sure: a mapped write to a full disk would end the process."""
    values = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return values


def _mapped(path: Path, shape: tuple[int, ...] | None, kind: type = np.float32) -> np.memmap[Any, Any]:
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(values, np.memmap) or values.dtype != kind or shape not in (None, values.shape):
        raise ValueError(f"{path.name} is not what was laid out")
    return values


@contextlib.contextmanager
def _writing(folder: Path, rows: int, space: Space) -> Iterator[None]:
    """Makes the folder, and says plainly why it cannot be written."""
    needed = size_of(rows, space)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise OSError(errno.ENOSPC, f"{needed / 2**30:.1f} GiB are needed, {free / 2**30:.1f} GiB are free")
        yield
    except OSError as error:
        raise DataError(
            "A data set that is mapped lays out its arrays once, in files beside it.",
            expected=f"a folder that can be written, with {needed / 2**30:.1f} GiB free",
            got=f"{folder}: {error.strerror}",
            fix="data.memory_map=false if it fits into memory, or a copy of the set elsewhere: MINARI_DATASETS_PATH=…",
        ) from error


def _limits() -> Iterator[int]:
    """Bytes of memory: the machine's, those of the process's control group, and its own limits."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            yield int(Path("/sys/fs/cgroup", name).read_text())
    with contextlib.suppress(ImportError):
        import resource

        for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS):
            soft, _ = resource.getrlimit(kind)
            if soft != resource.RLIM_INFINITY:
                yield soft
