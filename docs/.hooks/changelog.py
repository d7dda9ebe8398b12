"""Puts CHANGELOG.md into its page when the site is built, so that nobody copies it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHANGELOG = Path(__file__).resolve().parents[2] / "CHANGELOG.md"
MARK = "<!-- CHANGELOG.md -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The text of a page with the changelog where it is marked; its links into docs/ become links of the site."""
    if MARK not in markdown:
        return markdown
    text = CHANGELOG.read_text(encoding="utf-8").partition("\n")[2]  # the page has its own title
    return markdown.replace(MARK, text.replace("](docs/", "](").strip())
