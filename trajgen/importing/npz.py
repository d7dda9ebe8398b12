"""Files of numpy arrays: a folder with one ``.npz`` per episode, or one file of many episodes, as OGBench's.

In OGBench's file, as it is downloaded, the row that ``terminals`` marks (in its compact form, the one that ``valids``
does not) is the final observation of an episode that ran out of time; its action is no step. A file with
next observations or ``timeouts`` has a step in every row instead. Source: OGBench's ``load_dataset``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trajgen.core.errors import DataError
from trajgen.data.episodes import Array
from trajgen.importing.options import ImportOptions
from trajgen.importing.source import ENDS, NEXT, TERMINALS, TIMEOUTS, Arrays, matching, require_content
from trajgen.importing.tables import VALID, Table
from trajgen.security import npz_arrays, require_regular


class Archive(Mapping[str, Array]):
    """The arrays of numbers of an ``.npz`` file; ``others`` says what all else is, which is not read.

    Raises:
        ValueError and others of `npz_arrays`: if it is no such file, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        require_regular(path)
        require_content(path)
        arrays, self.others = npz_arrays(path)
        self.shapes = {name: shape for name, (shape, _) in arrays.items()}

    def __getitem__(self, name: str) -> Array:
        if name not in self.shapes:
            raise (
                TypeError(f"{name!r} holds {self.others[name]}, not numbers") if name in self.others else KeyError(name)
            )
        with np.load(self._path, allow_pickle=False) as file:
            values: Array = file[name]
        return values

    def __contains__(self, name: object) -> bool:
        return name in self.shapes or name in self.others

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def open_npz(path: Path, options: ImportOptions) -> Arrays | Table:
    """The episodes of a folder of files, in the order of their names, or of one file.

    Raises:
        DataError, ValueError and others of `Archive`: if there are none, or the file is damaged.
    """
    if path.is_dir():
        files = sorted(path.glob("*.npz"))
        return Arrays(lambda number: Archive(files[number]), [file.name for file in files], options)
    archive = Archive(path)
    cache: dict[str, Array] = {}

    def rows(name: str, first: int, last: int) -> Any:
        if name not in cache:
            cache[name] = archive[name]
        return cache[name][first:last]

    has_final_rows = bool(matching((*TERMINALS, VALID), archive)) and not matching((*NEXT, *TIMEOUTS), archive)
    if options.ends == "terminal" and has_final_rows:
        raise DataError(
            f"The marked rows of {path.name} are final observations of episodes that ran out of time.",
            expected="a table with 'timeouts' or 'next_observations'",
            fix="leave out ends=terminal",
        )
    used = [name for names in options.columns(("observations",), "actions", "rewards").values() for name in names]
    for name in {*used, *NEXT, *TERMINALS, *TIMEOUTS, *ENDS} & {*archive.others}:
        raise TypeError(f"{name!r} holds {archive.others[name]}, not numbers")
    about = f"left out, since they hold no numbers: {', '.join(archive.others)[:200]}" if archive.others else ""
    if has_final_rows and (marks := matching(TERMINALS, archive)):
        final = f"rows that {marks[0]!r} marks are final observations, not steps, as in OGBench's files"
        about = f"{about}; {final} (timeouts or next_observations make them steps)".removeprefix("; ")
    return Table(archive.shapes, rows, options, path.name, about=about, final_rows=has_final_rows)
