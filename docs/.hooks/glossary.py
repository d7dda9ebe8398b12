"""Explains the terms of concepts.md where a page first uses one: its meaning is a hover or a tap away."""

from __future__ import annotations

import html
import re
from functools import cache
from pathlib import Path
from typing import Any

CONCEPTS = Path(__file__).resolve().parents[1] / "concepts.md"
UNMARKED = ("concepts.md", "changelog.md", "errors.md", "options.md", "api/")
"""Pages that explain the terms themselves, or are looked things up in."""
SKIPPED = {"a", "abbr", "button", "code", "figcaption", "h1", "h2", "h3", "h4", "pre", "script", "style", "svg", "th"}
FORMULA = ("\\(", "\\[")
"""How the text of a formula begins."""
TAG = re.compile(r"(<[^>]*>)")


@cache
def terms() -> dict[str, str]:
    """The terms of the glossary and their meanings, longer ones first."""
    table = CONCEPTS.read_text(encoding="utf-8").partition("\n## Terms\n")[2].partition("\n## ")[0]
    meanings: dict[str, str] = {}
    for term, meaning in re.findall(r"^- \*\*(.+?)\*\*: (.+)$", table, re.MULTILINE):
        names, parts = term.split(", "), meaning.split("; ")
        meanings |= dict(zip(names, parts if len(names) == len(parts) else [meaning] * len(names), strict=True))
    return dict(sorted(meanings.items(), key=lambda item: -len(item[0])))


def mark(content: str) -> str:
    """HTML in which the first use of each term, outside of code, links and headings, has its meaning as a title."""
    left = terms()
    open_tags: list[str] = []
    pieces = TAG.split(content)
    for index, piece in enumerate(pieces):
        if match := re.match(r"</?(\w+)", piece):
            if piece.startswith("</"):
                while open_tags and open_tags.pop() != match[1]:
                    pass
            elif not piece.endswith("/>") and match[1] not in ("br", "img", "hr", "input", "source"):
                open_tags.append(match[1])
        elif left and piece.strip() and not piece.startswith(FORMULA) and not SKIPPED & {*open_tags}:
            pattern = "|".join(re.escape(term) for term in left)
            used: set[str] = set()

            def explained(match: re.Match[str], used: set[str] = used, left: dict[str, str] = left) -> str:
                term = match[1].lower()
                if term in used:
                    return match[0]
                used.add(term)
                return f'<abbr title="{html.escape(left[term])}">{match[0]}</abbr>'

            pieces[index] = re.sub(rf"(?<![\w-])({pattern})s?(?![\w-])", explained, piece, flags=re.IGNORECASE)
            left = {term: meaning for term, meaning in left.items() if term not in used}
    return "".join(pieces)


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """The content of a page with its terms explained."""
    return content if page.file.src_uri.startswith(UNMARKED) else mark(content)
