"""Data of other formats, written as Minari data sets: from a path, or from arrays of Python."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajgen.core.errors import ConfigError, DataError
from trajgen.core.options import structure
from trajgen.importing.options import ImportOptions

if TYPE_CHECKING:
    from trajgen.importing.source import Source
    from trajgen.importing.write import Imported

__all__ = ["ImportOptions", "detect", "from_arrays", "from_path"]

MARKS = {
    "lerobot": "a folder with meta/info.json",
    "npz": "a .npz file, or a folder of them",
    "robomimic": "an HDF5 file with a group 'data' of demonstrations, data/demo_0",
    "d4rl": "an HDF5 file with an array 'observations' at its root",
}
"""What each format is recognized by."""


def from_path(path: str | Path, options: ImportOptions) -> Imported:
    """Imports a file or a folder.

    Raises:
        DataError: if the source is not there, of no known format, damaged, or wrong: naming the episode and the
            field; or if the id is taken. Nothing is written then.
        ConfigError: if a package is missing that reads the format, or an option does not fit it.
    """
    from trajgen.data import store
    from trajgen.importing.tables import Table
    from trajgen.importing.write import write

    path = Path(path).expanduser()
    store.folder(options.id)
    if not options.force:
        store.refuse_existing(options.id)
    with _open(path, detect(path) if options.format == "auto" else options.format, options) as source:
        if options.episode_steps is not None and not isinstance(source, Table):
            raise ConfigError(
                "Only one table of many episodes is cut into pieces of so many rows.",
                got=f"episode_steps={options.episode_steps} for {path}, whose episodes lie apart",
                fix="leave episode_steps out",
            )
        return write(source, options, path.name)


def from_arrays(id: str, episodes: Iterable[Mapping[str, Any]], **options: Any) -> Imported:
    """Imports episodes that are in memory.

    Args:
        id: of the new data set.
        episodes: for each episode its ``observations`` (n or n+1, S), ``actions`` (n, A), ``rewards`` (n,), and perhaps
            ``terminals`` or ``terminations`` (n,), ``next_observations`` or ``next_obs`` (n, S), and entries named by
            options.
        options: those of `ImportOptions`.

    Raises:
        ConfigError: if an option is unknown or does not fit.
        DataError: as for `from_path`.
    """
    from trajgen.data import store
    from trajgen.importing.source import Arrays
    from trajgen.importing.write import write

    structured = structure(ImportOptions, {"id": id, **options}, "")
    store.folder(id)
    mappings = list(episodes)
    labels = [f"episode {number}" for number in range(len(mappings))]
    return write(Arrays(mappings.__getitem__, labels, structured), structured, "arrays")


def detect(path: Path) -> str:
    """The format of a file or folder.

    Raises:
        DataError: if it is of none that is known.
    """
    if path.is_dir():
        if (path / "meta" / "info.json").is_file():
            return "lerobot"
        if any(path.glob("*.npz")):
            return "npz"
        names = sorted(each.name for each in path.iterdir())[:10]
        raise _unknown(f"{path}: a folder with {', '.join(names) or 'nothing'}")
    _require_file(path)
    from trajgen.importing.source import require_content
    from trajgen.importing.write import unreadable

    try:
        require_content(path)
    except OSError as error:
        raise unreadable(str(path), error) from error
    with open(path, "rb") as file:
        start = file.read(8)
    if start.startswith(b"PK"):
        return "npz"
    if start != b"\x89HDF\r\n\x1a\n":
        raise _unknown(f"{path}: begins with {start!r}")
    with _hdf5(path) as file:
        import h5py

        if isinstance(file.get("data"), h5py.Group):
            return "robomimic"
        if isinstance(file.get("observations"), h5py.Dataset):
            return "d4rl"
        raise _unknown(f"{path}: an HDF5 file with {', '.join(sorted(file)[:10]) or 'nothing'}")


@contextmanager
def _open(path: Path, form: str, options: ImportOptions) -> Iterator[Source]:
    """The source of a path; its damage is an error that names it."""
    from trajgen.importing.hdf5 import Demonstrations, open_d4rl
    from trajgen.importing.lerobot import LeRobotFolder
    from trajgen.importing.npz import open_npz
    from trajgen.importing.write import DAMAGE, unreadable

    source: Source
    if not path.is_dir():
        _require_file(path)
    if form in ("npz", "lerobot"):
        try:
            source = open_npz(path, options) if form == "npz" else LeRobotFolder(path, options)
        except DAMAGE as error:
            raise unreadable(str(path), error) from error
        yield source
        return
    with _hdf5(path) as file:
        try:
            source = Demonstrations(path, file, options) if form == "robomimic" else open_d4rl(path, file, options)
        except DAMAGE as error:
            raise unreadable(str(path), error) from error
        yield source


@contextmanager
def _hdf5(path: Path) -> Iterator[Any]:
    """An HDF5 file that names no more than it holds, and leads nowhere else."""
    from trajgen.importing.write import DAMAGE, unreadable
    from trajgen.security import check_hdf5, open_hdf5

    _require_file(path)
    try:
        check_hdf5(path)
        file = open_hdf5(path)
    except DAMAGE as error:
        raise unreadable(str(path), error) from error
    with file:
        yield file


def _require_file(path: Path) -> None:
    if not path.is_file():
        state = "is no file" if path.exists() else "is not there"
        raise DataError(f"The source of an import must be there, and {path} {state}.")


def _unknown(source: str) -> DataError:
    return DataError(
        "The format of a source must be known.",
        expected="; ".join(f"{name}: {mark}" for name, mark in MARKS.items()),
        got=source,
        fix="format=…, if it is one of these; else arrays from Python: trajgen.importing.from_arrays",
    )
