"""A box for cases: a process of its own, in which a case may neither hang, nor take memory, nor end the process."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from trajgen.core.errors import TrajgenError

SECONDS = 10.0
"""Of work after which a case hangs; of waiting, `PATIENCE` times as many, since the machine may be busy."""
PATIENCE = 6
MEMORY = 2 * 2**30
"""Bytes beyond those that the process had before the first case."""
LONGEST = 10_000
"""Letters of a refusal that a person may still read."""
Case = tuple[str, int]


@dataclass
class Outcomes:
    """How cases ended."""

    refused: int = 0
    worked: int = 0
    defects: dict[Case, str] = field(default_factory=dict)
    peak: int = 0
    """Bytes that the process grew by, at most."""

    def __str__(self) -> str:
        reports = [f"{kind}, seed {seed}:\n{what}" for (kind, seed), what in self.defects.items()]
        return "\n".join([f"{self.refused} refused, {self.worked} worked, {len(self.defects)} defects", *reports])


def play(cases: Iterable[Case], do: Callable[[str, int], None]) -> Outcomes:
    """Plays cases in processes of their own, each of which goes on until a case ends it.

    Args:
        cases: kind and seed.
        do: reads a spoilt file; a `TrajgenError` is a refusal, any other exception a defect.
    """
    waiting, outcomes = list(cases), Outcomes()
    while waiting:
        done = _play_some(waiting, do, outcomes)
        waiting = waiting[done:]
    return outcomes


def _play_some(cases: list[Case], do: Callable[[str, int], None], outcomes: Outcomes) -> int:
    """Plays cases in one process until it ends, and returns how many have been tried."""
    context = multiprocessing.get_context("fork")
    near, far = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(far, cases, do), daemon=True)
    process.start()
    far.close()
    tried = 0
    try:
        while tried < len(cases):
            if not _answers(near, int(process.pid or 0)):
                outcomes.defects[cases[tried]] = f"it hangs: no end within {SECONDS:.0f} s"
                return tried + 1
            try:
                kind, what, peak = near.recv()
            except EOFError:
                process.join()
                outcomes.defects[cases[tried]] = f"it ended the process: exit code {process.exitcode}"
                return tried + 1
            outcomes.peak = max(outcomes.peak, peak)
            if kind == "defect":
                outcomes.defects[cases[tried]] = what
            else:
                setattr(outcomes, kind, getattr(outcomes, kind) + 1)
            tried += 1
        return tried
    finally:
        process.kill()
        process.join()
        near.close()


def _answers(pipe: Connection, process: int) -> bool:
    """Whether a case ends before it hangs."""
    begun, worked = time.monotonic(), _worked(process)
    while not pipe.poll(0.5):
        if _worked(process) - worked > SECONDS or time.monotonic() - begun > PATIENCE * SECONDS:
            return False
    return True


def _worked(process: int) -> float:
    """Seconds of the processor that a process has had."""
    with open(f"/proc/{process}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _child(pipe: Connection, cases: list[Case], do: Callable[[str, int], None]) -> None:
    with open("/proc/self/statm") as file:
        before = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (before + MEMORY, before + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    start = _resident()
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)  # libraries write to it as they like
    warnings.simplefilter("ignore")
    for kind, seed in cases:
        try:
            do(kind, seed)
        except TrajgenError as error:
            length = len(str(error))
            ended = ("refused", "") if length < LONGEST else ("defect", f"a refusal of {length} letters")
        except BaseException:
            ended = ("defect", traceback.format_exc(limit=-12))
        else:
            ended = ("worked", "")
        pipe.send((*ended, max(0, _resident() - start)))
    pipe.close()
    os._exit(0)


def _resident() -> int:
    """The most bytes that this process ever had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
