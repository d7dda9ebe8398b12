"""Trains in children of one warm process, and kills them with SIGKILL at moments drawn from a seed.

A script, so that the process that forks has no threads and has taken no step itself: ``killed.py PLACE KIND RUNS``.
Prints what was done to each run as JSON; the runs lie in PLACE, ``whole`` is the one that nothing disturbed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import tiny
import torch
import toys
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

from trajgen.core import files
from trajgen.engine import checkpoint, loggers, loop, storage
from trajgen.engine.loop import Training
from trajgen.engine.options import EngineOptions, StageOptions

SEED = 2026
DELAYS = 3
"""Of the runs, those that are killed by the clock."""


class Counted(toys.Toy):
    """A toy that counts what it has seen since its last report, in a buffer that is not part of its state."""

    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(()), persistent=False)

    def stages(self) -> list[Any]:
        stages = super().stages()
        for stage in stages:
            stage.loss = partial(self.count, stage.loss)
            stage.report = self.report
        return stages

    def count(self, loss: Any, batch: Any) -> Any:
        self.counts.add_(1)
        return loss(batch)

    def report(self) -> dict[str, float]:
        count = float(self.counts)
        self.counts.zero_()
        return {"usage/seen": count}


def make(kind: str, folder: Path) -> Training:
    """The training of a run: a toy of two stages, or a whole small planner with its codebook."""
    folder.mkdir(exist_ok=True)
    steps = {"one": 14, "two": 17} if kind == "toy" else {"tokenizer": 7, "return_target": 4, "prior": 6}
    stages = {name: StageOptions(steps=count, batch_size=8) for name, count in steps.items()}
    options = EngineOptions(stages=stages, precision="float32", log_every=3, checkpoint_every=2)
    model: Any = Counted() if kind == "toy" else tiny.planner(return_target="quantile")
    source: Any = toys.Numbers() if kind == "toy" else tiny.RandomSource()
    return Training(model, model.stages(), source, options, folder, 7, torch.device("cpu"), Console(quiet=True))


def keep_ends() -> None:
    """Keeps optimizer and average of the end of each stage, which a finished run has no more."""
    end_stage = Training._end_stage

    def save_end(self: Training, optimization: Any) -> None:
        index = self.stages.index(optimization.stage)
        save_file({k: v.clone() for k, v in optimization.state().items()}, self.folder / f"end-{index}.safetensors")
        end_stage(self, optimization)

    Training._end_stage = save_end


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(owner: Any, name: str, number: int, *, after: bool = False) -> None:
    """Kills this process before or after the ``number``-th call of a function."""
    original, left = getattr(owner, name), [number]

    def counted(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0 and not after:
            die()
        result = original(*args, **kwargs)
        if left[0] == 0:
            die()
        return result

    setattr(owner, name, counted)


def in_a_write(number: int) -> None:
    """Kills this process when half of the bytes of the ``number``-th checkpoint are written."""
    write, left = storage.write_file, [number]

    def half(path: Path, content: bytes) -> None:
        left[0] -= 1
        if left[0] == 0:
            path.parent.mkdir(exist_ok=True)
            path.with_name(files.PARTIAL + path.name).write_bytes(content[: len(content) // 2])
            die()
        write(path, content)

    storage.write_file = half


def in_a_line(number: int) -> None:
    """Kills this process when half of the ``number``-th line of metrics is written."""
    append, left = loggers.append_json, [number]

    def half(path: Path, values: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(dict(values))[:20])
            die()
        append(path, values)

    loggers.append_json = half


POINTS: dict[str, tuple[Callable[[int], None], int]] = {
    "before a step": (lambda n: at_call(loop, "seed_step", n), 17),
    "before a checkpoint": (lambda n: at_call(checkpoint, "write_tensors", n), 9),
    "inside the write of a checkpoint": (in_a_write, 9),
    "before its flush": (lambda n: at_call(os, "fsync", n), 20),
    "before its renaming": (lambda n: at_call(os, "replace", n), 9),
    "after its renaming": (lambda n: at_call(os, "replace", n, after=True), 9),
    "after the removal of an old one": (lambda n: at_call(Path, "unlink", n, after=True), 7),
    "inside a line of metrics": (in_a_line, 5),
    "before the final weights": (lambda n: at_call(checkpoint.Checkpoints, "save_final", 1), 1),
}
"""For each point, what arms it, and how often an undisturbed run passes it at the least."""


def train(kind: str, folder: Path, fault: Callable[[], None] | None, delay: float | None = None) -> bool:
    """Trains in a child, from where the run stands; returns whether the child was killed."""
    child = os.fork()
    if not child:
        status = 1
        try:
            keep_ends()
            if fault is not None:
                fault()
            make(kind, folder).run(resume=True)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, ended = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGKILL
    if not killed and os.waitstatus_to_exitcode(ended):
        raise SystemExit(f"a child failed in {folder}")
    return killed


def disturb(kind: str, folder: Path, number: int, seconds: float) -> list[str]:
    """Kills a run once, and mostly again while it goes on; then lets it end. Returns where it was killed."""
    draw = random.Random(SEED * 1000 + number)
    killed = []
    if number < DELAYS:
        delay = draw.uniform(0.0, seconds)
        while not train(kind, folder, None, delay):
            folder, delay = folder.rename(folder.with_name(f"{folder.name}-too-late-{len(killed)}-{delay}")), delay / 2
            folder = folder.with_name(folder.name.partition("-too-late")[0])
        killed.append(f"after {delay:.3f} s")
    names = list(POINTS)
    points = [names[number % len(names)]] if not killed else []
    points += draw.choices(names, k=draw.randint(0, 2))
    for name in points:
        arm, most = POINTS[name]
        times = draw.randint(1, most)
        if train(kind, folder, lambda arm=arm, times=times: arm(times)):
            killed.append(f"{name}, {times}")
    train(kind, folder, None)
    return killed


def main() -> None:
    folder, kind, runs = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    make(kind, folder / "warm")  # what it imports, no child imports again
    train(kind, folder / "warm", None)
    began = time.perf_counter()
    train(kind, folder / "whole", None)
    seconds = time.perf_counter() - began
    print(json.dumps({f"run-{n}": disturb(kind, folder / f"run-{n}", n, seconds) for n in range(runs)}))


if __name__ == "__main__":
    main()
