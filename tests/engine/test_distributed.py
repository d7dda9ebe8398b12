"""Several processes train as one does: the same batches, losses and codes; they stop together, and one of them writes.

Run as a script, this file trains in forks of one process with all imports, as ``torchrun`` would start them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import toys
from rich.console import Console
from torch import Tensor

from trajgen import cli, experiments
from trajgen.config import compose
from trajgen.core.errors import TrainingError
from trajgen.core.types import Batch
from trajgen.data.windows import Windows
from trajgen.engine import distributed
from trajgen.engine.distributed import destroy_process_group, init_process_group, is_main_process, rank
from trajgen.engine.launch import PeerError
from trajgen.engine.loop import StoppedError, Training
from trajgen.engine.options import EngineOptions, StageOptions
from trajgen.engine.storage import read_tensors
from trajgen.experiments.preparation import prepare
from trajgen.tokenizers.quantizers import EMAVectorQuantizer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
STEPS = {"tokenizer": 15, "return_target": 2, "prior": 5}
STOPPED = 12
"""The step at whose batch something happens to a training."""
BATCH_SIZE = 8
"""So small that codes fall out of use."""
TOLERANCE = 1e-5
CPU = torch.device("cpu")
COMMAND = ["train", "recipe=mage", *tiny.TRAIN, "run_dir=command", "resume=true"]


# --- in the children ------------------------------------------------------------------------------------------------


class Uneven(tiny.RandomSource):
    """Random batches whose windows end after 1, 2, 3, … points; at one step something happens on one rank."""

    def __init__(self, at: int | None = None, on: int = 0, happens: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.at, self.on, self.happens = at, on, happens

    def batch(self, step: int, size: int, rank_: int = 0) -> Batch:
        if step == self.at and rank() == self.on:
            self.happens()
        batch = super().batch(step, size)
        masks = {}
        for name in ("mask", "chunk_mask"):
            length = getattr(batch, name).shape[1]
            masks[name] = torch.arange(length) <= torch.arange(size).unsqueeze(1) % length
        return replace(batch, **masks)


def planner(name: str) -> Any:
    """A composition that draws no random numbers in a step, but for those of its codes."""
    still: dict[str, Any] = {"conditioner": {"dropout": 0.0}, "planner": {"condition_weight": 0.0, "end_to_end": False}}
    if name == "mage":
        return tiny.planner(return_target="quantile", tokenizer={"dead_code_threshold": 3.0}, **still)
    if name == "condition":  # L_cond without a draw: continuous codes
        options = {"conditioner": {"dropout": 0.0}, "planner": {"condition_batch": 4}}
        return tiny.planner(tokenizer="identity", schedule="unit", sampler="greedy", **options)
    return tiny.planner(tokenizer={"quantizer": name}, **still)


def train(
    folder: Path,
    name: str,
    *,
    resume: bool = False,
    source: Any = None,
    parts: str = "mage",
    steps: dict[str, int] = STEPS,
    accumulate: int = 1,
) -> dict[str, Any]:
    """Trains, and returns digests of what this process has in the end; rank 1 has a folder that it must not touch."""
    revived, replace_dead_codes = [0], EMAVectorQuantizer._replace_dead_codes

    def count(self: EMAVectorQuantizer, x: Tensor) -> None:
        revived[0] += int((self.cluster_size < self.dead_code_threshold).sum())
        replace_dead_codes(self, x)

    EMAVectorQuantizer._replace_dead_codes = count
    folder = folder / name if is_main_process() else folder / name / "elsewhere"
    if is_main_process():
        folder.mkdir(exist_ok=True)
    model = planner(parts)
    stages = {
        s.name: StageOptions(steps=steps.get(s.name, 1), batch_size=BATCH_SIZE, ema_decay=0.9) for s in model.stages()
    }
    options = EngineOptions(stages=stages, precision="float32", log_every=5, checkpoint_every=10, accumulate=accumulate)
    source = source or Uneven()
    Training(model, model.stages(), source, options, folder, 7, CPU, Console(quiet=True)).run(resume=resume)
    state = model.state_dict()
    digests = {k: sha256(v.numpy().tobytes()).hexdigest() for k, v in state.items()}
    return {"weights": digests, "revived": revived[0]}


def train_toy(folder: Path, name: str, val_source: Any = None, **options: Any) -> None:
    folder = folder / name if is_main_process() else folder / "other"
    source = toys.Numbers(**options) if rank() == 1 else None
    training = toys.training(folder, source, checkpoint_every=1)
    training.val_source = val_source
    training.run()


class Rising(toys.Numbers):
    """Held-out batches on which the loss of the second process rises, as rounding might have it."""

    def batch(self, step: int, size: int, rank_: int = 0) -> toys.Rows:
        rows = super().batch(step, size)
        return toys.Rows(rows.values * (1 + rank() * len(self.requests)))


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def command(folder: Path, name: str, killed: int | None = None) -> None:
    """The command itself; the second process is killed in the middle of the first stage, or one before any stage."""
    os.chdir(folder)
    draw = Windows.batch  # of which the normalizer is fitted on the first 8
    if os.environ["RANK"] == str(killed):
        experiments.training.load_episodes = die
    elif os.environ["RANK"] == "1":
        Windows.batch = lambda self, step, *rest: die() if step == 9 else draw(self, step, *rest)
    cli.main(COMMAND)


def start(world_size: int, call: Callable[..., Any], folder: Path, name: str, **options: Any) -> dict[str, Any]:
    """Calls a function in processes that train together; returns the exit code and the result of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for number in range(world_size):
        child = os.fork()
        if not child:
            os.environ |= {"RANK": str(number), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(number)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os._exit(work(call, folder, name, number, options))
        children.append(child)
    began = time.monotonic()
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    paths = [folder / f"{name}.{number}.json" for number in range(world_size)]
    results = [json.loads(path.read_text()) if path.exists() else None for path in paths]
    return {"codes": codes, "results": results, "seconds": time.monotonic() - began}


def work(call: Callable[..., Any], folder: Path, name: str, number: int, options: dict[str, Any]) -> int:
    try:
        if call is not command:  # which does so itself
            init_process_group("cpu")
        result, status = call(folder, name, **options), 0
        destroy_process_group()
    except StoppedError as error:
        result, status = str(error), 130
    except (PeerError, TrainingError) as error:
        result, status = f"{type(error).__name__}: {error}", 1
    except SystemExit as ended:
        result, status = None, int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
        return 99
    (folder / f"{name}.{number}.json").write_text(json.dumps(result))
    return status


def main(folder: Path) -> None:
    """All trainings that the tests look at; what is imported and computed here first, no child does again."""
    torch.set_num_threads(1)
    prepare(compose(COMMAND[1:]), CPU, Console(quiet=True))
    for stage in planner("mage").stages():  # without gradients, whose threads a fork would lose
        with torch.no_grad():
            stage.loss(Uneven().batch(0, BATCH_SIZE))
    ended = {}

    def run(name: str, world_size: int, call: Callable[..., Any] = train, **options: Any) -> None:
        ended[name] = start(world_size, call, folder, name, **options)

    def copy(begun: str, name: str) -> str:
        shutil.copytree(folder / begun, folder / name)
        return name

    run("command", 2, command)
    for killed in (0, 1):
        run(f"without {killed}", 2, command, killed=killed)
    run("one", 1)
    run("two", 2)
    run("begun by one", 1, source=Uneven(STOPPED, 0, toys.term))
    run("begun by two", 2, source=Uneven(STOPPED, 1, toys.term))
    run("killed", 2, source=Uneven(STOPPED, 1, die))
    run(copy("begun by one", "one then two"), 2, resume=True)
    run(copy("begun by two", "two then one"), 1, resume=True)
    run(copy("begun by one", "in micro-batches"), 1, resume=True, accumulate=4)
    run(copy("begun by one", "in micro-batches by two"), 2, resume=True, accumulate=2)
    run("killed", 1, resume=True)
    for name in ("lfq", "simvq"):
        for world_size in (1, 2):
            run(f"{name} by {world_size}", world_size, parts=name, steps={"tokenizer": 6})
    for world_size, accumulate in ((1, 1), (2, 1), (1, 2)):
        options = {"parts": "condition", "steps": {"prior": 8}, "accumulate": accumulate}
        run(f"condition by {world_size}, {accumulate}", world_size, **options)
    run("poisoned", 2, train_toy, poison=toys.FIRST + 4)
    run("validated", 2, train_toy, val_source=Rising())
    run("toy killed", 2, train_toy, at=toys.FIRST + 3, happens=die)
    (folder / "ended.json").write_text(json.dumps(ended))


# --- what they left -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tiny_place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all trainings."""
    folder = tmp_path_factory.mktemp("many")
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    words = [sys.executable, __file__, str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "output").write_text(done.stdout + done.stderr)
    return folder


@pytest.fixture(scope="module")
def ended(folder: Path) -> dict[str, Any]:
    """How each training ended."""
    return dict(json.loads((folder / "ended.json").read_text()))


def differences(one: Path, two: Path, after: int = 0) -> Iterator[tuple[str, float]]:
    """The differences of the figures of two trainings, line by line; without the clock, and figures of one share."""
    left, right = toys.metrics(one), toys.metrics(two)
    assert [(a["stage"], a["step"]) for a in left] == [(b["stage"], b["step"]) for b in right]
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"stage"}:
            if (a["stage_index"] or a["step"] > after) and not key.startswith("gradient_norm/"):
                yield f"{a['stage']} {a['step']} {key}", abs(a[key] - b[key]) / max(1.0, abs(a[key]))


def check_close(one: Path, two: Path, gradients: float = 10 * TOLERANCE) -> None:
    far = [(n, d) for n, d in differences(one, two) if d > (gradients if "gradient" in n else TOLERANCE)]
    assert not far


def test_losses_usage_and_weights_are_those_of_one_process(folder: Path, ended: dict[str, Any]) -> None:
    """Over 15 steps of a codebook that starts, moves and revives, and over the stages after it."""
    assert ended["one"]["codes"] == [0] and ended["two"]["codes"] == [0, 0]
    check_close(folder / "one", folder / "two")
    lines = toys.metrics(folder / "one")
    assert [line["step"] for line in lines if line["stage"] == "tokenizer"] == [5, 10, 15]
    assert {"reconstruction", "usage/scale_1", "perplexity/all"} <= lines[0].keys()
    first, second = ended["two"]["results"]
    assert first["weights"] == second["weights"]
    assert ended["one"]["results"][0]["revived"] == first["revived"] > 5 and second["revived"] == 0  # rank 0 draws
    assert sorted(p.name for p in (folder / "two").iterdir()) == ["checkpoints", "metrics.jsonl"]  # and writes, alone
    assert [p.name for p in (folder / "two" / "checkpoints").iterdir()] == ["final.safetensors"]
    assert not list(folder.rglob("elsewhere")) and not list((folder / "other").iterdir())


@pytest.mark.parametrize("name", ["lfq", "simvq"])
def test_other_codes_too(name: str, folder: Path, ended: dict[str, Any]) -> None:
    first, second = ended[f"{name} by 2"]["results"]
    assert first == {**second, "revived": first["revived"]}
    # LFQ's entropies, at a temperature of 0.01, magnify rounding: its gradients are equal in the first step alone.
    check_close(folder / f"{name} by 1", folder / f"{name} by 2", gradients=1e-2 if name == "lfq" else 10 * TOLERANCE)


@pytest.mark.parametrize("split", ["2, 1", "1, 2"])
def test_the_first_windows_of_a_batch_are_split(split: str, folder: Path) -> None:
    """L_cond is computed on the first 4 of 8 windows: on the first 2 of each micro-batch."""
    check_close(folder / "condition by 1, 1", folder / f"condition by {split}")
    assert sum("condition" in line for line in toys.metrics(folder / "condition by 1, 1")) == 2


@pytest.mark.parametrize("name", ["one then two", "two then one", "in micro-batches", "in micro-batches by two"])
def test_another_number_of_micro_batches_goes_on_in_the_same_order(
    name: str, folder: Path, ended: dict[str, Any]
) -> None:
    assert set(ended[name]["codes"]) == {0}
    check_close(folder / "one", folder / name)
    if name == "in micro-batches":  # moving averages decay once per batch, however it is split
        assert max(d for key, d in differences(folder / "one", folder / name, STOPPED) if "usage" in key) == 0.0


def test_a_signal_to_one_process_stops_all_at_the_same_step(folder: Path, ended: dict[str, Any]) -> None:
    run = ended["begun by two"]
    assert run["codes"] == [130, 130] and run["results"][0] == run["results"][1]
    assert f"after step {STOPPED + 2}" in run["results"][0]  # all hear of it one step later
    newest = sorted((folder / "begun by two" / "checkpoints").iterdir())[-1]
    assert newest.name == f"stage0-step{STOPPED + 2:07d}.safetensors" and str(newest) in run["results"][0]


def test_a_loss_that_is_not_finite_on_one_process_stops_all(folder: Path, ended: dict[str, Any]) -> None:
    first, second = ended["poisoned"]["results"]
    assert ended["poisoned"]["codes"] == [1, 1]
    assert first.startswith("TrainingError") and "not finite" in first and "stage 'two'" in first
    assert second.startswith("PeerError")
    newest = sorted((folder / "poisoned" / "checkpoints").iterdir())[-1]
    tensors, position = read_tensors(newest, CPU)
    assert (position.stage, position.step) == (1, 4)
    assert all(v.isfinite().all() for v in tensors.values() if v.is_floating_point())


def test_the_best_weights_are_those_of_the_first_process(folder: Path, ended: dict[str, Any]) -> None:
    assert ended["validated"]["codes"] == [0, 0]
    names = {path.name for path in (folder / "validated" / "checkpoints").iterdir()}
    assert names == {"best.safetensors", "final.safetensors"}


def test_counters_are_summed_and_what_counts_nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Module()
    model.register_buffer("counts", torch.ones(2), persistent=False)
    model.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1), persistent=False)
    mask = model.mask.clone()
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda increase: increase.mul_(2))  # both count alike
    counters = distributed.SyncedCounters(model)
    model.counts += 3
    counters.sync()
    assert model.counts.tolist() == [7, 7] and torch.equal(model.mask, mask)


def test_a_process_that_is_killed_ends_the_others_and_the_training_resumes(folder: Path, ended: dict[str, Any]) -> None:
    run = ended["toy killed"]
    assert run["codes"] == [1, -signal.SIGKILL] and run["seconds"] < 20
    assert "process 1 is gone" in run["results"][0] and "resume=true" in run["results"][0]
    for path in (folder / "toy killed" / "checkpoints").iterdir():
        read_tensors(path, CPU)
    assert ended["killed"]["codes"] == [0]  # of the second time: by one process, from the last checkpoint
    check_close(folder / "one", folder / "killed")


def test_the_command_ends_when_a_process_is_killed_and_one_process_goes_on(
    folder: Path, ended: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = folder / "command"
    assert ended["command"]["codes"] == [1, -signal.SIGKILL] and ended["command"]["seconds"] < 60
    text = (folder / "output").read_text()
    assert text.count("2 processes,") == 1, text  # the first one alone speaks
    left = {str(path.relative_to(run)) for path in run.rglob("*.*")}
    assert {"config.json", "data.json", "versions.json"} <= left
    assert not any("evaluation" in name or "final" in name or "partial" in name for name in left)
    checkpoints = [*run.glob("checkpoints/*")]
    assert checkpoints
    for path in checkpoints:
        read_tensors(path, CPU)

    evaluated: list[Path] = []
    monkeypatch.setattr(experiments.training, "evaluate", lambda folder, *_, **__: evaluated.append(folder))
    monkeypatch.chdir(folder)
    cli.main(COMMAND)
    assert evaluated == [Path("command")] and (run / "checkpoints" / "final.safetensors").exists()
    steps = [(line["stage_index"], line["step"]) for line in toys.metrics(run)]
    assert steps == sorted(set(steps)) and steps[0] == (0, 5) and steps[-1][0] == 3


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_is_killed_before_any_stage_is_named(killed: int, folder: Path, ended: dict[str, Any]) -> None:
    run = ended[f"without {killed}"]
    assert run["codes"][killed] == -signal.SIGKILL and run["codes"][1 - killed] == 1 and run["seconds"] < 60
    text = (folder / "output").read_text()
    assert text.count(f"process {killed} is gone") == 1 + killed  # the second time in the middle of a stage
    assert "Traceback" not in text


@pytest.mark.nightly
def test_torchrun_starts_the_command(tiny_place: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "trajgen"]
    subprocess.run([*words, *COMMAND, "evaluation.episodes=1"], cwd=tmp_path, check=True, timeout=200)
    assert (tmp_path / "command" / "checkpoints" / "final.safetensors").exists()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
