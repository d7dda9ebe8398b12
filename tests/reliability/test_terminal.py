"""What stands in names and files of others reaches the terminal as text: no escape sequence, and no markup."""

from __future__ import annotations

import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trajgen.cli import main
from trajgen.core.errors import DataError, printable
from trajgen.core.files import file_lock, new_folder, replacing
from trajgen.core.tables import Table
from trajgen.core.terminal import Terminal

ESCAPE = "\x1b]0;title\x07\x1b[31mred"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, é 中 ½ ✓\tand\nmore", "plain, é 中 ½ ✓\tand\nmore"),
        (ESCAPE, r"\x1b]0;title\x07\x1b[31mred"),
        ("a\rb\x9bc\x7f", r"a\rb\x9bc\x7f"),
        ("exe\u202egpj", r"exe\u202egpj"),
        ("lone \udc80", r"lone \udc80"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_as_text(text: str, shown: str) -> None:
    assert printable(text) == shown
    error = str(DataError(text, got=text, expected=text, fix=text))
    assert "\x1b" not in error and shown in error
    file = io.StringIO()
    console = Terminal(file=file, width=500)
    console.print(text)
    console.print(Table((text, ""), [(text, text)], numeric=False).rich(text, text))
    assert "\x1b" not in file.getvalue() and shown.splitlines()[-1] in file.getvalue()
    file.getvalue().encode()


@pytest.mark.parametrize("text", ["a[/b]", "[red]x", "$x^{$", ":smile:", "[link=x]y[/link]"])
def test_markup_in_names_is_text(text: str) -> None:
    file = io.StringIO()
    Terminal(file=file).print(text)
    assert file.getvalue() == f"{text}\n"


def test_a_strangers_file_does_not_reach_the_terminal(
    stranger: Path, lab: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((stranger / "config.json").read_text())
    (stranger / "config.json").write_text(json.dumps({**config, "recipe": ESCAPE, ESCAPE: ESCAPE}))
    arrays: dict[str, Any] = {"observations": np.zeros((5, 2)), "actions": np.full((4, 1), 0.5), "rewards": np.zeros(4)}
    np.savez(lab / "table.npz", **arrays, **{ESCAPE: np.array("text")}, timeouts=np.zeros(4))
    for words in (["evaluate", f"run={stranger}"], ["data", "import", str(lab / "table.npz"), "id=tests/x-v0"]):
        with pytest.raises(SystemExit):
            main(words)
    printed = "".join(capfd.readouterr())
    assert r"\x1b]0;title" in printed and "\x1b" not in printed


def test_a_current_folder_that_is_gone_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(SystemExit) as ended:
        main(["train", "recipe=bc"])
    assert ended.value.code == 1 and "not there any more" in capsys.readouterr().err


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.ENOTDIR, errno.EISDIR])
def test_a_command_that_may_not_write_says_so(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = Path.open

    def refuse(path: Path, mode: str = "r", **options: Any) -> Any:
        if "r" not in mode:
            raise OSError(code, os.strerror(code), str(path))
        return opened(path, mode, **options)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SystemExit) as ended:
        main(["new", "prior", "gru"])
    error = capsys.readouterr().err
    assert ended.value.code == 1 and "gru.py" in error and os.strerror(code) in error and "fix:" in error


@pytest.mark.skipif(not Path("/proc/1").exists(), reason="of Linux")
def test_a_folder_that_cannot_be_made_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for write in (replacing, new_folder, file_lock):
        with pytest.raises(PermissionError, match="no folder can be made"), write(Path("/proc/of_trajgen/file")):
            pytest.fail("there is a folder to write into")
    for command in (["study", "axis=[action.depth=1,2]", "recipe=bc"], ["export", "run=zoo/mage-umaze"]):
        with pytest.raises(SystemExit) as ended:
            main([*command, "out=/proc/of_trajgen"])
        error = capsys.readouterr().err
        assert ended.value.code == 1 and error.startswith("Error: ") and "/proc" in error


def test_an_export_is_refused_before_programs_are_traced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("trajgen.core.files.tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("trajgen.export.package.export", lambda *_, **__: pytest.fail("programs were traced"))
    with pytest.raises(SystemExit):
        main(["export", "run=zoo/mage-umaze", f"out={tmp_path / 'out'}"])
    assert "Read-only" in capsys.readouterr().err
