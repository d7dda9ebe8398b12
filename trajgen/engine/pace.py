"""Notices when steps become slow, or are about to, because the machine has other work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch

SLOWER = 3.0
"""Times as long as the fastest steps of a stage, from which steps are called slow."""
SHORTEST = 1.0
"""Seconds of steps that are compared at least."""


class Pace:
    """Compares the steps between two lines of the log with the fastest ones of the stage, and says once what helps.

    Args:
        report: is told, once in a training.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self.report = report
        self._has_reported = False
        self.begin(0)

    def begin(self, step: int) -> None:
        """A stage begins, with its steps from ``step`` on."""
        self.fastest = float("inf")  # seconds a step
        self.resume(step)

    def resume(self, step: int) -> None:
        """Steps go on from ``step``."""
        self._step, self._time = step, time.perf_counter()

    def pause(self, step: int) -> None:
        """Steps were taken up to ``step``; the device has finished them."""
        seconds, steps = time.perf_counter() - self._time, step - self._step
        if not steps:
            return
        if seconds / steps > SLOWER * self.fastest and seconds > SHORTEST and not self._has_reported:
            self.report(f"Steps take {seconds / steps / self.fastest:.0f} times as long as before; {_load()}.{_help()}")
            self._has_reported = True
        self.fastest = min(self.fastest, seconds / steps)


def busy_machine() -> str | None:
    """What helps on a machine that is busy before a training on the CPU has begun; None where nothing does."""
    load, cores = _load_average(), os.cpu_count() or 1  # both are the machine's, whatever this process may use of it
    return f"Other programs keep this machine busy: {_load()}.{_help()}" if load > cores and _help() else None


def _load_average() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _load() -> str:
    return f"its load is {_load_average():.1f}, with {os.cpu_count()} cores"


def _help() -> str:
    """Threads of one operation wait for the slowest of them, which waits for a core."""
    threads = torch.get_num_threads()
    return (
        f" OMP_NUM_THREADS=1 is often faster then than {threads} threads, which wait for each other."
        if threads > 1
        else ""
    )
