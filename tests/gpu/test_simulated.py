"""Every recipe on a simulated CUDA device: training, resuming and acting, without waits, and by graphs."""

from __future__ import annotations

import shutil
import weakref
from collections import Counter
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from rich.console import Console
from simulated import SimulatedCuda

from trajgen.core.types import Batch
from trajgen.data.windows import Windows
from trajgen.engine import captured_step, loop
from trajgen.engine.checkpoint import Checkpoints
from trajgen.engine.loop import Training
from trajgen.engine.options import EngineOptions, StageOptions
from trajgen.engine.step import Timer

pytestmark = pytest.mark.simulated
STEPS, LOGGED = 4, 3
"""Steps of a stage, and between lines of its log, which are checkpoints too."""


class Watched:
    """A source that notes what the host has waited for when a step begins.

    Args:
        source: of the batches.
        simulation: of the device.
        folder: of the training, which is copied at the beginning of step ``copied_at`` of all.
    """

    def __init__(self, source: Any, simulation: SimulatedCuda, folder: Path, copied_at: int) -> None:
        self.source, self.simulation, self.folder, self.copied_at = source, simulation, folder, copied_at
        self.waits: dict[int, Counter[str]] = {}

    def batch(self, step: int, size: int, rank: int = 0) -> Batch:
        self.waits[step] = self.simulation.waits.copy()
        if step == self.copied_at:
            shutil.copytree(self.folder, self.folder.with_name("copy"))
        return self.source.batch(step, size, rank)

    def with_transitions(self, sampling: Any) -> Watched:
        watched = copy(self)  # which notes the waits in the same place
        watched.source = self.source.with_transitions(sampling)
        return watched

    def in_second_steps(self) -> list[str]:
        """The waits in the second step of each stage; in the first one, codes may be initialized."""
        return [wait for step in self.waits if step % STEPS == 1 for wait in self.waits[step + 1] - self.waits[step]]


def train(
    setup: small.Setup, source: Any, folder: Path, *, resume: bool = False, steps: int = STEPS, **changes: Any
) -> None:
    stages = setup.planner.stages()
    settings = {stage.name: StageOptions(steps=steps, batch_size=16) for stage in stages}
    options = EngineOptions(stages=settings, precision="auto", log_every=LOGGED, checkpoint_every=LOGGED, **changes)
    console = Console(quiet=True)
    folder.mkdir(exist_ok=True)
    Training(setup.planner, stages, source, options, folder, 0, setup.source.device, console).run(resume=resume)


def same_state(one: Any, other: Any) -> None:
    for name, value in one.planner.state_dict().items():
        assert torch.equal(value, other.planner.state_dict()[name]), name


EVERY_TIME = ("bc", "diffuser", "dt", "flow", "hiql", "iql", "mage", "tt")
"""Recipes that differ in their stages, priors or samplers; the others join those of them, or differ in options."""
OTHERS = [name for name in small.RECIPES if name not in EVERY_TIME]
RECIPES = [*EVERY_TIME, *(pytest.param(name, marks=pytest.mark.nightly) for name in OTHERS)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_by_graphs_without_waits_and_acts(recipe: str, tmp_path: Path) -> None:
    with SimulatedCuda() as simulation:
        uncaptured, again, captured = (small.Setup(recipe, "cuda") for _ in range(3))
        trained = [index for index, stage in enumerate(uncaptured.planner.stages()) if stage.parameters]
        watched = Watched(uncaptured.source, simulation, tmp_path / "whole", STEPS * (trained[-1] + 1) - 1)
        train(uncaptured, watched, tmp_path / "whole", cuda_graph=False)
        assert watched.waits and watched.in_second_steps() == []
        train(again, again.source, tmp_path / "copy", resume=True, cuda_graph=False)
        same_state(again, uncaptured)
        train(captured, captured.source, tmp_path / "captured")
        assert simulation.launches["replay"] == 2 * len(trained) * (STEPS - captured_step.WARM_UP)
        same_state(captured, uncaptured)
        plans = small.actions(uncaptured.policy())
        assert np.isfinite(plans).all()
        graph = uncaptured.policy(backend="cuda_graph")
        np.testing.assert_allclose(small.actions(graph), plans, atol=1e-5)


@pytest.mark.parametrize("recipe", OTHERS)
def test_another_recipe_trains_and_acts_by_graphs(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured_step, "WARM_UP", 2)  # in the first step codes may be initialized
    with SimulatedCuda() as simulation:
        setup = small.Setup(recipe, "cuda")
        train(setup, setup.source, tmp_path, steps=3)
        trained = [stage for stage in setup.planner.stages() if stage.parameters]
        assert simulation.launches["replay"] == 2 * len(trained)
        assert np.isfinite(small.actions(setup.policy(backend="cuda_graph"), steps=1)).all()


def test_a_resumed_training_keeps_its_checkpoint_on_the_device_no_longer_than_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, draw, averages, alive = Checkpoints.read_newest, Windows.batch, [], []

    def watched_read(*arguments: Any) -> Any:
        path, tensors, start = read(*arguments)
        averages.extend(weakref.ref(value) for name, value in tensors.items() if name.startswith("ema."))
        return path, tensors, start

    def watched_draw(*arguments: Any) -> Batch:
        alive.append(sum(average() is not None for average in averages))
        return draw(*arguments)

    with SimulatedCuda() as simulation:
        setup, again = (small.Setup("bc", "cuda") for _ in range(2))
        last = max(index for index, stage in enumerate(setup.planner.stages()) if stage.parameters)
        watched = Watched(setup.source, simulation, tmp_path / "whole", STEPS * (last + 1) - 1)
        train(setup, watched, tmp_path / "whole", cuda_graph=False)
        monkeypatch.setattr(Checkpoints, "read_newest", watched_read)
        monkeypatch.setattr(Windows, "batch", watched_draw)
        train(again, again.source, tmp_path / "copy", resume=True, cuda_graph=False)
    assert averages and alive[-1] == 0


@pytest.mark.parametrize("is_main", [True, False])
def test_events_of_steps_are_kept_until_the_next_line_of_the_log(
    is_main: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timers: list[Timer] = []
    monkeypatch.setattr(loop, "Timer", lambda device: timers.append(Timer(device)) or timers[-1])
    monkeypatch.setattr(loop, "is_main_process", lambda: is_main)
    with SimulatedCuda():
        setup = small.Setup("bc", "cuda")
        train(setup, setup.source, tmp_path, cuda_graph=False)
    assert timers and not any(timer._events for timer in timers)


def test_tf32_is_used_in_training_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "highest")
    chosen: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", chosen.append)
    with SimulatedCuda():
        setup = small.Setup("bc", "cuda")
        small.actions(setup.policy())
        assert chosen == []
        train(setup, setup.source, tmp_path, cuda_graph=False)
        assert chosen == ["high", "highest"]


ONE_OF_FOUR = np.arange(4) == 1
"""Which of the episodes begins anew after a step."""


@pytest.mark.parametrize(
    ("recipe", "options", "expected"),
    [
        ("mage", {"replan_interval": 2, "revise": None}, [2, 1, 1, 2]),
        ("mage", {"replan_interval": 2, "revise": None, "backend": "cuda_graph"}, [2, 1, 1, 2]),
        ("mage", {"replan_interval": 2, "revise": 2, "revise_threshold": 0.0}, [2, 2, 1, 3]),
        ("dt", {"backend": "cuda_graph"}, [2, 1, 1, 2]),
    ],
    ids=str,
)
def test_the_host_waits_for_actions_alone(recipe: str, options: dict[str, Any], expected: list[int]) -> None:
    """And for the target returns of an episode's first plan; a misfit is copied once the actions are here."""
    with SimulatedCuda() as simulation:
        setup, waits = small.Setup(recipe, "cuda"), []
        for policy in (setup.policy(**options) for _ in range(2)):  # the first one chooses draws and captures graphs
            policy.reset(batch=4)
            waits.clear()
            for step in range(4):
                before = simulation.waits.copy()
                policy.act(small.observation(policy.space, 4, step))
                policy.observe(np.ones(4), ONE_OF_FOUR & (step == 2))
                waits.append(simulation.waits - before)
        assert [sum(counts.values()) for counts in waits] == expected
        assert all("_to_copy to the host" in wait for counts in waits for wait in counts)
