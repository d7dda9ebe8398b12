"""Two processes that want one folder or one data set: the second is refused, or waits."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from trajgen import experiments
from trajgen.config import compose
from trajgen.core.errors import TrainingError, TrajgenError
from trajgen.core.files import file_lock
from trajgen.engine.loop import Training
from trajgen.envs import makers
from trajgen.experiments import run_folder

Train = Callable[..., Path]

HOLD = """
import sys, time
from pathlib import Path
from trajgen.core.files import file_lock
with file_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_held_folder_is_refused_and_a_dead_holder_lets_go(train: Train, lab: Path) -> None:
    path = lab / "run" / run_folder.LOCK
    path.parent.mkdir()
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        for word in ("resume=false", "resume=true"):
            with pytest.raises(TrainingError) as caught:
                train("run_dir=run", word)
            assert f"held by process {holder.pid} on " in str(caught.value) and "run_dir=ANOTHER" in str(caught.value)
        assert sorted(p.name for p in path.parent.iterdir()) == [path.name, f"{path.name}.holder"]
    finally:
        holder.kill()
        holder.wait()
    train("run_dir=run")  # the lock file of the dead is no obstacle
    assert not path.exists()


def test_a_training_holds_its_folder(train: Train, lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Training.run

    def train_twice(self: Training, **options: Any) -> None:
        with pytest.raises(TrainingError, match=f"held by process {os.getpid()} on"):
            train("run_dir=run", "resume=true")
        run(self, **options)

    monkeypatch.setattr(Training, "run", train_twice)
    train("run_dir=run")


def test_a_lock_is_one_holder_s(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for _ in range(2):
        with file_lock(path):
            with pytest.raises(TrainingError, match=f"process {os.getpid()} "), file_lock(path):
                pytest.fail("it was taken twice")
            assert path.exists()
        assert list(tmp_path.iterdir()) == []


def test_a_lock_that_is_waited_for_goes_from_one_process_to_the_next(tmp_path: Path) -> None:
    """Four processes count to 20 each in one file, by reading and writing."""
    script = """
import sys
from pathlib import Path
from trajgen.core.files import file_lock
count = Path(sys.argv[1]) / "count"
for _ in range(20):
    with file_lock(count.with_name(".lock"), wait=True):
        count.write_text(str(int(count.read_text()) + 1))
"""
    (tmp_path / "count").write_text("0")
    workers = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(4)]
    assert [worker.wait(60) for worker in workers] == [0] * 4
    assert (tmp_path / "count").read_text() == "80"


def test_a_folder_taken_while_data_were_read_is_refused(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    read = experiments.training.load_episodes

    def overtaken(*args: Any) -> Any:
        Path("run").mkdir()
        (Path("run") / "config.json").write_text("{}")
        return read(*args)

    monkeypatch.setattr(experiments.training, "load_episodes", overtaken)
    with pytest.raises(TrajgenError):
        train("run_dir=run")
    assert (Path("run") / "config.json").read_text() == "{}"


def test_of_two_trainings_that_need_a_set_one_makes_it(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def make(name: str) -> None:
        calls.append(name)
        time.sleep(0.2)
        (lab / "sets" / "trajgen" / name).with_name("umaze-v0").mkdir(parents=True)

    monkeypatch.setattr(makers, "make", make)
    monkeypatch.setattr("trajgen.data.minari.load", lambda id, options: id)
    config = compose(["recipe=bc", "data=pointmaze/umaze", "device=cpu"])
    with ThreadPoolExecutor() as threads:
        loads = [threads.submit(experiments.load_episodes, config, Console(quiet=True)) for _ in range(2)]
        assert [load.result() for load in loads] == ["trajgen/pointmaze/umaze-v0"] * 2
    assert calls == ["pointmaze/umaze"]
