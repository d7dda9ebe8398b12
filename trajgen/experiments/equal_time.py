"""Equal time: what a step of each stage costs, and how many steps take as long as the reference's training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from trajgen.config import Config
from trajgen.experiments.cells import interruptible

if TYPE_CHECKING:
    from rich.console import Console

ROUNDS = 6
"""Timed intervals of a stage. The first warms up and is left out; of the others the shortest counts, since the load of
the machine changes, and must not be taken for a difference between variants."""
TOLERANCE = 0.1
"""Relative difference of cost below which two stages count as the same."""


@dataclass(frozen=True)
class Cost:
    """The cost of a training by stage, as the stage options name them."""

    seconds: Mapping[str, float]
    """Of one step; of both levels together where a hierarchy trains them under one name."""
    steps: Mapping[str, int]
    """As configured, before ``budget`` multiplies them."""
    budget: float = 1.0

    @property
    def total(self) -> float:
        """Seconds of the whole training."""
        return sum(self.stage_seconds(name) for name in self.seconds)

    def stage_seconds(self, name: str) -> float:
        return self.seconds[name] * self.steps[name] * self.budget


def equal_steps(cost: Cost, reference: Cost) -> dict[str, int]:
    """The steps of stages that make a training as long as the reference's.

    Stages that cost the same in both (within `TOLERANCE`) and have equal steps are left alone; all others are scaled
    by one factor.

    Returns:
        The steps of the stages that are scaled; none where the times are equal already.
    """
    if abs(cost.total / reference.total - 1) <= TOLERANCE / 2:
        return {}
    same = {name for name in cost.seconds if name in reference.seconds and _is_same(cost, reference, name)}
    unscaled = sum(cost.stage_seconds(name) for name in same)
    if same == set(cost.seconds) or unscaled >= reference.total:
        same, unscaled = set(), 0.0
    scaled = [name for name in cost.seconds if name not in same]
    factor = (reference.total - unscaled) / sum(cost.stage_seconds(name) for name in scaled)
    return {name: max(1, round(cost.steps[name] * factor)) for name in scaled}


def _is_same(cost: Cost, reference: Cost, name: str) -> bool:
    close = abs(cost.seconds[name] / reference.seconds[name] - 1) <= TOLERANCE
    return close and cost.steps[name] * cost.budget == reference.steps[name] * reference.budget


def measure_cell(console: Console, *, config: Mapping[str, Any], steps: int) -> tuple[Cost, str]:
    """The job that measures the cost of a variant."""
    from trajgen.experiments import prepare_imports

    prepare_imports(tuple(config["imports"]))
    with interruptible():
        cost = measure(Config.from_plain(config), steps, console)
    stages = ", ".join(f"{stage} {1000 * seconds:.0f} ms" for stage, seconds in cost.seconds.items())
    return cost, f"a step takes {stages}"


def measure(config: Config, steps: int, console: Console) -> Cost:
    """Times ``steps`` steps of each stage, after some to warm up; the trained weights are discarded.

    Raises:
        TrajgenError: as `trajgen.experiments.training.train`.
    """
    from trajgen.core.files import read_metrics
    from trajgen.engine.device import choose_device
    from trajgen.engine.loop import Training
    from trajgen.experiments import prepare
    from trajgen.experiments.starting import stages_of

    device = choose_device(config.device)
    planner, source, _ = prepare(config, device, console)
    interval = max(1, steps // (ROUNDS - 1))
    stages = stages_of(planner, ())
    options = {stage.name: o for stage, o in zip(stages, config.engine.of(stages), strict=True) if stage.parameters}
    stages = [stage for stage in stages if stage.name in options]
    engine = replace(
        config.engine,
        stages={name: replace(o, steps=ROUNDS * interval) for name, o in options.items()},
        budget=1.0,
        log_every=interval,
        checkpoint_every=ROUNDS * interval,
    )
    seconds: dict[str, float] = {}
    configured: dict[str, int] = {}
    with TemporaryDirectory() as folder:
        Training(planner, stages, source, engine, Path(folder), config.seed, device, console).run()
        lines = read_metrics(Path(folder) / "metrics.jsonl")
    for stage in stages:
        clock = [line["seconds"] for line in lines if line["stage"] == stage.name]
        shortest = min(after - before for before, after in pairwise(clock))
        name = stage.name if stage.name in config.engine.stages or not stage.options_of else stage.options_of
        seconds[name] = seconds.get(name, 0.0) + shortest / interval
        configured[name] = options[stage.name].steps
    return Cost(seconds, configured, config.engine.budget)
