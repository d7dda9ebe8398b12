"""The folder of Minari data sets on this machine: what lies there, and how a set gets there whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trajgen.core.errors import DataError, nearest
from trajgen.core.files import file_lock
from trajgen.security import check_minari_metadata, read_limited

STAGING, REPLACED = ".trajgen-", "replaced"
LOCK = f"{STAGING}lock"
DAY = 24 * 3600
ID = re.compile(r"(?![-\w]/[-\w]+$)(?:(?!data/)[-\w]+/)*[-\w]+?-v\d+")
"""Ids that can be listed: a namespace has more than one letter, and is not called as the folder within a set."""
RECORDED_ID = re.compile(r"trajgen/(.+)-v0")
"""Ids of the sets that trajgen records, with the name of their maker."""
MAX_METADATA = 2**28


@dataclass(frozen=True)
class LocalSet:
    """A data set on this machine; ``problem`` says what is wrong with its folder, if anything."""

    id: str
    episodes: int = 0
    steps: int = 0
    megabytes: float = 0.0
    problem: str | None = None


def root() -> Path:
    """The folder of all data sets: MINARI_DATASETS_PATH, or ~/.minari/datasets."""
    return Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")


def folder(id: str, base: Path | None = None) -> Path:
    """The folder of a data set, which need not exist.

    Raises:
        DataError: if ``id`` is not an id that Minari accepts; such a folder would break its list.
    """
    if not ID.fullmatch(id):
        example = f"{id if '/' in id else f'mine/{id}'}-v0"
        raise DataError(
            "A data set's id is a name with a version.",
            expected="namespace/name-v0, of letters, digits, _ and -; a namespace has two or more, and is not data",
            got=repr(id),
            fix=f"for example {example}" if ID.fullmatch(example) else None,
        )
    path = (base or root()) / id
    if base is None and not path.exists():
        for replaced in root().glob(f"{STAGING}*/{REPLACED}/{id}"):
            _restore(replaced, path)
    return path


def _restore(replaced: Path, path: Path) -> None:
    """Puts a data set back that a process had moved away to replace it, and was killed."""
    with suppress(OSError), file_lock(root() / LOCK, wait=True):  # as long as it lives, that process holds the lock
        if not path.exists():
            replaced.rename(path)


def metadata(id: str, base: Path | None = None) -> dict[str, Any]:
    """The metadata of a data set.

    Raises:
        DataError: if they cannot be read.
    """
    path = folder(id, base) / "data" / "metadata.json"
    try:
        content = dict(json.loads(read_limited(path, MAX_METADATA)))
        check_minari_metadata(content)
        return content
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise damaged(id, f"{path.name}: {error}") from error


def damaged(id: str, cause: object) -> DataError:
    """The error for a data set whose files cannot be read."""
    text = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
    return DataError(
        "The files of a data set must be complete and readable.",
        got=f"data set {id!r}: {text}",
        fix="make or download it again, with force=true",
    )


def missing(id: str) -> DataError:
    """The error for a data set that is not on this machine, with the command that brings it."""
    match = RECORDED_ID.fullmatch(id)
    close = nearest(id, [each.id for each in local_sets()])
    command = f"trajgen data make {match[1]}" if match else f"trajgen data get {id}"
    return DataError(
        "The data set must be on this machine.",
        got=f"{id!r}, looked for in {root()}",
        fix=f"{close} Or {command}" if close.startswith("did") else command,
    )


def require_here(id: str, maker: str | None) -> None:
    """Raises a `DataError` unless a data set is on this machine, or one that a maker makes."""
    match = RECORDED_ID.fullmatch(id)
    if not folder(id).is_dir() and (match is None or match[1] != maker):
        raise missing(id)


def local_sets(base: Path | None = None) -> list[LocalSet]:
    """The data sets on this machine, sorted by id; a broken folder is listed with its problem."""
    sets = []
    if base is None:
        for parent in root().glob(f"{STAGING}*/{REPLACED}"):
            for data in _data_folders(parent):
                _restore(data.parent, root() / data.parent.relative_to(parent))
    base = base or root()
    for data in _data_folders(base):
        id = data.parent.relative_to(base).as_posix()
        try:
            content = metadata(id, base)
        except DataError as error:
            sets.append(LocalSet(id, problem=str(error.got or error.rule)))
            continue
        size = sum(file.stat().st_size for file in data.rglob("*") if file.is_file())
        problem = None if size > (data / "metadata.json").stat().st_size else "no data beside its metadata"
        if content.get("dataset_id") != id:
            problem = f"its metadata say {content.get('dataset_id')!r}"
        sets.append(LocalSet(id, content["total_episodes"], content["total_steps"], size / 1e6, problem))
    return sets


def _data_folders(base: Path) -> list[Path]:
    """The folders ``data`` below a folder, but for hidden ones; what others remove meanwhile is left out."""
    folders = []
    for folder, names, _ in os.walk(base):
        folders += [Path(folder, "data")] if "data" in names else []
        names[:] = [name for name in names if name != "data" and not name.startswith(".")]
    return sorted(folders)


@contextmanager
def staging() -> Iterator[Path]:
    """A temporary folder on the file system of the data sets, hidden from lists, removed at the end."""
    base = root()
    try:
        base.mkdir(parents=True, exist_ok=True)
        local_sets()  # which are put back where a killed process was replacing them
        for unfinished in base.glob(STAGING + "*"):  # of a killed process; a young folder may still be in use
            if time.time() - unfinished.stat().st_mtime > DAY:
                shutil.rmtree(unfinished, ignore_errors=True)
        temporary = tempfile.TemporaryDirectory(prefix=STAGING, dir=base, ignore_cleanup_errors=True)
    except OSError as error:
        raise DataError(
            "The folder of data sets must be writable.",
            got=f"{base}: {error.strerror}",
            fix="set MINARI_DATASETS_PATH to a folder of your own",
        ) from error
    with temporary as path:
        yield Path(path)


@contextmanager
def making(id: str) -> Iterator[None]:
    """Lets one process at a time make a data set; the others wait for it."""
    root().mkdir(parents=True, exist_ok=True)
    with file_lock(root() / f"{LOCK}-{id.replace('/', '-')}", wait=True):
        yield


def refuse_existing(id: str) -> None:
    """Raises a DataError if there is a data set of this id."""
    if folder(id).exists():
        raise _taken(id)


def _taken(id: str) -> DataError:
    return DataError(f"The data set {id!r} is on this machine already.", fix="force=true replaces it")


def publish(id: str, base: Path, *, force: bool = False) -> None:
    """Moves a finished data set from its staging folder to its place, by renaming.

    Raises:
        DataError: if the place is taken and ``force`` is not set.
    """
    target = folder(id)
    if not force:
        refuse_existing(id)
    backup = base / REPLACED / id
    for path in (target, backup):
        path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(root() / LOCK, wait=True):
        if target.exists() and not force:
            raise _taken(id)  # another process was faster
        try:
            if target.exists():
                target.rename(backup)
            folder(id, base).rename(target)
        except BaseException:
            if backup.exists() and not target.exists():
                backup.rename(target)
            raise
    for parent in target.parents:
        if parent == root():
            break
        note = parent / "namespace_metadata.json"  # Minari looks for it in each namespace
        if not note.exists():
            note.write_text("{}")
