"""Where the time of a training step goes, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trajgen import experiments
from trajgen.bench.request import BenchRequest
from trajgen.bench.timing import Timing
from trajgen.core.tables import Table
from trajgen.experiments.outlook import untrained

if TYPE_CHECKING:
    from rich.console import Console

PARTS = ("data", "forward", "backward", "optimizer")


def run(request: BenchRequest, console: Console) -> None:
    """Times training steps of each stage, as the engine takes them; this trains the planner.

    In a step by CUDA graphs the forward and the backward pass are one graph.
    """
    config, device = request.load()
    planner, source, _ = experiments.prepare(config, device, console)
    training = untrained(config, planner, source, device)
    with console.status("timing"):
        timings = training.time_steps(request.options.repeats)
    sizes = {stage.name: each.batch_size for stage, each in zip(training.stages, training.settings, strict=True)}
    rows: list[list[str]] = []
    figures: list[Mapping[str, Any]] = []
    kinds = set()
    for name, steps in timings.items():
        parts = {part: Timing(tuple(1e3 * step[part] for step in steps)) for part in PARTS}
        is_captured = not parts["backward"].median
        kinds.add("by CUDA graphs, backward in forward" if is_captured else "kernel by kernel")
        total = sum(timing.median for timing in parts.values())
        medians = ["–" if part == "backward" and is_captured else f"{t.median:.3g}" for part, t in parts.items()]
        rows.append([name, str(sizes[name]), *medians, f"{total:.3g}", f"{1e3 * sizes[name] / total:,.0f}"])
        figures += [{"name": name, "batch": sizes[name], "part": part, **t.to_dict()} for part, t in parts.items()]
    title = f"{config.recipe} on {config.data.id}: a training step, {' or '.join(sorted(kinds))}, median ms"
    request.report(console, title, Table(["stage", "batch", *PARTS, "step", "windows/s"], rows), figures, device)
