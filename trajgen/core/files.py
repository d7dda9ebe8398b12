"""Atomic writes, JSON with guards against damaged files, JSON lines, and the file lock."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trajgen.core.errors import CheckpointError, TrainingError
from trajgen.security import read_limited

LARGEST_FILE = 16 * 2**20
"""Bytes of the largest JSON file that is read; a configuration has a few thousand."""
LARGEST_LOG = 2**28
"""Bytes of the largest metrics.jsonl that is read."""
LARGEST_NUMBER = 2**53
NOT_LOSSES = ("stage", "stage_index", "step", "seconds", "windows_per_second", "gradient_norm")
"""Entries of a line of metrics.jsonl that are neither losses nor figures of a group ("usage/scale_1")."""
PARTIAL = ".partial-"
"""Prefix of a file that is being written."""
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""Errors of a file system without locks."""


def make_folder(path: Path) -> None:
    """Makes a folder, and those above it, where they are not there.

    Raises:
        OSError: if it cannot be made; a `PermissionError` where the file system makes none, as ``/proc``.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # which would read as if a file were missing
        raise PermissionError(errno.EACCES, "no folder can be made here", str(path)) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` to write to; it takes the place of ``path`` unless an error is raised.

    Whatever ends the process or the power, ``path`` has the old content or the new one: the new content is flushed to
    the disk before it is renamed, and the folder's entry after that. A link in the file's place is replaced.
    """
    make_folder(path.parent)
    temporary = path.with_name(PARTIAL + path.name)
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()  # a full disk needs the room
        if isinstance(error, OSError) and error.errno and error.filename is None:  # of a write, which knows no name
            error.filename = str(path)
        raise
    flush(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside ``path`` to write into; it becomes ``path`` unless an error is raised.

    Whatever ends the process, ``path`` is whole or not there; it must not hold anything. The current folder stays, and
    what was written is moved into it.
    """
    path = path.resolve()  # a link to a folder would be replaced by it
    is_current = path == Path.cwd()
    temporary = path / f"{PARTIAL}folder" if is_current else path.with_name(PARTIAL + path.name)
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process
    make_folder(path.parent)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            flush(file)
        if is_current:
            for file in temporary.iterdir():
                os.replace(file, path / file.name)
            temporary.rmdir()
        else:
            os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    flush(path.parent)


def write_file(path: Path, content: str | bytes) -> None:
    """Writes a file atomically, see `replacing`."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


def flush(path: Path) -> None:
    """Waits until the disk has a file's content or a folder's entries; skipped on systems that cannot open folders."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_partial(folder: Path) -> None:
    """Removes the half-written files that a killed process left in a folder."""
    for path in folder.glob(PARTIAL + "*"):
        path.unlink()


def write_json(path: Path, values: Any) -> None:
    """Writes plain values as JSON, atomically."""
    write_file(path, json.dumps(values, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file as a dictionary.

    Raises:
        CheckpointError: if it is missing or damaged, far too large or too deep, or has a key twice.
    """
    try:
        values = json.loads(read_limited(path, LARGEST_FILE), object_pairs_hook=_unique)
        if not isinstance(values, dict):
            raise ValueError(f"{type(values).__name__}, not a dictionary")
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} stands there twice")
    return values


def damaged(path: Path, cause: object) -> CheckpointError:
    """The error for a file of a run folder that trajgen did not write like this."""
    return CheckpointError(
        f"{path.name} is not as trajgen wrote it.",
        got=f"{path}: {str(cause)[:200] or type(cause).__name__}",
        fix="use a run folder that 'trajgen train' made (run=DIR)",
    )


def append_json(path: Path, values: Mapping[str, Any]) -> None:
    """Appends one line of JSON to a file."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(dict(values)) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl: ``stage`` (text), ``stage_index``, ``step``, ``seconds`` and other numbers by name.

    A line that a power cut tore is left out; there is none without a file.

    Raises:
        CheckpointError: if a line is whole and not one that a training wrote.
    """
    rows = []
    try:
        for line in read_limited(path, LARGEST_LOG, "replace").splitlines() if path.exists() else ():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            row.setdefault("stage_index", 0)
            numbers = [value for key, value in row.items() if key != "stage"]
            if not (isinstance(row["stage"], str) and min(row["step"], row["seconds"], row["stage_index"]) >= 0):
                raise ValueError(f"a line that no training wrote: {line[:60]}")
            if not all(isinstance(value, float) or abs(value) <= LARGEST_NUMBER for value in numbers):
                raise ValueError(f"a number out of range: {line[:60]}")
            rows.append(row)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, error) from error
    return rows


@contextmanager
def file_lock(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Holds a lock file, which is removed in the end; the lock of a process that dies is released by the system.

    On a file system without locks nothing is locked.

    Args:
        path: of the lock file; PATH.holder beside it names the process that holds it.
        wait: whether to wait until it is free.

    Raises:
        TrainingError: if another process holds it, and ``wait`` is false.
    """
    from filelock import FileLock, Timeout

    make_folder(path.parent)
    lock, holder = FileLock(path, timeout=-1 if wait else 0), path.with_name(f"{path.name}.holder")
    try:
        lock.acquire()
    except Timeout:
        name = "another process"
        with suppress(OSError, ValueError):
            name = read_limited(holder, 200).strip() or name
        raise TrainingError(
            "One process at a time works in a folder.",
            got=f"{path.parent} is held by {name}",
            fix="wait for it or end it, or run_dir=ANOTHER (of a study, out=ANOTHER)",
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        yield
        return
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        yield
    finally:
        for file in (holder, path):  # before the lock is released: nobody else can hold them yet
            with suppress(OSError):
                file.unlink()
        lock.release()


def require_writable(folder: Path, fix: str) -> None:
    """Raises a `TrainingError` if a folder cannot be written to or created."""
    parent = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=parent):  # permissions do not show a read-only disk
            pass
    except OSError as error:
        raise TrainingError("A folder cannot be written to.", got=f"{parent}: {error.strerror}", fix=fix) from error


def free_path(parent: Path, name: str = "{}", first: int = 1) -> Path:
    """The first path in ``parent``, with 1, 2, … in ``name``, that does not exist."""
    return next(path for path in (parent / name.format(n) for n in range(first, 10**6)) if not path.exists())
