"""LeRobot's folders: ``meta/info.json`` and parquet files, of one episode each (v2) or of many (v3).

A row holds ``observation.state``, ``action``, ``episode_index`` and perhaps ``next.reward``, ``next.done`` and images,
each the bytes of a PNG or JPEG file; videos are left out. The observation after the last row is not recorded. Source:
LeRobot's documentation, "LeRobotDataset v3".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from trajgen.core.errors import ConfigError, DataError
from trajgen.data.episodes import Array
from trajgen.data.hdf5 import decoded
from trajgen.importing.options import ImportOptions
from trajgen.importing.source import Recorded, absent, flags, require_content
from trajgen.security import check_parquet, memory_limit, read_limited, require_regular

INFO = Path("meta", "info.json")
MAX_INFO = 2**24
AT_ONCE = 16
"""Rows of images that are read at once."""
EPISODE, FRAME, DONE, TRUNCATED = "episode_index", "frame_index", "next.done", "next.truncated"


class LeRobotFolder:
    """The episodes of a LeRobot folder.

    Args:
        path: the folder.
        options: names of columns.

    Raises:
        ConfigError: if pyarrow is not installed.
        DataError: if the files do not hold the episodes that the folder says.
        ValueError, OSError and others: if a file is damaged.
    """

    def __init__(self, path: Path, options: ImportOptions) -> None:
        if find_spec("pyarrow") is None:
            raise ConfigError("Parquet files are read by pyarrow.", fix="pip install 'trajgen[lerobot]'")
        info = json.loads(read_limited(path / INFO, MAX_INFO))
        self._options, self._path = options, path
        self._names = options.columns(("observation.state",), "action", "next.reward")
        self._columns = lru_cache(maxsize=2)(_columns)  # a file of many episodes is read once
        self._index: list[tuple[Path, int, int, int]] = []  # file, first row, row after the last, episode
        for file in sorted((path / "data").glob("chunk-*/*.parquet")):
            with _named(file.relative_to(path)):
                self._index_file(file)
        frames = sum(last - first for _, first, last, _ in self._index)
        for key, count in (("total_episodes", len(self._index)), ("total_frames", frames)):
            if info.get(key, count) != count:
                raise DataError(
                    f"{INFO} says {key}: {info[key]}, and there are {count} in {path.name}/data.",
                    fix="copy the whole folder",
                )
        features = info.get("features") or {}
        pictured = tuple(name for name, about in features.items() if about.get("dtype") == "image")
        self._images = pictured if options.images == "auto" else options.images
        videos = [name for name, about in features.items() if about.get("dtype") == "video"]
        tasks = f", {info['total_tasks']} tasks" if info.get("total_tasks", 1) != 1 else ""
        self.about = f"LeRobot {info.get('codebase_version', '')}, {info.get('fps', '?')} frames a second{tasks}"
        self.about += f"; images: {', '.join(self._images)}" if self._images else ""
        self.about += f"; videos are left out: {', '.join(videos)}" if videos else ""

    def __len__(self) -> int:
        return len(self._index)

    def label(self, number: int) -> str:
        file, first, last, _ = self._index[number]
        return f"{file.relative_to(self._path)}, rows {first} to {last - 1}"

    def read(self, number: int) -> Recorded:
        file, first, last, episode = self._index[number]
        origin, options, names = f"{file.name}, episode_index {episode}", self._options, dict(self._names)
        columns_there = _open(file).schema_arrow.names
        if options.rewards != "data" or (names["rewards"][0] not in columns_there and options.reward is None):
            names.pop("rewards")
        required = [*(name for entries in names.values() for name in entries), *self._images]
        required += [name for name in (DONE, TRUNCATED, FRAME) if name in columns_there]
        columns = self._columns(file, tuple(dict.fromkeys(required)))

        def part(name: str) -> Array:
            return columns[name][first:last]

        skip = f"correct the source, or leave the episode out: skip=[{number}]"
        if FRAME in columns and (part(FRAME) != np.arange(last - first)).any():
            row = int(np.flatnonzero(part(FRAME) != np.arange(last - first))[0])
            got = f"{origin}, row {first + row}: {FRAME} {part(FRAME)[row]}"
            raise DataError("The frames of an episode come one after the other.", got=got, fix=skip)
        ended = {name: flags(part(name), f"{origin}, field {name!r}") for name in (DONE, TRUNCATED) if name in columns}
        for name, marks in ended.items():
            if marks[:-1].any():
                got = f"{origin}, field {name!r}: set in row {first + int(np.flatnonzero(marks)[0])}"
                raise DataError("An episode ends with its last row.", got=got, fix=skip)
        terminated = DONE in ended and ended[DONE][-1] and not (TRUNCATED in ended and ended[TRUNCATED][-1])
        return Recorded.read(part, names, origin, images=self._images, terminated=bool(terminated))

    def _index_file(self, file: Path) -> None:
        """Finds the episodes of a file by their column."""
        numbers = self._columns(file, (EPISODE,))[EPISODE]
        starts = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1))
        indexed = {episode for *_, episode in self._index}
        for first, last in zip(starts, [*starts[1:], len(numbers)], strict=True):
            episode = int(numbers[first])
            if episode in indexed:
                raise DataError(f"{file.name}, row {first}: {EPISODE} {episode} again; its rows must lie together.")
            indexed.add(episode)
            self._index.append((file, int(first), int(last), episode))


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Names the file in what reading it raises: one of many may be damaged, or a pointer to a file elsewhere."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from error


def _open(path: Path) -> Any:
    """A parquet file that declares no more than it can hold."""
    import pyarrow.parquet as pq

    require_regular(path)
    require_content(path)
    file = pq.ParquetFile(path)
    check_parquet(path, file)
    return file


def _columns(path: Path, names: tuple[str, ...]) -> dict[str, Array]:
    """Columns of a file as arrays (n,) or (n, width), and of images (n, height, width, channels)."""
    import pyarrow as pa

    file, columns = _open(path), dict[str, Array]()
    for name in names:
        if name not in file.schema_arrow.names:
            raise absent(name, file.schema_arrow.names, path.name)
        where, kind = f"{path.name}, field {name!r}", file.schema_arrow.field(name).type
        if pa.types.is_struct(kind):
            columns[name] = _images(file, name, where, memory_limit(path.stat().st_size))
            continue
        inner = kind.value_type if _is_list(kind) else kind
        is_numeric = pa.types.is_integer(inner) or pa.types.is_floating(inner) or pa.types.is_boolean(inner)
        column = file.read(columns=[name], use_threads=False)[name].combine_chunks() if is_numeric else None
        if column is None or column.null_count or (_is_list(kind) and column.flatten().null_count):
            raise DataError(
                "Columns hold numbers, or lists of numbers, in every row.",
                got=f"{where}: {kind}" + (", with gaps" if is_numeric else ""),
                fix="name other columns: state=…, action=…, reward=…",
            )
        columns[name] = _vectors(column, where) if _is_list(kind) else column.to_numpy(zero_copy_only=False)
    return columns


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _vectors(column: Any, where: str) -> Array:
    """A column of lists of numbers (n, width)."""
    sizes = np.asarray(column.value_lengths())
    if len(sizes) and (sizes != sizes[0]).any():
        row = int(np.flatnonzero(sizes != sizes[0])[0])
        raise DataError(f"A column of vectors has one width: {where}, row {row}: {sizes[row]}, not {sizes[0]}.")
    flat: Array = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), int(sizes[0]) if len(sizes) else 0)


def _images(file: Any, name: str, where: str, limit: int) -> Array:
    """The images (n, height, width, channels) of a column of files, each with its bytes.

    Raises:
        DataError: for a row without a file, or with an image of another shape.
        ValueError: if they would take more than ``limit`` bytes of memory: a row may repeat another one for nothing.
    """
    images: list[Array] = []
    size = 0
    for batch in file.iter_batches(AT_ONCE, columns=[name], use_threads=False):
        for content in (each and each.get("bytes") for each in batch.column(0).to_pylist()):
            row = len(images)
            if not isinstance(content, bytes):
                fix = "name other columns: images=[…]"
                raise DataError("An image lies in its row, as the bytes of a file.", got=f"{where}, row {row}", fix=fix)
            images.append(decoded(content, ("PNG", "JPEG")))
            if images[-1].shape != images[0].shape:
                got = f"{where}, row {row}: {images[-1].shape}, not {images[0].shape}"
                raise DataError("All images of a column have one shape.", got=got)
            size += len(content) + images[-1].nbytes
            if size > limit:
                raise ValueError(f"{where} would take more than {limit:,} bytes of memory")
    return np.stack(images)
