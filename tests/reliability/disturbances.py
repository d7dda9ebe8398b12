"""What `kill_commands.py` does to a command: each function arms the process in which it is called."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

CALLS = ("replace", "rename", "fsync", "mkdir", "unlink", "rmdir")
"""Functions of `os` before and after whose calls a process is killed."""


def counting(path: Path) -> Callable[[], Any]:
    """Counts the calls of a command, for the draw of a moment."""

    def arm() -> Callable[[], None]:
        counts: Counter[str] = Counter()
        for name in CALLS:
            setattr(os, name, _counted(name, counts))
        return lambda: path.write_text(json.dumps(counts))

    return arm


def _counted(name: str, counts: Counter[str]) -> Callable[..., Any]:
    original = getattr(os, name)

    def call(*arguments: Any, **keywords: Any) -> Any:
        counts[name] += 1
        return original(*arguments, **keywords)

    return call


def killing(name: str, number: int, after: bool) -> Callable[[], None]:
    """Kills the child before or after the ``number``-th call of a function of `os`."""

    def arm() -> None:
        original, left = getattr(os, name), [number]

        def call(*arguments: Any, **keywords: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*arguments, **keywords)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(os, name, call)

    return arm


def terminated(number: int) -> Callable[[], None]:
    """Sends the child SIGTERM before the ``number``-th call of a function of `os`, and SIGKILL shortly after."""

    def arm() -> None:
        process, left = os.getpid(), [number]

        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **keywords: Any) -> Any:
                left[0] -= 1
                if left[0] == 0:
                    timer = threading.Timer(0.02 * (number % 20), os.kill, (process, signal.SIGKILL))
                    timer.daemon = True
                    timer.start()
                    os.kill(process, signal.SIGTERM)
                return original(*arguments, **keywords)

            return call

        for name in CALLS:
            setattr(os, name, wrap(getattr(os, name)))

    return arm


def short_of_memory(megabytes: int) -> Callable[[], None]:
    """Lets the child's memory grow by this much."""

    def arm() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    return arm


def jumping_clock(draw: random.Random) -> Callable[[], None]:
    """Moves the child's clock by up to a year, back and forth."""

    def arm() -> None:
        clock = time.time
        time.time = lambda: clock() + draw.uniform(-3e7, 3e7)

    return arm


def without_data(data_set: Path, number: int) -> Callable[[], None]:
    """Removes the data set of the child before its ``number``-th flush."""

    def arm() -> None:
        fsync, left = os.fsync, [number]

        def call(handle: Any) -> None:
            left[0] -= 1
            if left[0] == 0:
                shutil.rmtree(data_set)
            fsync(handle)

        os.fsync = call

    return arm
