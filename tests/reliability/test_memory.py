"""A command that may use no more memory says so, wherever it runs out."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from trajgen import cli


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ImportError("libtorch.so: failed to map segment from shared object"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes"),
        RuntimeError("can't start new thread"),
        SystemError("error return without exception set"),
    ],
)
def test_it_is_said_and_what_to_do(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit):
        cli.main(["train"])
    assert "memory" in (printed := capsys.readouterr().err) and "ulimit -v" in printed and "Traceback" not in printed
    with pytest.raises(type(error)):
        cli.main(["train", "--debug"])


def test_other_errors_are_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(RuntimeError, match="a fault"):
        cli.main(["train"])
