"""The README and the pages as tests read them: blocks, commands, files, and the tables that are made from the code."""

from __future__ import annotations

import itertools
import re
import runpy
import shlex
from pathlib import Path

import pytest

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


NOT_RUN = {
    "python3 -m venv": "installs an environment",
    "pip install": "installs packages",
    "source .venv/bin/activate": "changes the shell",
    ".venv/bin/pip install": "installs packages",
    ".venv/bin/pytest": "the tests themselves",
    "TRAJGEN_FUZZ_CASES=": "takes minutes; tests run fewer cases",
    "TRAJGEN_KILLS=": "takes an hour; a test runs fewer kills",
    "TRAJGEN_ACTS=": "takes minutes; a test runs fewer acts",
    ".venv/bin/ruff": "continuous integration runs it",
    ".venv/bin/mypy": "continuous integration runs it",
    ".ci/run": "runs all of these",
    "torchrun": "`tests/engine/test_distributed.py` trains with two processes",
    "trajgen evaluate run=zoo/": "takes minutes; `tests/experiments/test_zoo.py` plays a short episode",
    "trajgen hub": "needs a network; `tests/experiments/test_hub.py` tries it on loopback",
    "trajgen data get": "needs a network; `tests/data` tries it without",
}
"""How commands begin that no test runs as they stand, and why."""
RUN_ELSEWHERE = {
    ".venv/bin/mkdocs build --strict": "test_docs.py builds the site",
    "python tests/docs/tables.py": "test_compose.py compares what it would write",
    "python tests/docs/path_figure.py": "test_path_figure.py compares what it would draw",
}
"""Commands of other programs that tests run, and where."""


def shell_lines(page: Path) -> list[str]:
    """The commands of a page's bash blocks, whatever program they call."""
    parts = [part.strip() for block in blocks(page, "bash") for line in block.splitlines() for part in line.split("&&")]
    return [part for part in parts if part and not part.startswith("#")]


def words_of(block: str) -> list[list[str]]:
    """The words after ``trajgen``, or ``python -m trajgen``, of each such command in a bash block."""
    parts = [shlex.split(part, comments=True) for line in block.splitlines() for part in line.split("&&")]
    commands = [words[1:] for words in parts if words and Path(words[0]).name == "trajgen"]
    return commands + [words[words.index("trajgen") + 1 :] for words in parts if ["-m", "trajgen"] in pairs(words)]


def pairs(words: list[str]) -> list[list[str]]:
    """Each word with the one after it."""
    return [list(pair) for pair in itertools.pairwise(words)]


def commands(page: Path) -> list[list[str]]:
    """The commands of a page that are not there to be refused."""
    refused = [words for words, _ in refusals(page)]
    called = [words for block in blocks(page, "bash") for words in words_of(block)]
    return [words for words in called if words not in refused]


def refusals(page: Path) -> list[tuple[list[str], str]]:
    """The commands of a page that are refused, and what is said to each."""
    refused = REFUSED.findall(page.read_text(encoding="utf-8"))
    return [(words, message) for command, message in refused for words in words_of(command)]


def write_files(page: Path, folder: Path) -> None:
    """Writes the blocks of a page that begin with a file's name."""
    for code in (*blocks(page, "python"), *blocks(page, "yaml")):
        if name := FILE.match(code):
            (folder / name[1]).write_text(code, encoding="utf-8")


def run_python(page: str, folder: Path) -> int:
    """Runs the Python blocks of a page in the current folder, in order, and returns how many came to their end.

    A block that names its file is written and imported. Data sets lie in ``datasets`` of the folder.
    """
    write_files(PAGES[page], folder)
    code = blocks(PAGES[page], "python")
    lines = ["blocks_run = 0"]
    for part in code:
        lines += [f"import {name[1][:-3]}" if (name := FILE.match(part)) else part, "blocks_run += 1"]
    script = "\n".join(lines)
    (folder / "page.py").write_text(script, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder / "datasets"))
        blocks_run: int = runpy.run_path(str(folder / "page.py"), run_name="__main__")["blocks_run"]
    return blocks_run
