"""A command that may use no more memory says so, wherever it runs out."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trajgen import cli, security


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


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the limit is Linux's")
@pytest.mark.skipif(any(Path(path).exists() for path in security.GPU_DRIVERS), reason="a GPU's driver reserves memory")
def test_a_command_may_use_the_memory_that_there_is_and_no_more() -> None:
    """The system would end the process, or another one, which then says nothing."""
    script = """
import sys
from trajgen import cli, security
used = int(open("/proc/self/status").read().split("VmData:")[1].split()[0]) * 1024
security.memory_limits = lambda: iter([used + 2**26, 2**60])
cli.app = lambda *_, **__: print(len(bytearray(int(sys.argv[1]))))
cli.main(["train"])
"""
    for size, code, stream in ((2**20, 0, "1048576"), (2**28, 1, "The memory that this process may use is full.")):
        ended = subprocess.run([sys.executable, "-c", script, str(size)], capture_output=True, text=True, timeout=60)
        assert ended.returncode == code and stream in ended.stdout + ended.stderr, ended
