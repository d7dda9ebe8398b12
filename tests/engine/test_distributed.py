"""Several processes train as one does: the same batches, losses and codes; they stop together, and one of them writes.

Run as a script, this file trains in children of one warm process, as ``torchrun`` would start them.
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
from trajgen.core.errors import ConfigError, TrainingError
from trajgen.core.types import Batch
from trajgen.engine import distributed
from trajgen.engine.distributed import join, leads, leave, rank
from trajgen.engine.launch import ElsewhereError, Launch, first_node, read_launch
from trajgen.engine.loop import Interrupted, Training
from trajgen.engine.options import EngineOptions, StageOptions
from trajgen.engine.shares import share
from trajgen.engine.storage import read_tensors
from trajgen.tokenizers.quantizers import EMAVectorQuantizer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
STEPS = {"tokenizer": 50, "return_target": 3, "prior": 8}
STOPPED = 43
"""The step at whose batch something happens to a training."""
SEEN = 8
"""Windows per step: few enough that codes fall out of use."""
CLOSE = 1e-5


# --- in the children ------------------------------------------------------------------------------------------------


class Uneven(tiny.RandomSource):
    """Random batches whose windows end after 1, 2, 3, … points; at one step something happens on one rank."""

    def __init__(self, at: int | None = None, on: int = 0, happens: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.at, self.on, self.happens = at, on, happens

    def batch(self, step: int, size: int, rank_: int = 0) -> Batch:
        if step == self.at and rank() == self.on:
            self.happens()
        drawn = super().batch(step, size)
        real = {}
        for name in ("mask", "chunk_mask"):
            mask = getattr(drawn, name)
            real[name] = torch.arange(mask.shape[1]) <= torch.arange(size).unsqueeze(1) % mask.shape[1]
        return replace(drawn, **real)


def planner(name: str) -> Any:
    """A composition that draws no random numbers in a step, but for those of its codes."""
    still: dict[str, Any] = {"conditioner": {"dropout": 0.0}, "planner": {"condition_weight": 0.0}}
    if name == "mage":
        return tiny.planner(return_target="quantile", tokenizer={"dead_code_threshold": 3.0}, **still)
    if name == "condition":  # L_cond without a draw: continuous codes
        few = {"condition_batch": 4}
        return tiny.planner(
            tokenizer="identity", schedule="unit", sampler="greedy", conditioner={"dropout": 0.0}, planner=few
        )
    return tiny.planner(tokenizer={"quantizer": name}, **still)


def training(
    folder: Path, source: Any, *, parts: str = "mage", steps: dict[str, int] | None = None, accumulate: int = 1
) -> Training:
    """A training whose second process is given a folder that it must not touch."""
    if leads():
        folder.mkdir(exist_ok=True)
    else:
        folder = folder / "elsewhere"
    made = planner(parts)
    wanted = steps or STEPS
    stages = {s.name: StageOptions(steps=wanted.get(s.name, 1), batch_size=SEEN, ema_decay=0.9) for s in made.stages()}
    options = EngineOptions(
        stages=stages,
        precision="float32", log_every=5, checkpoint_every=10, accumulate=accumulate,
    )  # fmt: skip
    return Training(made, made.stages(), source, options, folder, 7, torch.device("cpu"), Console(quiet=True))


def digest(values: dict[str, Tensor]) -> str:
    return sha256(b"".join(v.numpy().tobytes() for v in values.values())).hexdigest()


def train(place: Path, name: str, *, resume: bool = False, source: Any = None, **options: Any) -> dict[str, Any]:
    """Trains, and says what this process has in the end."""
    revived = [0]
    replace_dead_codes = EMAVectorQuantizer._replace_dead_codes

    def counted(self: EMAVectorQuantizer, x: Tensor) -> None:
        revived[0] += int((self.cluster_size < self.dead_code_threshold).sum())
        replace_dead_codes(self, x)

    pytest.MonkeyPatch().setattr(EMAVectorQuantizer, "_replace_dead_codes", counted)
    made = training(place / name, source or Uneven(), **options)
    made.run(resume=resume)
    codes = {k: v for k, v in made.model.state_dict().items() if "quantizer" in k}
    return {"codes": digest(codes), "weights": digest(made.model.state_dict()), "revived": revived[0]}


def train_toy(place: Path, name: str, at: int | None = None, happens: Callable[[], None] = lambda: None) -> None:
    source = toys.Numbers(at if rank() == 1 else None, happens)
    folder = place / name
    if leads():
        folder.mkdir(exist_ok=True)
    toys.training(folder if leads() else place / "other", source, checkpoint_every=2).run()


def poisoned(place: Path, name: str) -> None:
    source = toys.Numbers(poison=toys.FIRST + 4 if rank() == 1 else None)
    toys.training(place / name, source, checkpoint_every=1).run()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def start(world: int, do: Callable[..., Any], place: Path, name: str, **options: Any) -> dict[str, Any]:
    """Has ``world`` processes do something together; returns how each ended, and what it said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for number in range(world):
        child = os.fork()
        if not child:
            os.environ |= {"RANK": str(number), "WORLD_SIZE": str(world), "LOCAL_RANK": str(number)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os._exit(work(do, place, name, number, options))
        children.append(child)
    began = time.monotonic()
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    said = [place / f"{name}.{number}.json" for number in range(world)]
    words = [json.loads(path.read_text()) if path.exists() else None for path in said]
    return {"ends": ends, "said": words, "seconds": time.monotonic() - began}


def work(do: Callable[..., Any], place: Path, name: str, number: int, options: dict[str, Any]) -> int:
    try:
        join("cpu")
        said, status = do(place, name, **options), 0
        leave()
    except Interrupted as error:
        said, status = str(error), 130
    except (ElsewhereError, TrainingError) as error:
        said, status = f"{type(error).__name__}: {error}", 1
    except BaseException:
        traceback.print_exc()
        return 99
    (place / f"{name}.{number}.json").write_text(json.dumps(said))
    return status


def main(place: Path) -> None:
    """All trainings that the tests look at."""
    torch.set_num_threads(1)
    found = {}

    def try_out(name: str, world: int, do: Callable[..., Any] = train, **options: Any) -> None:
        found[name] = start(world, do, place, name, **options)

    def copied(begun: str, name: str) -> str:
        shutil.copytree(place / begun, place / name)
        return name

    try_out("one", 1)
    try_out("two", 2)
    try_out("begun by one", 1, source=Uneven(STOPPED, 0, toys.term))
    try_out("begun by two", 2, source=Uneven(STOPPED, 1, toys.term))
    try_out("killed", 2, source=Uneven(STOPPED, 1, die))
    try_out(copied("begun by one", "one then two"), 2, resume=True)
    try_out(copied("begun by two", "two then one"), 1, resume=True)
    try_out(copied("begun by one", "in micro-batches"), 1, resume=True, accumulate=4)
    try_out(copied("begun by one", "in micro-batches by two"), 2, resume=True, accumulate=2)
    try_out("killed", 1, resume=True)
    for name in ("lfq", "simvq"):
        for world in (1, 2):
            try_out(f"{name} by {world}", world, parts=name, steps={"tokenizer": 6})
    for world, accumulate in ((1, 1), (2, 1), (1, 2)):
        options = {"parts": "condition", "steps": {"prior": 8}, "accumulate": accumulate}
        try_out(f"condition by {world}, {accumulate}", world, **options)
    try_out("poisoned", 2, poisoned)
    try_out("toy killed", 2, train_toy, at=toys.FIRST + 3, happens=die)
    (place / "found.json").write_text(json.dumps(found))


# --- what they left -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all trainings lie."""
    made = tmp_path_factory.mktemp("many")
    rooms = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([*rooms, os.environ.get("PYTHONPATH", "")]),
    }
    words = [sys.executable, __file__, str(made)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="module")
def found(place: Path) -> dict[str, Any]:
    """How each training ended."""
    read: dict[str, Any] = json.loads((place / "found.json").read_text())
    return read


def differences(one: Path, two: Path, after: int = 0) -> Iterator[tuple[str, float]]:
    """How far the figures of two trainings lie apart, line by line; the clock left out."""
    left, right = toys.metrics(one), toys.metrics(two)
    assert [(a["stage"], a["step"]) for a in left] == [(b["stage"], b["step"]) for b in right]
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"stage"}:
            if a["stage_index"] or a["step"] > after:
                yield f"{a['stage']} {a['step']} {key}", abs(a[key] - b[key]) / max(1.0, abs(a[key]))


def check_close(one: Path, two: Path, gradients: float = 10 * CLOSE) -> None:
    limits = ((name, far, gradients if "gradient" in name else CLOSE) for name, far in differences(one, two))
    far = {name: distance for name, distance, limit in limits if distance > limit}
    assert not far


def test_losses_and_usage_are_those_of_one_process(place: Path, found: dict[str, Any]) -> None:
    """Over 50 steps of a codebook that starts, moves and revives, and over the stages after it."""
    assert found["one"]["ends"] == [0] and found["two"]["ends"] == [0, 0]
    check_close(place / "one", place / "two")
    lines = toys.metrics(place / "one")
    assert [line["step"] for line in lines if line["stage"] == "tokenizer"] == list(range(5, 51, 5))
    assert {"reconstruction", "usage/scale_1", "perplexity/all"} <= lines[0].keys()
    assert found["one"]["said"][0]["revived"] == found["two"]["said"][0]["revived"] > 5


def test_codes_and_weights_are_the_same_on_all_processes(found: dict[str, Any]) -> None:
    first, second = found["two"]["said"]
    assert first["codes"] == second["codes"] and first["weights"] == second["weights"]
    assert second["revived"] == 0  # the first process alone draws


@pytest.mark.parametrize("name", ["lfq", "simvq"])
def test_other_codes_too(name: str, place: Path, found: dict[str, Any]) -> None:
    first, second = found[f"{name} by 2"]["said"]
    assert first == {**second, "revived": first["revived"]}
    # LFQ's entropies, at a temperature of 0.01, magnify rounding: its gradients are equal in the first step alone.
    check_close(place / f"{name} by 1", place / f"{name} by 2", gradients=1e-2 if name == "lfq" else 10 * CLOSE)


@pytest.mark.parametrize("shared", ["2, 1", "1, 2"])
def test_the_first_windows_of_a_batch_are_shared_out(shared: str, place: Path) -> None:
    """L_cond looks at the first 4 of 8 windows: at the first 2 of each share."""
    check_close(place / "condition by 1, 1", place / f"condition by {shared}")
    assert sum("condition" in line for line in toys.metrics(place / "condition by 1, 1")) == 2


@pytest.mark.parametrize("name", ["one then two", "two then one", "in micro-batches", "in micro-batches by two"])
def test_another_number_of_shares_goes_on_in_the_same_order(name: str, place: Path, found: dict[str, Any]) -> None:
    assert set(found[name]["ends"]) == {0}
    check_close(place / "one", place / name)


def test_micro_batches_move_the_codes_once(place: Path) -> None:
    """Usage is counted per window, and running averages decay per batch, however it is cut."""
    far = [d for name, d in differences(place / "one", place / "in micro-batches", STOPPED) if "usage" in name]
    assert max(far) == 0.0


def test_a_signal_to_one_process_stops_all_at_the_same_step(place: Path, found: dict[str, Any]) -> None:
    ended = found["begun by two"]
    assert ended["ends"] == [130, 130] and ended["said"][0] == ended["said"][1]
    assert f"after step {STOPPED + 2}" in ended["said"][0]  # all hear of it one step later
    kept = sorted((place / "begun by two" / "checkpoints").iterdir())
    assert kept[-1].name == f"stage0-step{STOPPED + 2:07d}.safetensors" and str(kept[-1]) in ended["said"][0]


def test_one_process_writes(place: Path) -> None:
    assert not list(place.rglob("elsewhere")) and not list((place / "other").iterdir())
    assert sorted(p.name for p in (place / "two").iterdir()) == ["checkpoints", "metrics.jsonl"]
    assert [p.name for p in (place / "two" / "checkpoints").iterdir()] == ["final.safetensors"]


def test_a_loss_that_is_not_finite_on_one_process_stops_all(place: Path, found: dict[str, Any]) -> None:
    first, second = found["poisoned"]["said"]
    assert found["poisoned"]["ends"] == [1, 1]
    assert first.startswith("TrainingError") and "not finite" in first and "stage 'two'" in first
    assert second.startswith("ElsewhereError")
    kept = sorted((place / "poisoned" / "checkpoints").iterdir())
    tensors, position = read_tensors(kept[-1], torch.device("cpu"))
    assert (position.stage, position.step) == (1, 4)
    assert all(v.isfinite().all() for v in tensors.values() if v.is_floating_point())


def test_a_process_that_is_killed_ends_the_others_and_the_training_resumes(place: Path, found: dict[str, Any]) -> None:
    ended = found["toy killed"]
    assert ended["ends"] == [1, -signal.SIGKILL] and ended["seconds"] < 20
    assert "one of them is gone" in ended["said"][0] and "resume=true" in ended["said"][0]
    for path in (place / "toy killed" / "checkpoints").iterdir():
        read_tensors(path, torch.device("cpu"))
    assert found["killed"]["ends"] == [0]  # of the second time: by one process, from the last checkpoint
    check_close(place / "one", place / "killed")


def test_shares_make_up_the_batch() -> None:
    whole = tiny.batch(12)
    parts = [share(whole, part, 3) for part in range(3)]
    assert all(len(part) == 4 for part in parts)
    for name in ("states", "mask", "goals", "time"):
        again = torch.stack([getattr(part, name) for part in parts], 1).flatten(0, 1)
        assert torch.equal(again, getattr(whole, name))
    assert share(whole, 0, 1) is whole


def test_means_of_shares_make_up_the_mean_of_the_batch() -> None:
    """Of all real points, of the first windows', and of a batch seen otherwise, though shares differ in padding."""
    whole = Uneven().batch(0, 12)
    errors = torch.rand(12, tiny.HORIZON)

    def every_second(batch: Batch) -> Batch:
        return replace(batch, mask=batch.mask[:, ::2])

    def means(batch: Batch, own: Tensor) -> Tensor:
        seen = batch.map(every_second)
        parts = (batch.mean(own, real), batch.mean(own[: len(own) // 2], real), seen.mean(own[:, ::2], real))
        return torch.stack(parts)

    def real(batch: Batch) -> Tensor:
        return batch.mask

    shares = torch.stack([means(share(whole, part, 3), errors[part::3]) for part in range(3)])
    torch.testing.assert_close(shares.mean(0), means(whole, errors))
    torch.testing.assert_close(whole.mean(errors, real), errors[whole.mask].mean())


def test_the_first_windows_of_a_batch_are_counted_within_a_share() -> None:
    batch = tiny.batch(6)
    assert batch.first(4) == 4
    assert [share(batch, part, 3).first(4) for part in range(3)] == [2, 2, 2]  # no share gets fewer than its part


def test_a_batch_that_cannot_be_cut_is_refused() -> None:
    made = tiny.planner()
    options = EngineOptions(stages={"prior": StageOptions(batch_size=250), "tokenizer": StageOptions(batch_size=90)})
    options.check_shares(made.stages(), 2)
    with pytest.raises(ConfigError, match=r"prior\.batch_size=250") as caught:
        options.check_shares(made.stages(), 3)
    assert "prior.batch_size=249" in str(caught.value.fix)
    with pytest.raises(ConfigError):
        EngineOptions(accumulate=0)


# --- what launchers say ---------------------------------------------------------------------------------------------

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_NODELIST": "gpu[03-05,9],other",
}  # fmt: skip


def test_launchers() -> None:
    assert read_launch({}) == Launch() == read_launch({"RANK": "0", "WORLD_SIZE": "1"})
    assert read_launch(TORCHRUN) == Launch(5, 8, 1, "env://")
    assert read_launch(SRUN) == Launch(5, 8, 1, "tcp://gpu03:24567")
    assert read_launch(SRUN | TORCHRUN).meeting == "env://"
    batch_script = {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}
    assert read_launch(batch_script) == Launch()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("a", "a"), ("a,b", "a"), ("n[7]", "n7"), ("n[007-010],m", "n007"), ("n[1,3]-ib", "n1-ib"), ("a,n[1-2]", "a")],
)
def test_the_first_node_of_a_list(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


@pytest.mark.parametrize("change", [{"RANK": "8"}, {"RANK": "one"}, {"MASTER_PORT": ""}, {"LOCAL_RANK": ""}])
def test_what_is_incomplete_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="torchrun"):
        read_launch(TORCHRUN | change)
    with pytest.raises(ConfigError):
        read_launch({k: v for k, v in SRUN.items() if k != "SLURM_LOCALID"})


def test_each_process_takes_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [4]
    monkeypatch.setattr(distributed, "choose_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found[0])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    own = distributed.own_device
    assert own("cpu", Launch(5, 8, 3)) == torch.device("cpu")
    assert own("cuda", Launch(5, 8, 3)) == torch.device("cuda", 3)
    for name, place in (("cuda:1", 1), ("cuda", 4)):
        with pytest.raises(ConfigError, match="at most 4 processes"):
            own(name, Launch(5, 8, place))
    found[0] = 1
    with pytest.raises(ConfigError):
        own("cuda", Launch(5, 8, 3))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")  # as submitit sets it, and SLURM with --gpus-per-task=1
    assert own("cuda", Launch(5, 8, 3)) == torch.device("cuda", 0)


def test_a_sweep_by_many_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "-m", "seed=0,1"])
    assert ended.value.code == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("Process 5: ")


def test_torchrun_ends_when_a_process_is_killed_and_one_process_goes_on(
    tiny_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command itself, as a person gives it."""
    (tmp_path / "own_pids.py").write_text(
        "import os\nfrom pathlib import Path\n"
        "Path('pid-' + os.environ.get('RANK', 'alone')).write_text(str(os.getpid()))\n"
    )
    words = ["train", "recipe=mage", *tiny.TRAIN, "run_dir=run", "imports=[own_pids]", "resume=true"]
    words += ["engine.stages.tokenizer.steps=60"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "trajgen"]
    run, deadline = tmp_path / "run", time.monotonic() + 100
    with (tmp_path / "said").open("w") as said:
        job = subprocess.Popen([*torchrun, *words], cwd=tmp_path, stdout=said, stderr=said)
        while not list(run.glob("checkpoints/*.safetensors")) and time.monotonic() < deadline and job.poll() is None:
            time.sleep(0.05)
        os.kill(int((tmp_path / "pid-1").read_text()), signal.SIGKILL)
        began = time.monotonic()
        assert job.wait(60) != 0 and time.monotonic() - began < 25
    text = (tmp_path / "said").read_text()
    assert text.count("2 processes, run") == 1, text  # the first one alone speaks
    left = {str(path.relative_to(run)) for path in run.rglob("*.*")}
    assert {"config.json", "data.json", "versions.json"} <= left
    assert not any("evaluation" in name or "final" in name or "partial" in name for name in left)
    for path in run.glob("checkpoints/*"):
        read_tensors(path, torch.device("cpu"))

    evaluated: list[Path] = []
    monkeypatch.setattr(experiments.training, "evaluate", lambda folder, *_, **__: evaluated.append(folder))
    monkeypatch.chdir(tmp_path)
    cli.main(words)
    assert evaluated == [Path("run")] and (run / "checkpoints" / "final.safetensors").exists()
    steps = [(line["stage_index"], line["step"]) for line in toys.metrics(run)]
    assert steps == sorted(set(steps)) and steps[0] == (0, 5) and steps[-1][0] == 2


if __name__ == "__main__":
    main(Path(sys.argv[1]))
