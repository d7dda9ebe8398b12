"""Ranks the pages of the API below those that explain, when the site is searched."""

from __future__ import annotations

from typing import Any


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text as it is; the search plugin reads the boost from the page's metadata."""
    if page.file.src_uri.startswith("api/"):
        page.meta["search"] = {"boost": 0.1}
    return markdown
