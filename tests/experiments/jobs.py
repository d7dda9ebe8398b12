"""Jobs for the tests of executors, which other processes import."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def add(console: Any, *, one: int, two: int) -> tuple[int, str]:
    console.print("adding")
    return one + two, "added"


def environment(console: Any) -> tuple[tuple[int, str | None], str]:
    return (os.getpid(), os.environ.get("OMP_NUM_THREADS")), "read"


def fail(console: Any) -> tuple[None, str]:
    raise RuntimeError("It does not work.")


def die(console: Any) -> tuple[None, str]:
    os._exit(9)


def train(console: Any, *, folder: Path) -> tuple[None, str]:
    """Runs until it is interrupted, and then takes a while to write a checkpoint, as a training does."""
    received: list[int] = []

    def receive(number: int, _: object) -> None:  # as the engine, whose import takes seconds
        if received:
            raise KeyboardInterrupt
        received.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, receive)
    (folder / "begun").touch()
    while not received:
        time.sleep(0.05)
    time.sleep(0.3)
    (folder / "checkpoint").touch()
    raise KeyboardInterrupt


def main(folder: Path) -> None:
    """Trains three jobs, two at a time."""
    from trajgen.experiments.executors import LokyExecutor
    from trajgen.experiments.jobs import Job, run_jobs

    jobs = []
    for name in ("one", "two", "three"):
        (folder / name).mkdir()
        jobs.append(Job(name, train, {"folder": folder / name}))
    with LokyExecutor(2, 1) as executor:
        try:
            run_jobs(jobs, executor, folder / "logs")
        except KeyboardInterrupt:
            print("interrupted", flush=True)


if __name__ == "__main__":
    import jobs

    jobs.main(Path(sys.argv[1]))  # of the module, which the other processes can import
