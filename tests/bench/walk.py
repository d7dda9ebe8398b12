"""How many files and functions of trajgen one training step and one decision pass: ``python tests/bench/walk.py``."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny

import trajgen
from trajgen.engine.loop import Training
from trajgen.engine.options import EngineOptions, StageOptions
from trajgen.engine.step import TrainingStep
from trajgen.policies.options import PolicyOptions
from trajgen.policies.receding_horizon import RecedingHorizonPolicy

PACKAGE = str(Path(trajgen.__file__).parent)


def functions_called(call: Callable[[], Any]) -> set[tuple[str, str]]:
    """The functions of trajgen, as (file, qualified name), that a call passes; comprehensions are not counted."""
    called: set[tuple[str, str]] = set()

    def profile(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and not code.co_name.startswith("<"):
            called.add((code.co_filename.removeprefix(PACKAGE + "/"), code.co_qualname))

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return called


def training_step() -> set[tuple[str, str]]:
    """A step of MAGE's prior after the first, between two lines of the log, from the engine's loop down."""
    planner = tiny.planner(return_target="quantile")
    stages = {name: StageOptions(steps=3, batch_size=32) for name in ("tokenizer", "return_target", "prior")}
    options = EngineOptions(stages=stages, precision="float32", log_every=100, checkpoint_every=100)
    with tempfile.TemporaryDirectory() as folder:
        training = Training(
            planner,
            planner.stages(),
            tiny.RandomSource(),
            options,
            Path(folder),
            0,
            torch.device("cpu"),
            Console(quiet=True),
        )
        called: set[tuple[str, str]] = set()
        take_step = TrainingStep.__call__

        def profiled(self: TrainingStep, number: int, step: int, timer: Any) -> Any:
            result: list[Any] = []
            functions = functions_called(lambda: result.append(take_step(self, number, step, timer)))
            if self.stage.name == "prior" and step:
                called.update(functions)
            return result[0]

        with mock.patch.object(TrainingStep, "__call__", profiled):
            training.run()
    return called


def decision() -> set[tuple[str, str]]:
    """One decision of a policy that plans."""
    planner = tiny.planner(return_target="quantile").eval()
    space = tiny.SPACE
    policy = RecedingHorizonPolicy(
        planner, planner.normalizer, space, PolicyOptions(replan_interval=1), discount=0.99, chunk=tiny.CHUNK
    )
    policy.reset()
    observation = {"observation": np.zeros(space.state_dim), "desired_goal": np.zeros(space.goal_dim)}
    policy.act(observation)
    return functions_called(lambda: policy.act(observation))


if __name__ == "__main__":
    for what, called in (("training step", training_step()), ("decision", decision())):
        print(f"{what}: {len({file for file, _ in called})} files, {len(called)} functions")
        for file, name in sorted(called) if "-v" in sys.argv else ():
            print(f"  {file}: {name}")
