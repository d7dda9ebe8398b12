"""The lock of a run folder: two processes never train in one."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from trajgen.core.errors import TrainingError
from trajgen.core.locks import lock

LOCK = "run.lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a run folder, so that two processes never train in it; a process that dies lets go of it.

    Raises:
        TrainingError: if another process holds it; which one is said.
    """
    path = folder / LOCK
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - it stays open as long as the lock is held
        try:
            held_here = lock(file, wait=False)
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
        if not held_here:  # a system without locks: nothing to hold
            file.close()
            path.unlink(missing_ok=True)
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
