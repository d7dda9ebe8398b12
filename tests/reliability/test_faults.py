"""What goes wrong around a training: the disk, the folder, the data, the device, another process. Nothing is lost."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import points
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from toys import FIRST, Numbers, Toy, metrics, training

from trajgen import experiments
from trajgen.core.errors import CheckpointError, DataError, TrainingError, TrajgenError
from trajgen.data import fingerprint as room
from trajgen.data.fingerprint import fingerprint, require_same
from trajgen.engine import storage
from trajgen.engine.metrics import MetricsLog
from trajgen.experiments import run_folder
from trajgen.experiments.run_lock import LOCK, locked
from trajgen.security import allocating_at_most


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file grows beyond ``size`` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def same(one: Path, two: Path) -> bool:
    a, b = (load_file(folder / "checkpoints" / "final.safetensors") for folder in (one, two))
    return metrics(one) == metrics(two) and a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- the disk -------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    training(tmp_path / "whole").run()
    size, limits = 1500, ExitStack()
    full = training(tmp_path / "full", Numbers(FIRST + 6, lambda: limits.enter_context(largest_file(size))))
    with pytest.raises(TrainingError) as caught, limits:
        full.run()
    kept = full.checkpoints.on_the_way()
    assert [path.name for path in full.checkpoints.folder.iterdir()] == [path.name for path in kept]  # nothing half
    assert str(kept[-1]) in str(caught.value) and "File too large" in str(caught.value)
    assert "resume=true" in str(caught.value.fix)
    assert kept[-1].stat().st_size > size  # so the next one met the limit too
    training(tmp_path / "full").run(resume=True)
    assert same(tmp_path / "whole", tmp_path / "full")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("where", ["metrics", "fsync", "replace"])
def test_whatever_the_disk_refuses(where: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training(tmp_path / "whole").run()
    left = [4]
    place: Any = MetricsLog if where == "metrics" else storage.os
    name = "write" if where == "metrics" else where
    own = getattr(place, name)

    def refuse(*given: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(code, os.strerror(code))
        return own(*given)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, refuse)
        with pytest.raises(TrainingError, match=os.strerror(code)):
            training(tmp_path / "run").run()
    assert not list((tmp_path / "run").rglob(".*"))
    training(tmp_path / "run").run(resume=True)
    assert same(tmp_path / "whole", tmp_path / "run")


def test_errors_of_another_kind_stay_what_they_are(tmp_path: Path) -> None:
    def missing() -> None:
        raise FileNotFoundError(errno.ENOENT, "no such thing", "of the source")

    with pytest.raises(FileNotFoundError):
        training(tmp_path, Numbers(2, missing)).run()


def test_a_folder_that_vanishes_is_said(tmp_path: Path) -> None:
    place = tmp_path / "run"
    with pytest.raises(TrainingError, match="writes into its folder"):
        training(place, Numbers(3, lambda: shutil.rmtree(place))).run()


def test_a_folder_that_cannot_be_written_to_is_refused_before_data_are_read(
    train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("data were read")

    monkeypatch.setattr(experiments.training, "load_episodes", never)
    refused = [OSError(code, os.strerror(code)) for code in (errno.EROFS, errno.EACCES)]
    for error in refused:

        def refuse(error: OSError = error, **_: Any) -> Any:
            raise error

        monkeypatch.setattr(run_folder.tempfile, "TemporaryFile", refuse)
        with pytest.raises(TrainingError, match=os.strerror(error.errno or 0)) as caught:
            train("run_dir=there/it/is")
        assert "run_dir=ANOTHER" in str(caught.value)
    assert not Path("there").exists()


@pytest.mark.skipif(not Path("/proc/1").exists(), reason="a folder that nobody can write to is needed")
def test_a_real_folder_that_nobody_can_write_to(train: Callable[..., Path]) -> None:
    with pytest.raises(TrainingError, match=r"/proc: "):
        train("run_dir=/proc/of_trajgen")


def test_a_file_in_the_place_of_the_folder(train: Callable[..., Path]) -> None:
    Path("taken").write_text("")
    with pytest.raises(TrainingError, match="Not a directory"):
        train("run_dir=taken/run")


# --- the data -------------------------------------------------------------------------------------------------------


def stopped(train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in the folder 'run' that was stopped in its third stage."""
    from trajgen.data.windows import Windows
    from trajgen.engine.loop import Interrupted

    draw = Windows.batch

    def batch(self: Windows, step: int, size: int, rank: int = 0) -> Any:
        if step == 9:  # the normalizer is fitted on those up to 7
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(self, step, size, rank)

    with monkeypatch.context() as patch:
        patch.setattr(Windows, "batch", batch)
        with pytest.raises(Interrupted):
            train("run_dir=run")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "other states, actions, rewards, goals, achieved"),
        ({"episodes": 3}, "episodes: 2 then, 3 now"),
        ({"steps": 301}, "steps: 600 then, 602 now"),
    ],
)
def test_other_data_are_refused_on_resume(
    changes: dict[str, int], said: str, train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(train, monkeypatch)
    before = {path: path.read_bytes() for path in Path("run").rglob("*.*")}
    points.record(**changes)
    with pytest.raises(DataError) as caught:
        train("run_dir=run", "resume=true")
    assert said in str(caught.value) and caught.value.fix
    assert before == {path: path.read_bytes() for path in Path("run").rglob("*.*")}  # nothing was touched
    points.record()
    train("run_dir=run", "resume=true")
    assert (Path("run") / "checkpoints" / "final.safetensors").exists()


def test_data_that_are_gone_are_said_on_resume(train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(train, monkeypatch)
    shutil.rmtree("sets")
    with pytest.raises(DataError, match="must be on this machine"):
        train("run_dir=run", "resume=true")


def test_data_that_are_taken_away_do_not_disturb_a_training_under_way(
    train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from trajgen.data.windows import Windows

    draw = Windows.batch

    def batch(self: Windows, step: int, size: int, rank: int = 0) -> Any:
        if step == 9:
            shutil.rmtree("sets", ignore_errors=True)
        return draw(self, step, size, rank)

    one = train("run_dir=one")
    with monkeypatch.context() as patch:
        patch.setattr(Windows, "batch", batch)
        two = train("run_dir=two")
    assert not Path("sets").exists() and same(one, two)


def test_a_run_from_before_fingerprints_goes_on(train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(train, monkeypatch)
    (Path("run") / "data.json").unlink()
    train("run_dir=run", "resume=true")
    assert json.loads((Path("run") / "data.json").read_text())["id"] == points.ID


def episodes(rows: int) -> Any:
    """Stands for episodes of ``rows`` rows."""
    draw = np.random.default_rng(0)
    arrays = {name: draw.normal(size=(rows, 4)).astype(np.float32) for name in ("states", "actions", "goals")}
    arrays |= {name: np.arange(4) for name in ("starts", "lengths", "terminated")}
    return SimpleNamespace(
        name="points", steps=rows, rewards=draw.normal(size=rows), achieved=None, **arrays, __len__=None
    )


class Sized(SimpleNamespace):
    def __len__(self) -> int:
        return 4


def test_one_changed_number_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Sized(**vars(episodes(1000)))
    before = fingerprint(made)
    require_same(json.loads(json.dumps(before)), fingerprint(made))
    made.states[777, 2] += 1e-3
    with pytest.raises(DataError, match="other states"):
        require_same(before, fingerprint(made))
    with pytest.raises(DataError, match="other"):
        require_same({**before, "arrays": "none"}, before)
    monkeypatch.setattr(room, "SAMPLED", 4096)
    before = fingerprint(made)
    made.states[-1, -1] += 1e-3  # of a large array, blocks are looked at, the last one among them
    with pytest.raises(DataError, match="other states"):
        require_same(before, fingerprint(made))


def test_a_fingerprint_is_quick() -> None:
    """A large array is sampled, so that more rows take hardly longer."""
    made = Sized(**vars(episodes(1_000_000)))
    began = time.process_time()
    fingerprint(made)
    assert time.process_time() - began < 0.3


# --- the device -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [2, FIRST + 6])
def test_memory_that_runs_out_names_what_to_lower(step: int, tmp_path: Path) -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore about it")

    with pytest.raises(TrainingError) as caught:
        training(tmp_path, Numbers(step, fail)).run()
    stage, size, at = ("one", 4, step) if step < FIRST else ("two", 2, step - FIRST)
    said = str(caught.value)
    assert f"stage '{stage}', step {at + 1}" in said and "20.00 GiB" in said and "more about it" not in said
    assert f"engine.stages.{stage}.batch_size={size}" in said and "last good checkpoint" in said
    assert (step < FIRST) == ("none yet" in said)


def test_memory_of_the_host_that_runs_out_is_said_too(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="batch_size=4"):
        training(tmp_path, Numbers(1, lambda: torch.empty(2**55))).run()


def test_other_runtime_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="size of tensor"):
        training(tmp_path, Numbers(1, lambda: torch.zeros(2) + torch.zeros(3))).run()


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.nn.Linear(10**6, 10**6),
        lambda: torch.arange(10**10),
        lambda: torch.ones(10**6, 1) * torch.ones(1, 10**6),
        lambda: torch.ones(1).repeat(10**11),
        lambda: [torch.nn.Linear(1, 1) for _ in range(100)],
    ],
    ids=["a layer", "a range", "a product", "a repetition", "many"],
)
def test_allocations_are_refused_before_they_are_made(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="far larger"), allocating_at_most(2**24, 100):
        make()


# --- another process ------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from trajgen.experiments.run_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_held_folder_is_refused_and_a_dead_holder_lets_go(train: Callable[..., Path], lab: Path) -> None:
    place = lab / "run"
    place.mkdir()
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(place)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        for word in ("resume=false", "resume=true"):
            with pytest.raises(TrainingError) as caught:
                train("run_dir=run", word)
            assert f"held by process {holder.pid} on " in str(caught.value) and "run_dir=ANOTHER" in str(caught.value)
        assert [path.name for path in place.iterdir()] == [LOCK]
    finally:
        holder.kill()
        holder.wait()
    train("run_dir=run")  # the lock file of the dead is no obstacle
    assert not (place / LOCK).exists()


def test_a_lock_is_one_process_s(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(TrainingError, match=f"process {os.getpid()} "), locked(tmp_path):
            pass
        assert (tmp_path / LOCK).exists()
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_taken_while_data_were_read_is_refused(
    train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = experiments.training.load_episodes

    def overtaken(*given: Any) -> Any:
        Path("run").mkdir()
        (Path("run") / "config.json").write_text("{}")
        return read(*given)

    monkeypatch.setattr(experiments.training, "load_episodes", overtaken)
    with pytest.raises(TrajgenError):
        train("run_dir=run")
    assert (Path("run") / "config.json").read_text() == "{}"


# --- what a checkpoint holds of an optimizer ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer.9.exp_avg": torch.zeros(4)},
        {"optimizer.x.exp_avg": torch.zeros(4)},
        {"optimizer.0": torch.zeros(4)},
        {"optimizer.0.exp_avg": torch.zeros(3, 4)},
        {"optimizer." + "9" * 5000 + ".a": torch.zeros(1)},
        {"ema.one.weight": torch.zeros(1, 1)},
        {"ema.more": torch.zeros(1, 1)},
    ],
    ids=["a parameter too many", "no number", "no name", "a shape", "a huge number", "an average", "more averages"],
)
def test_what_no_optimiser_keeps_is_refused(change: dict[str, torch.Tensor], tmp_path: Path) -> None:
    setup = training(tmp_path, Numbers(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(Exception, match="is whole"):
        setup.run()
    (path,) = setup.checkpoints.on_the_way()
    tensors, position = storage.read_tensors(path, torch.device("cpu"))
    storage.write_tensors(path, tensors | change, position)
    with pytest.raises(CheckpointError, match="belongs to another"):
        training(tmp_path, model=Toy(3)).run(resume=True)


@pytest.mark.parametrize("position", [storage.Position(7, 0), storage.Position(0, 99)])
def test_a_position_beyond_the_training_is_refused(position: storage.Position, tmp_path: Path) -> None:
    setup = training(tmp_path)
    tensors = {f"model.{k}": v for k, v in setup.model.state_dict().items()}
    setup.checkpoints.save(position, tensors)
    with pytest.raises(CheckpointError, match="belongs to another training"):
        setup.run(resume=True)
    assert not setup.checkpoints.finished


def test_a_resumed_training_says_which_checkpoint_was_damaged(tmp_path: Path) -> None:
    training(tmp_path / "whole").run()
    setup, said = (
        training(tmp_path / "run", Numbers(FIRST + 7, lambda: os.kill(os.getpid(), signal.SIGTERM))),
        io.StringIO(),
    )
    with pytest.raises(Exception, match="is whole"):
        setup.run()
    newest = setup.checkpoints.newest()
    newest.write_bytes(newest.read_bytes()[:-5])
    again = training(tmp_path / "run")
    again.console = Console(file=said, width=200)
    again.run(resume=True)
    assert "going on from" in said.getvalue() and newest.name in said.getvalue()
    assert same(tmp_path / "whole", tmp_path / "run")
