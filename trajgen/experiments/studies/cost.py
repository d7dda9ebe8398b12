"""Equal time: what a step of each stage costs, and how many steps take as long as the reference's training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from trajgen.config import Config

if TYPE_CHECKING:
    from rich.console import Console

ROUNDS = 6
"""Timed stretches of a stage. The first is left out: it warms up. Of the others the quickest counts: what else the
machine does comes and goes, and must not be taken for a difference between variants."""
TOLERANCE = 0.1
"""Stages whose costs differ by less share count as the same stage."""


@dataclass(frozen=True)
class Cost:
    """What a training takes, by the stage options that set its steps."""

    seconds: Mapping[str, float]
    """Of one step; of both levels together where a hierarchy trains them alike."""
    steps: Mapping[str, int]
    """As they are asked for, before ``budget`` multiplies them."""
    budget: float = 1.0

    @property
    def total(self) -> float:
        """Seconds of the whole training."""
        return sum(self.time(name) for name in self.seconds)

    def time(self, name: str) -> float:
        """Seconds of a stage."""
        return self.seconds[name] * self.steps[name] * self.budget

    def to_plain(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)


def equal_steps(cost: Cost, reference: Cost) -> dict[str, int]:
    """The steps of stages that make a training as long as the reference's.

    Stages that cost the same in both (within `TOLERANCE`) and have equal steps are left alone; all others are scaled
    by one factor.

    Returns:
        The steps of the stages that are scaled; none where the times are equal within `TOLERANCE` as it is.
    """
    if abs(cost.total / reference.total - 1) <= TOLERANCE / 2:
        return {}
    same = {name for name in cost.seconds if name in reference.seconds and _alike(cost, reference, name)}
    kept = sum(cost.time(name) for name in same)
    if same == set(cost.seconds) or kept >= reference.total:
        same, kept = set(), 0.0
    scaled = [name for name in cost.seconds if name not in same]
    factor = (reference.total - kept) / sum(cost.time(name) for name in scaled)
    return {name: max(1, round(cost.steps[name] * factor)) for name in scaled}


def _alike(cost: Cost, reference: Cost, name: str) -> bool:
    close = abs(cost.seconds[name] / reference.seconds[name] - 1) <= TOLERANCE
    return close and cost.steps[name] * cost.budget == reference.steps[name] * reference.budget


def measure(config: Config, steps: int, console: Console) -> Cost:
    """Times ``steps`` steps of each stage, after some to warm up; what it trains is thrown away.

    Raises:
        TrajgenError: as `trajgen.experiments.training.train`.
    """
    from trajgen.core.files import read_metrics
    from trajgen.engine.loop import Training
    from trajgen.engine.runtime import choose_device
    from trajgen.experiments import prepare

    device = choose_device(config.device)
    planner, source, _ = prepare(config, device, console)
    stretch = max(1, steps // (ROUNDS - 1))
    every = planner.stages()
    trained = [(s, options) for s, options in zip(every, config.engine.of(every), strict=True) if s.parameters]
    stages, settings = [stage for stage, _ in trained], [options for _, options in trained]
    engine = replace(
        config.engine,
        stages={s.name: replace(o, steps=ROUNDS * stretch) for s, o in zip(stages, settings, strict=True)},
        budget=1.0,
        log_every=stretch,
        checkpoint_every=ROUNDS * stretch,
    )
    seconds: dict[str, float] = {}
    asked: dict[str, int] = {}
    with TemporaryDirectory() as place:
        Training(planner, stages, source, engine, Path(place), config.seed, device, console).run()
        lines = read_metrics(Path(place) / "metrics.jsonl")
    for stage, options in zip(stages, settings, strict=True):
        clock = [line["seconds"] for line in lines if line["stage"] == stage.name]
        taken = [now - then for then, now in pairwise(clock)]
        own = stage.name in config.engine.stages or not stage.options_of
        name = stage.name if own else str(stage.options_of)
        seconds[name] = seconds.get(name, 0.0) + min(taken) / stretch
        asked[name] = options.steps
    return Cost(seconds, asked, config.engine.budget)
