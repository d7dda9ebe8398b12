"""Jobs of a study on an executor: how each is run, what it returns, and what is printed when it ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from trajgen.core.errors import TrajgenError, printable
from trajgen.core.files import make_folder
from trajgen.core.tables import duration
from trajgen.experiments.executors import JobExecutor

STOPPED = "it was stopped"


@dataclass(frozen=True)
class Job:
    """A call ``function(console, **arguments)``, which can be pickled; it returns a value and a line to print."""

    name: str
    function: Callable[..., tuple[Any, str]]
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """The value of a job, or why it failed."""

    value: Any = None
    message: str = ""
    failed: bool = False


def run_jobs(jobs: Sequence[Job], executor: JobExecutor, logs: Path) -> dict[str, Outcome]:
    """Runs jobs, prints how each ended, and returns their outcomes by name.

    Args:
        jobs: with different names.
        executor: where they run.
        logs: the folder in which each job of another process logs to ``NAME.log``.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when all running jobs have stopped.
    """
    make_folder(logs)
    futures: dict[str, Future[Any]] = {}
    stopping, count = threading.Event(), Countdown(len(jobs))
    with _sigterm_as_interrupt():
        try:
            for job in jobs:
                log = (logs / f"{job.name}.log").absolute()
                futures[job.name] = executor.submit(run_job, job, log, os.getcwd(), executor.inline)
                futures[job.name].add_done_callback(partial(_print_outcome, job.name, stopping, count))
            wait(futures.values())
        except KeyboardInterrupt:
            stopping.set()
            for future in futures.values():
                future.cancel()
            if not executor.inline:
                _print("Stopping after the next checkpoint of each cell …", sys.stderr)
            try:
                executor.interrupt()
                wait(futures.values())
            except KeyboardInterrupt:  # a second one does not wait for checkpoints
                executor.interrupt()
            raise
    return {name: _outcome(future) for name, future in futures.items()}


def _outcome(future: Future[Any]) -> Outcome:
    try:
        outcome: Outcome = future.result()
        return outcome
    except (CancelledError, KeyboardInterrupt):
        return Outcome(message=STOPPED, failed=True)
    except Exception as error:
        last = (str(error).strip() or type(error).__name__).splitlines()[-1]
        return Outcome(message=f"its process failed (out of memory?): {last}", failed=True)


class Countdown:
    """Says how many of several equally long pieces of work are done, and about how long the others take.

    Args:
        total: number of pieces.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done, self.start = total, 0, time.monotonic()

    def next(self) -> str:
        """Counts one more piece."""
        self.done += 1
        seconds_left = (time.monotonic() - self.start) / self.done * (self.total - self.done)
        return f"{self.done} of {self.total}" + (f", {duration(seconds_left)} left" if self.done < self.total else "")


def _print_outcome(name: str, stopping: threading.Event, count: Countdown, future: Future[Any]) -> None:
    if future.cancelled():
        return
    outcome = _outcome(future)
    if not outcome.failed:
        _print(f"{name}: {outcome.message}" + (f" ({count.next()})" if count.total > 1 else ""), sys.stdout)
    else:
        _print(f"{name}: {STOPPED if stopping.is_set() else f'failed: {outcome.message}'}", sys.stderr)


def _print(line: str, stream: TextIO) -> None:
    stream.write(printable(line) + "\n")  # in one piece, since futures end in several threads
    stream.flush()


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_job(job: Job, log: Path, folder: str, inline: bool) -> Outcome:
    """Runs a job in the process that the executor chose; an error becomes its outcome, with a traceback in the log."""
    from trajgen.core.terminal import Terminal

    if not inline:
        os.chdir(folder)
    with log.open("a", encoding="utf-8") as file:
        try:
            value, message = job.function(Terminal() if inline else Terminal(file=file, width=120), **job.arguments)
            return Outcome(value, message)
        except Exception as error:  # a job that fails does not stop the others
            traceback.print_exc(file=file)
            reason = str(error) if isinstance(error, TrajgenError) else f"{type(error).__name__}: {error}"
            return Outcome(message=reason, failed=True)
