"""What a training, a study or a search is about to do, and about how long it takes on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajgen.config import Config
from trajgen.core.sources import DrawsImages
from trajgen.core.tables import duration, share
from trajgen.core.types import Space
from trajgen.experiments.preparation import build_planner, prepare, prepare_imports
from trajgen.experiments.starting import stages_of, trained_weights

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from trajgen.engine.loop import Training

SHORTEST = 200
"""Steps of a training below which its time is not estimated: it is over as soon."""


def stage_steps(config: Config, planner: Any) -> dict[str, int]:
    """The steps of each stage that trains something."""
    stages = stages_of(planner, config.train_only)
    options = zip(stages, config.engine.of(stages), strict=True)
    return {stage.name: config.engine.steps(each) for stage, each in options if stage.parameters}


def steps_text(steps: Mapping[str, int]) -> str:
    """The steps of stages in words."""
    parts = ", ".join(f"{name.replace('_', ' ')} {number:,}" for name, number in steps.items())
    return f"{parts} steps" if parts else "nothing"


def outlook(config: Config, planner: Any, source: Any, space: Space, device: torch.device) -> str:
    """The stages of a training in a line, with the time that they take; ``planner`` is left as it is."""
    from trajgen.engine.distributed import world_size

    steps = stage_steps(config, planner)
    line = f"To train: {steps_text(steps)}"
    if config.train_only:
        line += f", weights trained: {share(*trained_weights(planner, config.train_only))}"
    if sum(steps.values()) < SHORTEST or world_size() > 1:
        return line
    another: Any = build_planner(config, space)
    another.normalizer.load_state_dict(planner.normalizer.state_dict())
    try:
        return f"{line}; {duration(estimate(config, another.to(device), source, device))} on this machine"
    except RuntimeError:  # too large for the device, which the training itself says
        return line


def estimate(config: Config, planner: Any, source: Any, device: torch.device) -> float:
    """Seconds that a training takes; its planner is changed, and is not to be used any more."""
    source = source.without_features() if isinstance(source, DrawsImages) else source
    return untrained(config, planner, source, device, compile=False).estimate()


def untrained(config: Config, planner: Any, source: Any, device: torch.device, **engine: Any) -> Training:
    """A training whose steps are to be timed, with some options of the engine changed; it writes nothing."""
    from rich.console import Console

    from trajgen.engine.loop import Training

    stages, options = stages_of(planner, config.train_only), replace(config.engine, **engine)
    return Training(planner, stages, source, options, Path(), config.seed, device, Console(quiet=True))


def estimate_cell(console: Console, *, config: Mapping[str, Any]) -> tuple[float, str]:
    """The job that estimates the seconds of a training."""
    from trajgen.engine.device import choose_device

    composed = Config.from_plain(config)
    prepare_imports(composed.imports)
    device = choose_device(composed.device)
    planner, source, _ = prepare(composed, device, console)
    seconds = estimate(composed, planner, source, device)
    return seconds, f"a training takes {duration(seconds)}"
