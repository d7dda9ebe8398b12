"""Equal time: what a step of each stage costs, and how many steps take as long as the reference's training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from trajgen.config import Config
from trajgen.core.errors import TrajgenError
from trajgen.core.files import LARGEST_NUMBER, damaged, read_json
from trajgen.core.options import convert
from trajgen.security import check_numbers

if TYPE_CHECKING:
    from rich.console import Console

ROUNDS = 5
"""Stretches into which the timed steps of a stage are divided. The shortest counts, since the load of the machine
changes, and must not be taken for a difference between variants."""
TOLERANCE = 0.1
"""Relative difference of cost below which two stages count as the same."""


@dataclass(frozen=True)
class Cost:
    """The cost of a training by stage, as the stage options name them."""

    seconds: dict[str, float]
    """Of one step; of both levels together where a hierarchy trains them under one name."""
    steps: dict[str, int]
    """As configured, before ``budget`` multiplies them."""
    budget: float = 1.0

    @property
    def total(self) -> float:
        """Seconds of the whole training."""
        return sum(self.stage_seconds(name) for name in self.seconds)

    def stage_seconds(self, name: str) -> float:
        return self.seconds[name] * self.steps[name] * self.budget


def read_costs(path: Path) -> dict[str, Cost]:
    """The costs of variants in a study's steps.json; none without the file.

    Raises:
        CheckpointError: if no study wrote it.
    """
    if not path.exists():
        return {}
    try:
        costs: dict[str, Cost] = convert(read_json(path).get("costs"), dict[str, Cost], "costs")
        check_numbers([asdict(cost) for cost in costs.values()], LARGEST_NUMBER)
        for cost in costs.values():
            if cost.seconds.keys() != cost.steps.keys() or not min(cost.total, *cost.seconds.values(), 1) > 0:
                raise ValueError("a training that takes no time")
    except (TrajgenError, ValueError) as error:
        raise damaged(path, error) from error
    return costs


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
    cost = measure(Config.from_plain(config), steps, console)
    stages = ", ".join(f"{stage} {1000 * seconds:.0f} ms" for stage, seconds in cost.seconds.items())
    return cost, f"a step takes {stages}"


def measure(config: Config, steps: int, console: Console) -> Cost:
    """Times ``steps`` steps of each stage, after some to warm up; the trained weights are discarded.

    Raises:
        TrajgenError: as `trajgen.experiments.training.train`.
    """
    from trajgen.engine.device import choose_device
    from trajgen.experiments import prepare
    from trajgen.experiments.outlook import untrained

    device = choose_device(config.device)
    planner, source, _ = prepare(config, device, console)
    training, size = untrained(config, planner, source, device), -(-steps // ROUNDS)
    timings = training.time_steps(ROUNDS * size)
    seconds: dict[str, float] = {}
    configured: dict[str, int] = {}
    for stage, options in zip(training.stages, training.settings, strict=True):
        if timed := [step["step"] for step in timings.get(stage.name, ())]:
            shortest = min(fmean(timed[first : first + size]) for first in range(0, len(timed), size))
            name = stage.name if stage.name in config.engine.stages or not stage.options_of else stage.options_of
            seconds[name] = seconds.get(name, 0.0) + shortest
            configured[name] = options.steps
    return Cost(seconds, configured, config.engine.budget)
