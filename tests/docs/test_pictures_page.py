"""The commands of the page on pictures, given to a toy run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pages import DOCS, commands

from trajgen import cli
from trajgen.engine.loggers import PACKAGES
from trajgen.viz.plot import PICTURES

PAGE = DOCS / "pictures.md"
WRITES = {"plot": ".png", "video": ".gif", "report": ".html"}
FEW = {"plot": ["device=cpu", "episodes=2"], "video": ["device=cpu"], "report": []}
"""Added to the commands, so that they take seconds."""


@pytest.mark.parametrize("words", [words for words in commands(PAGE) if words[0] in WRITES], ids=" ".join)
def test_commands_run(words: list[str], folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    named = {word.removeprefix("run=") for word in words if word.removeprefix("run=").startswith("runs/")}
    for name in named:  # a copy, since the pictures are written into it
        shutil.copytree(run, folder / name)
    before = {*folder.rglob("*")}
    cli.main([*words, *FEW[words[0]]])
    written = {path.suffix for path in {*folder.rglob("*")} - before if path.is_file()}
    format = next((word.removeprefix("format=") for word in words if word.startswith("format=")), None)
    assert written == {f".{format}" if format else WRITES[words[0]]}


def test_the_page_names_every_picture_command_and_logger() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in PICTURES:
        assert f"\n- `{name}`" in text
    for name in PACKAGES:
        assert f"engine.log=[{name}]" in text
    assert {words[0] for words in commands(PAGE)} >= {*WRITES}
