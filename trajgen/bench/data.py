"""How fast a data set is read, and how fast batches are made of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from rich.console import Console

from trajgen import experiments
from trajgen.bench.request import BenchRequest
from trajgen.bench.timing import TIMES, timed
from trajgen.core.tables import Table
from trajgen.experiments.preparation import with_features


def run(request: BenchRequest, console: Console) -> None:
    """Times loading a data set and drawing batches of windows; makes the set first where it is not there yet."""
    config, device = request.load()
    stderr = Console(stderr=True)
    with console.status("timing"):
        experiments.load_episodes(config, stderr)  # makes the set if need be, and reads the disk into memory
        start = time.perf_counter()
        episodes = experiments.load_episodes(config, stderr)
        seconds = time.perf_counter() - start
        _, windows = experiments.ready(config, with_features(config, episodes), device, stderr)
        steps = count()

        def draw(size: int) -> Callable[[], object]:
            return lambda: windows.batch(next(steps), size)

        timings = {size: timed(draw(size), device, request.options.repeats) for size in request.options.batch}
    rows = [[f"batch of {b}", *timing.cells(), f"{1e3 * b / timing.median:,.0f}"] for b, timing in timings.items()]
    figures: list[Mapping[str, Any]] = [{"name": "batch", "batch": b, **t.to_dict()} for b, t in timings.items()]
    figures.append({"name": "load", "seconds": seconds, "steps": episodes.steps})
    table = Table(["windows", *TIMES, "windows/s"], rows)
    title = f"{config.data.id}: {episodes.steps:,} steps"
    request.report(console, title, table, figures, device)
    console.print(f"loaded in {seconds:.2f} s, {episodes.steps / seconds:,.0f} steps/s", highlight=False)
