"""LeRobot's folders: ``meta/info.json`` and parquet files, of one episode each (v2) or of many (v3).

A row holds ``observation.state``, ``action``, ``episode_index`` and perhaps ``next.reward`` and ``next.done``; videos
are left out. The observation after the last row is not recorded. Source: LeRobot's documentation, "LeRobotDataset v3".
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from trajgen.core.errors import ConfigError, DataError
from trajgen.data.declared import RATIO, SLACK
from trajgen.data.episodes import Array
from trajgen.data.importing.options import ImportOptions
from trajgen.data.importing.source import Recorded, absent, goal_names, joined

INFO = Path("meta", "info.json")
LARGEST_INFO = 2**24
EPISODE, FRAME = "episode_index", "frame_index"


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
        _require_pyarrow()
        if (path / INFO).stat().st_size > LARGEST_INFO:
            raise ValueError(f"{INFO} is larger than {LARGEST_INFO:,} bytes")
        info = json.loads((path / INFO).read_text(encoding="utf-8"))
        self._options, self._path = options, path
        self._states = options.state_names or ("observation.state",)
        self._action, self._reward = options.action or "action", options.reward or "next.reward"
        self._columns = lru_cache(maxsize=2)(_columns)  # a file of many episodes is read once
        self._found: list[tuple[Path, int, int, int]] = []  # file, first row, row after the last, episode
        for file in sorted((path / "data").glob("chunk-*/*.parquet")):
            self._index(file)
        frames = sum(last - first for _, first, last, _ in self._found)
        for key, there in (("total_episodes", len(self._found)), ("total_frames", frames)):
            if info.get(key, there) != there:
                raise DataError(
                    "A LeRobot folder holds what it says.",
                    expected=f"{key}: {info[key]}, as {INFO} says",
                    got=f"{path.name}: {there} in {path.name}/data",
                    fix="bring the folder over whole",
                )
        tasks = f", {info['total_tasks']} tasks" if info.get("total_tasks", 1) != 1 else ""
        self.about = f"LeRobot {info.get('codebase_version', '')}, {info.get('fps', '?')} frames a second{tasks}"

    def __len__(self) -> int:
        return len(self._found)

    def label(self, number: int) -> str:
        file, first, last, _ = self._found[number]
        return f"{file.relative_to(self._path)}, rows {first} to {last - 1}"

    def read(self, number: int) -> Recorded:
        file, first, last, episode = self._found[number]
        place, options = f"{file.name}, episode_index {episode}", self._options
        goals = goal_names(options)
        rewarded = self._has(file, self._reward) and options.rewards == "data"
        wanted = [*self._states, self._action, *goals.values(), *([self._reward] if rewarded or options.reward else [])]
        flags = [name for name in ("next.done", FRAME) if self._has(file, name)]
        columns = self._columns(file, tuple(dict.fromkeys([*wanted, *flags])))

        def part(name: str) -> Array:
            return columns[name][first:last]

        if FRAME in flags and (part(FRAME) != np.arange(last - first)).any():
            row = int(np.flatnonzero(part(FRAME) != np.arange(last - first))[0])
            raise DataError(
                "The frames of an episode come one after the other.",
                expected=f"{FRAME} {row}",
                got=f"{place}, row {first + row}: {FRAME} {part(FRAME)[row]}",
                fix=f"mend the source, or leave the episode out: skip=[{number}]",
            )
        rewards = part(self._reward) if self._reward in columns else None
        return Recorded(
            states=joined([part(name) for name in self._states], self._states, place),
            actions=joined([part(self._action)], [self._action], place),
            rewards=None if rewards is None else rewards.reshape(len(rewards), -1)[:, 0],
            terminated="next.done" in flags and bool(np.ravel(part("next.done"))[-1]),
            goals=part(options.goal) if options.goal else None,
            achieved=part(options.achieved) if isinstance(options.achieved, str) else None,
            names={"states": "+".join(self._states), "actions": self._action, "rewards": self._reward, **goals},
        )

    def _has(self, file: Path, name: str) -> bool:
        return name in _open(file).schema_arrow.names

    def _index(self, file: Path) -> None:
        """Finds the episodes of a file by their column."""
        numbers = self._columns(file, (EPISODE,))[EPISODE]
        starts = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1))
        known = {episode for *_, episode in self._found}
        for first, last in zip(starts, [*starts[1:], len(numbers)], strict=True):
            episode = int(numbers[first])
            if episode in known:
                raise DataError(
                    "The rows of an episode lie together.",
                    expected=f"{EPISODE} {episode} once",
                    got=f"{file.name}, row {first}: {EPISODE} {episode} again",
                    fix="mend the source",
                )
            known.add(episode)
            self._found.append((file, int(first), int(last), episode))


def _require_pyarrow() -> None:
    if find_spec("pyarrow") is None:
        raise ConfigError(
            "Parquet files are read by pyarrow.",
            expected="the package pyarrow",
            got="no such package here",
            fix="pip install 'trajgen[lerobot]'",
        )


def _open(path: Path) -> Any:
    """A parquet file that declares no more than it can hold."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    limit = RATIO * path.stat().st_size + SLACK
    groups = [file.metadata.row_group(n) for n in range(file.metadata.num_row_groups)]
    values = sum(group.column(n).num_values for group in groups for n in range(group.num_columns))
    if 8 * max(values, file.metadata.num_rows) > limit:
        raise ValueError(f"{path.name} declares {values:,} numbers in {path.stat().st_size:,} bytes")
    return file


def _columns(path: Path, names: tuple[str, ...]) -> dict[str, Array]:
    """Columns of a file as arrays (n,) or (n, width)."""
    file = _open(path)
    known = file.schema_arrow.names
    for name in names:
        if name not in known:
            raise absent(name, known, path.name)
    table = file.read(columns=list(names), use_threads=False)
    return {name: _array(table[name].combine_chunks(), f"{path.name}, field {name!r}") for name in names}


def _array(column: Any, where: str) -> Array:
    import pyarrow as pa

    width = 0
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type):
        if column.null_count == 0 and len(column):
            sizes = np.asarray(column.value_lengths())
            if (sizes != sizes[0]).any():
                row = int(np.flatnonzero(sizes != sizes[0])[0])
                raise DataError(
                    "A column of vectors has one width.",
                    expected=f"{sizes[0]} numbers, as in row 0",
                    got=f"{where}, row {row}: {sizes[row]}",
                    fix="mend the source",
                )
            width = int(sizes[0])
        values = column.flatten()
    else:
        values = column
    numeric = pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type)
    if not numeric or column.null_count or values.null_count:
        raise DataError(
            "Columns hold numbers in every row.",
            expected="numbers, or lists of numbers, without gaps",
            got=f"{where}: {column.type}" + (", with gaps" if numeric else ""),
            fix="name other columns: state=…, action=…, reward=…",
        )
    flat: Array = values.to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), width) if values is not column else flat
