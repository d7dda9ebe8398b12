"""Executors: jobs return values, fail alone, and stop after a checkpoint, wherever they run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch

from trajgen.core.errors import ConfigError
from trajgen.experiments import executors
from trajgen.experiments.executors import InlineExecutor, JobExecutor, LokyExecutor, make_executor, read_executor_words
from trajgen.experiments.jobs import Job, run_jobs

OPTIONS = {"submitit": {"cluster": "local", "timeout_min": 5}, "ray": {"num_cpus": 0.5}}


@pytest.fixture(scope="module", params=["inline", "loky", "submitit", "ray"])
def executor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobExecutor]:
    """Each executor, whose processes can import the jobs."""
    if request.param in OPTIONS:
        pytest.importorskip(request.param, reason="of an extra")
    options = OPTIONS.get(request.param, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(jobs.__file__).parent), prepend=os.pathsep)
        with make_executor(request.param, 2, options, device="cpu", folder=tmp_path_factory.mktemp("jobs")) as built:
            yield built


def test_jobs_return_values_and_fail_alone(executor: JobExecutor, tmp_path: Path) -> None:
    add = [Job(f"add-{n}", jobs.add, {"one": n, "two": 2}) for n in range(2)]
    outcomes = run_jobs([Job("fail", jobs.fail, {}), *add], executor, tmp_path / "logs")
    assert list(outcomes) == ["fail", "add-0", "add-1"]
    assert [outcomes[f"add-{n}"].value for n in range(2)] == [2, 3]
    assert outcomes["fail"].failed and outcomes["fail"].message == "RuntimeError: It does not work."
    assert "Traceback" in (tmp_path / "logs" / "fail.log").read_text()
    if not executor.inline:
        assert "adding" in (tmp_path / "logs" / "add-1.log").read_text()
        (process,) = run_jobs([Job("environment", jobs.environment, {})], executor, tmp_path / "logs").values()
        assert process.value[0] != os.getpid()


def test_a_process_that_dies_fails_its_own_job(tmp_path: Path) -> None:
    with LokyExecutor(2, threads=3) as executor:
        others = [Job(f"other-{n}", jobs.environment, {}) for n in range(3)]
        outcomes = run_jobs([Job("die", jobs.die, {}), *others], executor, tmp_path)
    assert outcomes["die"].failed and "out of memory?" in outcomes["die"].message
    values = [outcomes[job.name].value for job in others]
    assert {threads for _, threads in values} == {"3"} and len({pid for pid, _ in values}) == 3


def wait_for(*paths: Path) -> None:
    deadline = time.monotonic() + 180
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, paths
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_running_jobs_write_a_checkpoint_when_their_study_is_stopped(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, jobs.__file__, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(tmp_path / "one" / "begun", tmp_path / "two" / "begun")
        process.send_signal(number)
        wait_for(tmp_path / "one" / "checkpoint", tmp_path / "two" / "checkpoint")
        out, err = process.communicate(timeout=180)
    finally:
        process.kill()
    assert not (tmp_path / "three" / "begun").exists()
    if number != signal.SIGKILL:  # of which the jobs learn by themselves
        assert out == "interrupted\n" and process.returncode == 0
        stopping, *lines = err.splitlines()
        assert stopping == "Stopping after the next checkpoint of each cell …"
        assert sorted(lines) == ["one: it was stopped", "two: it was stopped"]


@pytest.mark.parametrize("executor", ["submitit", "ray"], indirect=True)
def test_a_job_of_a_cluster_writes_a_checkpoint_when_it_is_interrupted(
    executor: JobExecutor, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        pytest.skip("the tests were started in the background, where a shell switches Ctrl-C off")
    monkeypatch.setattr("submitit.Job._results_timeout_s", 1)  # it waits so long for the result of a job that is gone

    def interrupt() -> None:
        wait_for(tmp_path / "begun")
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run_jobs([Job("train", jobs.train, {"folder": tmp_path})], executor, tmp_path / "logs")
    assert (tmp_path / "checkpoint").exists()
    assert capsys.readouterr().err.endswith("train: it was stopped\n")


@pytest.mark.parametrize(
    ("name", "workers", "device", "cores", "threads", "expected"),
    [
        (None, None, "cpu", 8, None, "8 at a time, each on one thread"),
        (None, 2, "cpu", 8, None, "2 at a time, each on 4 threads"),
        (None, None, "cpu", 8, "4", "2 at a time, each on 4 threads"),
        (None, None, "cpu", 1, None, "one at a time"),
        (None, None, "cuda", 8, None, "one at a time"),
        (None, 3, "cuda", 6, None, "3 at a time, each on 2 threads"),
        ("loky", 1, "cpu", 8, "1", "1 at a time, each on one thread"),
        ("inline", 4, "cpu", 8, None, "one at a time"),
    ],
)
def test_the_default_fits_the_machine(
    name: str | None,
    workers: int | None,
    device: str,
    cores: int,
    threads: str | None,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert make_executor(name, workers, {}, device=device, folder=tmp_path).description == expected


@pytest.mark.parametrize(
    ("device", "options", "expected"),
    [
        ("cpu", {}, {}),
        ("cuda", {}, {"num_gpus": 1}),
        ("auto", {}, {"num_gpus": 1}),
        ("auto", {"num_gpus": 0.5}, {"num_gpus": 0.5}),
    ],
)
def test_a_task_of_ray_has_a_gpu_where_its_device_is_one(
    device: str, options: dict[str, Any], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    passed: list[Any] = []
    monkeypatch.setattr(executors, "RayExecutor", lambda workers, options: passed.append(options))
    monkeypatch.setattr(executors, "_require", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    make_executor("ray", None, options, device=device, folder=tmp_path)
    assert passed == [expected]


def test_without_its_package_an_executor_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    for name in ("loky", "submitit", "ray"):
        with pytest.raises(ConfigError, match=r"pip install 'trajgen\["):
            make_executor(name, 2, {}, device="cpu", folder=tmp_path)
    default = make_executor(None, None, {}, device="cpu", folder=tmp_path)
    assert isinstance(default, InlineExecutor) and "trajgen[sweep]" in default.description


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: read_executor_words(["hydra/launcher=joblib"]), "executor=loky"),
        (lambda: read_executor_words(["hydra.launcher.n_jobs=2"]), "executor=loky"),
        (lambda: make_executor("lokky", 1, {}, device="cpu", folder=Path()), "did you mean 'loky'"),
        (lambda: make_executor("loky", 1, {"timeout": 1}, device="cpu", folder=Path()), "executor.timeout=1"),
        (lambda: make_executor("submitit", 1, {"minutes": 1}, device="cpu", folder=Path("x")), "executor.minutes=1"),
    ],
)
def test_refusals_name_the_word(call: Callable[[], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


def test_words_of_the_command_line() -> None:
    words = ["a=1", "executor.num_cpus=2", "executor.address=auto", "b=2"]
    assert read_executor_words(words) == ({"num_cpus": 2, "address": "auto"}, ["a=1", "b=2"])
