"""The terminal: what is printed is read as text, whatever stands in names and files of others; time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import accumulate
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from trajgen.core.errors import printable

PAUSE = 20.0
"""Least seconds between two lines about what goes on, where they are not on a terminal."""


class Terminal(Console):
    """A console that takes no markup and no emoji codes from what it prints, and no control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """The text as it is printed."""
        return super().render_str(printable(text), **options)


@contextmanager
def progress(
    console: Console, name: str, total: int, done: int = 0, *, pause: float = PAUSE
) -> Iterator[Callable[[int, Sequence[str]], None]]:
    """Yields a function that shows how many of ``total`` are done, and texts: on a bar on a terminal, else ten times.

    Name, bar, number and time left fit on 60 columns with the first text; more texts are shown where there is room.
    The last texts stay until there are others.

    Args:
        console: where it is shown.
        name: of what is done.
        total: how many there are to do.
        done: how many were done before.
        pause: the least seconds between two lines, where it is not a terminal.
    """
    free = console.width - len(f"{name} {total}/{total} 00:00 left   ")
    bar_width = max(4, min(console.width // 6, free - len("total 0.000")))
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("left", style="progress.remaining"),
        TextColumn("{task.fields[texts]}"),
    )
    room = free - bar_width
    tenths = 10 * done // total
    start = printed = time.monotonic()
    reached = done
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=total, completed=done, texts="")

        def show(number: int, texts: Sequence[str] = ()) -> None:
            nonlocal tenths, printed, reached
            reached = number
            bar.update(task, completed=number)
            if not texts:
                return
            bar.update(task, texts=_fitting(texts, room))
            now = time.monotonic()
            if not console.is_terminal and 10 * number // total > tenths and now - printed >= pause:
                printed = now
                seconds_left = (now - start) / (number - done) * (total - number)
                line = f"{name} {number}/{total}, {timedelta(seconds=round(seconds_left))} left"
                console.print(_fitting([line, *texts], console.width), highlight=False, markup=False)
            tenths = 10 * number // total

        yield show
        bar.update(task, total=max(1, reached))  # episodes may end before their last step


def _fitting(texts: Sequence[str], room: int) -> str:
    """The first texts, beside each other, as many as there is room for; at least one."""
    lengths = accumulate(len(text) + 2 for text in texts)
    return "  ".join(text for text, end in zip(texts, lengths, strict=True) if end - 2 <= room) or texts[0]
