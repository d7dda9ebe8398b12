"""Executors: where the jobs of a study run. All have the interface of `concurrent.futures.Executor`.

`InlineExecutor` runs jobs in this process, `LokyExecutor` in processes of this machine, `SubmititExecutor` on SLURM and
`RayExecutor` on a Ray cluster. All processes need the study's folder and the data sets under the same paths.
"""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from trajgen.core.errors import ConfigError, nearest
from trajgen.core.options import value_of

EXTRAS = {"loky": ("joblib", "sweep"), "submitit": ("submitit", "sweep"), "ray": ("ray", "ray")}
"""For each executor, the package that it needs, and the extra that installs it."""
NAMES = ("inline", *EXTRAS)


class JobExecutor(Executor):
    """An executor whose running jobs can be asked to stop.

    Args:
        workers: how many jobs run at a time; on a cluster, how many trainings a search has under way.
        description: in words, for the console.
    """

    inline = False
    """Whether jobs run in this process."""

    def __init__(self, workers: int, description: str) -> None:
        self.workers, self.description = workers, description

    def interrupt(self) -> None:
        """Asks running jobs to stop as Ctrl-C does: a training ends after it has written a checkpoint."""


class InlineExecutor(JobExecutor):
    """Runs each call in this process, while it is submitted."""

    inline = True

    def __init__(self, description: str = "one at a time") -> None:
        super().__init__(1, description)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class LokyExecutor(JobExecutor):
    """Runs each call in a new process, with a CUDA context of its own; a process that dies fails its own call alone.

    Args:
        workers: processes at a time.
        threads: of each process (``OMP_NUM_THREADS``).
    """

    def __init__(self, workers: int, threads: int) -> None:
        each = "one thread" if threads == 1 else f"{threads} threads"
        super().__init__(workers, f"{workers} at a time, each on {each}")
        self.threads = threads
        self._pool = ThreadPoolExecutor(workers)
        self._interrupted = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._pool.submit(self._run, partial(fn, *args, **kwargs))

    def _run(self, call: Callable[[], Any]) -> Any:
        from joblib.externals import loky

        if self._interrupted:
            raise KeyboardInterrupt
        with loky.ProcessPoolExecutor(1, env={"OMP_NUM_THREADS": str(self.threads)}) as pool:
            future = pool.submit(_run_in_child, os.getpid(), call)
            if self._interrupted:  # while the process was started
                self.interrupt()
            return future.result()

    def interrupt(self) -> None:
        self._interrupted = True
        for process in multiprocessing.active_children():
            with suppress(ProcessLookupError):
                if process.pid is not None:
                    os.kill(process.pid, signal.SIGINT)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._pool.shutdown(wait, cancel_futures=cancel_futures)


def _run_in_child(parent: int, call: Callable[[], Any]) -> Any:
    """Runs a call in a child process, and interrupts it when the parent process has ended.

    Ctrl-C reaches all processes of a terminal's group, and a second signal ends a training without a checkpoint; so the
    child leaves the group, and gets its one signal from the parent.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    finished = threading.Event()

    def follow() -> None:
        while not finished.wait(0.5):
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGINT)
                return

    threading.Thread(target=follow, daemon=True).start()
    try:
        return call()
    finally:
        finished.set()
        if os.getppid() != parent:
            os._exit(1)  # nobody is there to take the result


def _future_of(wait_for_result: Callable[[], Any]) -> Future[Any]:
    """A future of a call that runs elsewhere; it cannot be cancelled, so that a study waits for its end."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()

    def follow() -> None:
        try:
            future.set_result(wait_for_result())
        except BaseException as error:  # whatever it is, the future passes it on
            future.set_exception(error)

    threading.Thread(target=follow, daemon=True).start()
    return future


class SubmititExecutor(JobExecutor):
    """Submits each call to SLURM.

    Args:
        workers: trainings of a search at a time.
        options: of ``submitit.AutoExecutor.update_parameters``; ``cluster=local`` runs without SLURM.
        folder: for submitit's files.
    """

    def __init__(self, workers: int, options: Mapping[str, Any], folder: Path) -> None:
        import submitit

        super().__init__(workers, "submitted to SLURM")
        parameters = dict(options)
        self._executor = submitit.AutoExecutor(folder=folder, cluster=parameters.pop("cluster", None))
        self._executor.update_parameters(**parameters)
        self._jobs: list[Any] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        job = self._executor.submit(fn, *args, **kwargs)
        self._jobs.append(job)
        return _future_of(job.result)

    def interrupt(self) -> None:
        for job in self._jobs:
            if not job.done():
                job.cancel(check=False)


class RayExecutor(JobExecutor):
    """Runs each call as a Ray task: on the cluster at ``address``, or on a Ray that it starts on this machine.

    Args:
        workers: trainings of a search at a time.
        options: ``address`` of ``ray.init``; all others of ``ray.remote``, such as num_cpus, num_gpus, resources.
    """

    def __init__(self, workers: int, options: Mapping[str, Any]) -> None:
        import ray

        address = options.get("address")
        super().__init__(workers, f"tasks of Ray at {address}" if address else "tasks of Ray on this machine")
        self._ray, self._refs, self._started = ray, list[Any](), not ray.is_initialized()
        if self._started:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        task_options = {key: value for key, value in options.items() if key != "address"}
        self._remote: Any = ray.remote(lambda call: call()).options(**task_options)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        ref = self._remote.remote(partial(fn, *args, **kwargs))
        self._refs.append(ref)
        return _future_of(partial(self._ray.get, ref))

    def interrupt(self) -> None:
        for ref in self._refs:
            self._ray.cancel(ref)  # calls the handler of SIGINT in the task's process

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if self._started:
            self._ray.shutdown()


def make_executor(
    name: str | None, workers: int | None, options: Mapping[str, Any], *, device: str, folder: Path
) -> JobExecutor:
    """The executor of a study.

    Args:
        name: one of `NAMES`; None for loky where several jobs run at a time, and inline otherwise.
        workers: jobs at a time; None for one a core (or as ``OMP_NUM_THREADS`` leaves room for), and one on a GPU.
        options: of submitit or Ray.
        device: on which the jobs run.
        folder: for the executor's own files.

    Raises:
        ConfigError: for an unknown name or option, or if the executor's package is missing.
    """
    words = " ".join(f"executor.{key}={value}" for key, value in options.items())
    check_executor(name)
    if options and name not in ("submitit", "ray"):
        raise ConfigError("Only executor=submitit and executor=ray have options.", got=words, fix="leave them out")
    if name == "inline":
        return InlineExecutor()
    if name is None or name == "loky":
        return _local_executor(name, workers, device)
    _require(name)
    try:
        if name == "submitit":
            return SubmititExecutor(workers or 1, options, folder)
        return RayExecutor(workers or 1, {**({"num_gpus": 1} if _is_gpu(device) else {}), **options})
    except (NameError, ValueError, TypeError, RuntimeError, ConnectionError) as error:
        raise ConfigError(
            f"Executor '{name}' refused its options.", got=f"{words}: {error}", fix="docs/studies.md shows some"
        ) from error


def _local_executor(name: str | None, workers: int | None, device: str) -> JobExecutor:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(limit) if limit.isdecimal() and int(limit) else None
    count = workers
    if count is None:
        count = 1 if _is_gpu(device) else max(1, cores // (threads or 1))
    if name is None and count == 1:
        return InlineExecutor()
    if name is None and workers is None and not _is_installed("loky"):
        return InlineExecutor("one at a time (pip install 'trajgen[sweep]' for several)")
    _require("loky")
    return LokyExecutor(count, threads or max(1, cores // count))


def check_executor(name: str | None) -> None:
    """Raises a `ConfigError` for an executor that there is not."""
    if name is not None and name not in NAMES:
        rule = f"There is no executor '{name}'."
        raise ConfigError(rule, expected=", ".join(NAMES), fix=f"{nearest(name, NAMES)} (submitit is for SLURM)")


def read_executor_words(words: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """Takes ``executor.KEY=VALUE`` out of the words of a command line; returns the values, and the other words.

    Raises:
        ConfigError: for a word that sets a launcher of Hydra.
    """
    options, rest = dict[str, Any](), list[str]()
    for word in words:
        key = word.partition("=")[0]
        if key.lstrip("+").startswith(("hydra/", "hydra.")):
            raise ConfigError(
                "Studies and searches run on an executor, not on a launcher of Hydra.",
                got=word,
                fix="executor=loky, or executor=submitit (SLURM) or executor=ray with options executor.KEY=VALUE",
            )
        if key.startswith("executor."):
            options[key.removeprefix("executor.")] = value_of(word)
        else:
            rest.append(word)
    return options, rest


def _is_gpu(device: str) -> bool:
    """Whether jobs run on a GPU; ``auto`` is one where this machine has one."""
    if device != "auto":
        return device.startswith("cuda")
    import torch

    return torch.cuda.is_available()


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(EXTRAS[name][0]) is not None


def _require(name: str) -> None:
    if not _is_installed(name):
        package, extra = EXTRAS[name]
        raise ConfigError(
            f"Executor '{name}' needs the package {package}.", fix=f"pip install 'trajgen[{extra}]', or executor=inline"
        )
