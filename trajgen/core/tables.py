"""Tables: the same rows for the terminal, for Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trajgen.core.errors import printable

if TYPE_CHECKING:
    from rich.table import Table as RichTable
    from rich.text import Text

NOTHING = "–"


def number(value: Any, digits: int = 1) -> str:
    """``value`` with so many decimals, or a dash if there is none."""
    return NOTHING if value is None else f"{value:,.{digits}f}"


def return_digits(means: Iterable[float | None]) -> int:
    """The decimals of returns with these means: more where they are small, as counts of successes and of tasks are."""
    return 2 if max((abs(mean) for mean in means if mean is not None), default=10) < 10 else 1


def percent(value: float | None) -> str:
    """A share as "50%", or a dash if there is none."""
    return NOTHING if value is None else f"{value:.0%}"


def share(part: int, total: int) -> str:
    """A part of a number in words: "41 of 1,000 (4.1 %)"."""
    return f"{part:,} of {total:,} ({100 * part / total:.1f} %)"


def interval(ends: Sequence[float | None] | None, digits: int = 1) -> str:
    """An interval as "[low, high]", or a dash if there is none."""
    return f"[{', '.join(number(end, digits) for end in ends)}]" if ends and None not in ends else NOTHING


def duration(seconds: float) -> str:
    """A time in words, to two digits: "about 4 minutes"."""
    minutes = seconds / 60
    if minutes < 1:
        return "less than a minute"
    if minutes < 90:
        return f"about {minutes:.0f} minute{'s' * (round(minutes) > 1)}"
    return f"about {minutes / 60:.{1 if minutes < 600 else 0}f} hours"


@dataclass(frozen=True)
class Table:
    """Rows of cells under the heads of their columns; no cell is read as markup.

    Args:
        columns: their heads; empty ones for a table without a head.
        rows: as many cells each; a cell that is a ``rich.text.Text`` keeps its style in the terminal.
        numeric: whether all columns but the first hold numbers, which are aligned to the right.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Text]]
    numeric: bool = True

    @classmethod
    def of(cls, columns: Mapping[str, Sequence[str]]) -> Table:
        """The table of these columns by their heads."""
        return cls(list(columns), list(zip(*columns.values(), strict=True)))

    def filled(self) -> Table:
        """The table without the columns in which all rows have nothing."""
        filled = [i for i in range(len(self.columns)) if any(str(row[i]) not in ("", NOTHING) for row in self.rows)]
        return Table(
            [self.columns[i] for i in filled], [[row[i] for i in filled] for row in self.rows], numeric=self.numeric
        )

    def rich(self, title: str = "", caption: str = "", *, edges: bool = True) -> RichTable:
        """The table for a terminal; without edges it has a line below its head alone."""
        from rich.box import HEAVY_HEAD, SIMPLE_HEAD
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(
            title=Text(printable(title)) if title else None,
            title_justify="left",
            caption=Text(printable(caption)) if caption else None,
            caption_justify="left",
            show_header=any(self.columns),
            show_edge=edges,
            box=HEAVY_HEAD if edges else SIMPLE_HEAD,
            padding=(0, 1) if edges else (0, 1, 0, 0),
        )
        for index, column in enumerate(self.columns):
            cells, is_number = [str(row[index]) for row in self.rows], self.numeric and index > 0
            widest = max(map(len, cells), default=0)
            word = max((len(word) for cell in cells for word in cell.split()), default=0)
            head = max(map(len, printable(column).split()), default=0)
            table.add_column(
                Text(printable(column)),
                justify="right" if is_number else "left",
                overflow="fold",
                min_width=word if is_number else None,  # the name is broken, not a number
                max_width=max(widest, head) if is_number else None,  # its head is broken between words
            )
        for row in self.rows:
            table.add_row(*(Text(printable(cell)) if isinstance(cell, str) else cell for cell in row))
        return table

    def markdown(self) -> str:
        """The table in Markdown, without a line break at its end."""
        rule = ["---", *["---:" if self.numeric else "---"] * (len(self.columns) - 1)]
        rows = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in self.rows]
        return "\n".join(f"| {' | '.join(row)} |" for row in [list(self.columns), rule, *rows])

    def csv(self) -> str:
        """The table as comma-separated values."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *([str(c) for c in row] for row in self.rows)])
        return text.getvalue()
