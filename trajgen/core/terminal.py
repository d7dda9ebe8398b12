"""The terminal: what is printed is read as text, whatever stands in names and files of others."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from trajgen.core.errors import printable


class Terminal(Console):
    """A console that takes no markup and no emoji codes from what it prints, and no control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """The text as it is printed."""
        return super().render_str(printable(text), **options)
