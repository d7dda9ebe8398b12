"""What goes wrong around a training: the disk, the folder, the data, the device. Nothing is lost."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import points
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from toys import FIRST, Numbers, Toy, metrics, term, training

from trajgen import experiments, load_policy
from trajgen.core import files
from trajgen.core.errors import CheckpointError, ConfigError, DataError, TrainingError
from trajgen.core.types import Space
from trajgen.data import fingerprint as room
from trajgen.data.fingerprint import fingerprint, require_same
from trajgen.data.windows import Windows
from trajgen.engine import storage
from trajgen.engine.loggers import MetricsLog
from trajgen.engine.loop import StoppedError
from trajgen.security import allocating_at_most

Train = Callable[..., Path]


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


@contextmanager
def before_batch(monkeypatch: pytest.MonkeyPatch, number: int, call: Callable[[], Any]) -> Iterator[None]:
    """Calls something before a batch of a run is drawn; the normalizer is fitted on those up to 7."""
    draw = Windows.batch

    def batch(self: Windows, step: int, size: int, rank: int = 0) -> Any:
        if step == number:
            call()
        return draw(self, step, size, rank)

    with monkeypatch.context() as patch:
        patch.setattr(Windows, "batch", batch)
        yield


# --- the disk -------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    training(tmp_path / "whole").run()
    size, limits = 1000, ExitStack()
    full = training(tmp_path / "full", Numbers(FIRST + 6, lambda: limits.enter_context(largest_file(size))))
    with pytest.raises(TrainingError) as caught, limits:
        full.run()
    checkpoints = full.checkpoints.intermediate()
    assert [path.name for path in full.checkpoints.folder.iterdir()] == [
        path.name for path in checkpoints
    ]  # nothing half
    assert str(checkpoints[-1]) in str(caught.value) and "File too large" in str(caught.value)
    assert "resume=true" in str(caught.value.fix)
    assert checkpoints[-1].stat().st_size > size  # so the next one met the limit too
    training(tmp_path / "full").run(resume=True)
    assert same(tmp_path / "whole", tmp_path / "full")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("where", ["metrics", "fsync", "replace"])
def test_whatever_the_disk_refuses(where: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training(tmp_path / "whole").run()
    left = [4]
    owner, name = (MetricsLog, "write") if where == "metrics" else (files.os, where)
    call = getattr(owner, name)

    def refuse(*args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(code, os.strerror(code))
        return call(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, refuse)
        with pytest.raises(TrainingError, match=os.strerror(code)):
            training(tmp_path / "run").run()
    assert not list((tmp_path / "run").rglob(".*"))
    training(tmp_path / "run").run(resume=True)
    assert same(tmp_path / "whole", tmp_path / "run")


def test_the_file_that_a_full_disk_does_not_take_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File too large") as caught, largest_file(10):
        files.write_file(tmp_path / "page.html", "a" * 100)
    assert caught.value.filename == str(tmp_path / "page.html") and list(tmp_path.iterdir()) == []


def test_a_folder_that_vanishes_is_said_and_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(TrainingError, match="writes into its folder"):
        training(folder, Numbers(3, lambda: shutil.rmtree(folder))).run()

    def missing() -> None:
        raise FileNotFoundError(errno.ENOENT, "no such thing", "of the source")

    with pytest.raises(FileNotFoundError):
        training(tmp_path, Numbers(2, missing)).run()
    with pytest.raises(RuntimeError, match="size of tensor"):
        training(tmp_path, Numbers(1, lambda: torch.zeros(2) + torch.zeros(3))).run()


def test_a_folder_that_cannot_be_written_to_is_refused_before_data_are_read(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments.training, "load_episodes", lambda *_: pytest.fail("data were read"))
    for code in (errno.EROFS, errno.EACCES):

        def refuse(code: int = code, **_: Any) -> Any:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(files.tempfile, "TemporaryFile", refuse)
            with pytest.raises(TrainingError, match=os.strerror(code)) as caught:
                train("run_dir=there/it/is")
        assert "run_dir=ANOTHER" in str(caught.value)
    assert not Path("there").exists()
    Path("taken").write_text("")
    with pytest.raises(TrainingError, match="Not a directory"):
        train("run_dir=taken/run")
    if Path("/proc/1").exists():  # a real folder that nobody can write to
        with pytest.raises(TrainingError, match=r"/proc: "):
            train("run_dir=/proc/of_trajgen")


# --- the data -------------------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(train: Train, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run in the folder 'run' that was stopped in its third stage."""
    with before_batch(monkeypatch, 9, term), pytest.raises(StoppedError):
        train("run_dir=run")
    return Path("run")


def test_other_data_are_refused_on_resume(train: Train, stopped: Path) -> None:
    before = {path: path.read_bytes() for path in stopped.rglob("*.*")}
    for changes, difference in (
        ({"seed": 1}, "other states, actions, rewards, goals, achieved"),
        ({"episodes": 3}, "episodes: 2 then, 3 now"),
        ({"steps": 301}, "steps: 600 then, 602 now"),
    ):
        points.record(**changes)
        with pytest.raises(DataError) as caught:
            train("run_dir=run", "resume=true")
        assert difference in str(caught.value) and caught.value.fix
    assert before == {path: path.read_bytes() for path in stopped.rglob("*.*")}  # nothing was touched
    points.record()
    train("run_dir=run", "resume=true")
    assert (stopped / "checkpoints" / "final.safetensors").exists()


def test_a_folder_whose_name_is_no_utf8_is_refused_before_the_training(train: Train, stranger: Path) -> None:
    folder = os.fsdecode(b"run-\xff")
    with pytest.raises(ConfigError, match="UTF-8"):
        train(f"run_dir='{folder}'")
    stranger.rename(folder)
    with pytest.raises(ConfigError, match="another name"):
        load_policy(folder, device="cpu")


def test_a_text_with_a_lone_surrogate_is_written(tmp_path: Path) -> None:
    files.write_file(tmp_path / "page.html", "a\udcff")
    assert (tmp_path / "page.html").read_text() == "a\\udcff"


def test_missing_data_are_said_on_resume_and_a_missing_fingerprint_is_made(train: Train, stopped: Path) -> None:
    Path("sets").rename("elsewhere")
    with pytest.raises(DataError, match="must be on this machine"):
        train("run_dir=run", "resume=true")
    Path("elsewhere").rename("sets")
    (stopped / "data.json").unlink()  # a run from before fingerprints
    train("run_dir=run", "resume=true")
    assert json.loads((stopped / "data.json").read_text())["id"] == points.ID


def test_a_run_that_goes_on_with_other_versions_says_so(train: Train, stopped: Path) -> None:
    path, output = stopped / "versions.json", io.StringIO()
    files.write_json(path, {**json.loads(path.read_text()), "torch": "1.0", "flax": "2.0"})
    train("run_dir=run", "resume=true", console=Console(file=output, width=200))
    assert f"last bits may differ: torch 1.0 then, {version('torch')} now." in output.getvalue()
    output = io.StringIO()
    train("run_dir=run", "resume=true", console=Console(file=output, width=200))
    assert "other versions" not in output.getvalue()


def test_data_that_are_taken_away_do_not_disturb_a_training_under_way(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = train("run_dir=one")
    with before_batch(monkeypatch, 9, lambda: shutil.rmtree("sets", ignore_errors=True)):
        two = train("run_dir=two")
    assert not Path("sets").exists() and same(one, two)


class Episodes(SimpleNamespace):
    """A fake of the class with so many rows."""

    def __init__(self, rows: int) -> None:
        draw = np.random.default_rng(0)
        arrays = {name: draw.normal(size=(rows, 4)).astype(np.float32) for name in ("states", "actions", "goals")}
        arrays |= {name: np.arange(4) for name in ("starts", "lengths", "terminated")}
        space = Space(state_dim=4, action_dim=4, goal_dim=4)
        super().__init__(
            name="points", steps=rows, rewards=draw.normal(size=rows), achieved=None, images=None, space=space, **arrays
        )

    def __len__(self) -> int:
        return 4


def test_one_changed_number_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    episodes: Any = Episodes(1000)
    before = fingerprint(episodes)
    require_same(json.loads(json.dumps(before)), fingerprint(episodes))
    episodes.states[777, 2] += 1e-3
    with pytest.raises(DataError, match="other states"):
        require_same(before, fingerprint(episodes))
    with pytest.raises(DataError, match="other"):
        require_same({**before, "arrays": "none"}, before)
    monkeypatch.setattr(room, "SAMPLED", 4096)
    before = fingerprint(episodes)
    episodes.states[-1, -1] += 1e-3  # of a large array, blocks are looked at, the last one among them
    with pytest.raises(DataError, match="other states"):
        require_same(before, fingerprint(episodes))


# --- the device -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [2, FIRST + 6])
def test_memory_that_runs_out_names_what_to_lower(step: int, tmp_path: Path) -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore about it")

    with pytest.raises(TrainingError) as caught:
        training(tmp_path, Numbers(step, fail)).run()
    stage, size, at = ("one", 4, step) if step < FIRST else ("two", 2, step - FIRST)
    message = str(caught.value)
    assert f"stage '{stage}', step {at + 1}" in message and "20.00 GiB" in message and "more about it" not in message
    assert f"engine.stages.{stage}.batch_size={size}" in message and "last good checkpoint" in message
    assert (step < FIRST) == ("none yet" in message)
    with pytest.raises(TrainingError, match=f"batch_size={4}"):  # the host's memory
        training(tmp_path, Numbers(1, lambda: torch.empty(2**55))).run()


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.nn.Linear(10**6, 10**6),
        lambda: torch.arange(10**10),
        lambda: torch.ones(10**6, 1) * torch.ones(1, 10**6),
        lambda: torch.ones(1).repeat(10**11),
        lambda: torch.eye(4000),
        lambda: torch.diag(torch.ones(4000)),
        lambda: torch.arange(0, 1, 1e-10),
        lambda: torch.nn.functional.interpolate(torch.ones(1, 1, 2), scale_factor=1e9),
        lambda: [torch.nn.Linear(1, 1) for _ in range(100)],
    ],
    ids=["a layer", "a range", "a product", "a repetition", "a matrix", "a diagonal", "small steps", "a scale", "many"],
)
def test_allocations_are_refused_before_they_are_made(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="far larger"), allocating_at_most(2**24, 100):
        make()


# --- checkpoints of another training --------------------------------------------------------------------------------


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
def test_the_state_of_another_optimizer_is_refused(change: dict[str, torch.Tensor], tmp_path: Path) -> None:
    setup = training(tmp_path, Numbers(3, term))
    with pytest.raises(StoppedError):
        setup.run()
    (path,) = setup.checkpoints.intermediate()
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
    setup, output = training(tmp_path / "run", Numbers(FIRST + 7, term)), io.StringIO()
    with pytest.raises(StoppedError):
        setup.run()
    newest = setup.checkpoints.newest()
    newest.write_bytes(newest.read_bytes()[:-5])
    again = training(tmp_path / "run")
    again.console = Console(file=output, width=200)
    again.run(resume=True)
    assert "going on from" in output.getvalue() and newest.name in output.getvalue()
    assert same(tmp_path / "whole", tmp_path / "run")


# --- an evaluation ---------------------------------------------------------------------------------------------------


def test_an_evaluation_that_cannot_write_says_so_before_it_plays(
    stranger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    played = []
    monkeypatch.setattr("trajgen.evaluation.evaluate.evaluate", lambda *_, **__: played.append(1))
    monkeypatch.setattr("trajgen.core.files.tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("trajgen.envs.replay.env_of_run", lambda *_: None)
    with pytest.raises(TrainingError, match=r"Read-only[\s\S]*out=ANOTHER"):
        experiments.evaluate(stranger, Console(quiet=True), device="cpu")
    assert not played
