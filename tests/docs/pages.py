"""The README and the pages as tests read them: blocks, commands, files, and the tables that are made from the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
COMPOSE = DOCS / "compose"
PAGES = {str(path.relative_to(ROOT)): path for path in (README, *sorted(DOCS.rglob("*.md")))}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\w+\.(?:py|yaml))\b")
REFUSED = re.compile(r"^```bash\n([^\n]*)\n```\n+```text\n(Error: .*?)^```$", re.MULTILINE | re.DOTALL)
"""A command that is refused, with what is said."""


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in a language."""
    return [code for tongue, code in FENCE.findall(page.read_text(encoding="utf-8")) if tongue == language]


def words_of(block: str) -> list[list[str]]:
    """The words after ``trajgen`` of each such command in a bash block."""
    parts = [shlex.split(part, comments=True) for line in block.splitlines() for part in line.split("&&")]
    return [words[1:] for words in parts if words and Path(words[0]).name == "trajgen"]


def commands(page: Path) -> list[list[str]]:
    """The commands of a page that are not there to be refused."""
    refused = [words for words, _ in refusals(page)]
    every = [words for block in blocks(page, "bash") for words in words_of(block)]
    return [words for words in every if words not in refused]


def refusals(page: Path) -> list[tuple[list[str], str]]:
    """The commands of a page that are refused, and what is said to each."""
    found = REFUSED.findall(page.read_text(encoding="utf-8"))
    return [(words, said) for command, said in found for words in words_of(command)]


def write_files(page: Path, folder: Path) -> None:
    """Writes the blocks of a page that begin with a file's name."""
    for code in (*blocks(page, "python"), *blocks(page, "yaml")):
        if name := FILE.match(code):
            (folder / name[1]).write_text(code, encoding="utf-8")
