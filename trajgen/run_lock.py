"""The lock of a run folder: two processes never train in one."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from trajgen.core.errors import TrainingError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

LOCK = "run.lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a run folder, so that two processes never train in it; a process that dies lets go of it.

    Raises:
        TrainingError: if another process holds it; which one is said.
    """
    if fcntl is None:
        yield
        return
    path = folder / LOCK
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - it stays open as long as the lock is held
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            held = file.read(200).strip() or "another process"
            file.close()
            raise TrainingError(
                "One process at a time trains in a run folder.",
                expected=f"{folder} free",
                got=f"held by {held}",
                fix="wait for it or end it, or run_dir=ANOTHER",
            ) from None
        except OSError:  # a file system without locks: nothing to hold
            file.close()
            yield
            return
        with suppress(FileNotFoundError):
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                break
        file.close()  # its last holder has just removed it
    try:
        _say_holder(file)
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _say_holder(file: IO[str]) -> None:
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
