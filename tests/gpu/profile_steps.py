"""Where the time of training steps goes on a device: kernels, launches, and how long the device waits.

usage: python tests/gpu/profile_steps.py FILE.json [WORD …], with DEVICE and REPEATS in the environment
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from trajgen import experiments
from trajgen.bench.timing import machine, synchronize
from trajgen.config import compose
from trajgen.core.sources import source_of
from trajgen.engine.device import choose_device, fast_matmul
from trajgen.engine.loop import Training
from trajgen.engine.optimization import Optimization
from trajgen.engine.step import Timer

WARM_UP = 6
"""Steps before those that are measured; a captured step is captured within them."""
PROFILED = 3


def measured(call: Callable[[], object], device: torch.device, steps: int) -> dict[str, Any]:
    """Milliseconds of a call; on CUDA also those of the device, its kernels, and the host's launches."""
    for _ in range(WARM_UP):
        call()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(steps):
        call()
    synchronize(device)
    wall = 1e3 * (time.perf_counter() - start) / steps
    if device.type != "cuda":
        return {"ms": wall}
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(PROFILED):
            call()
        synchronize(device)
    busy, kernels, launches = 0.0, 0, Counter[str]()
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            busy, kernels = busy + event.time_range.elapsed_us() / 1e3 / PROFILED, kernels + 1
        elif event.name.startswith("cuda"):
            launches[event.name] += 1
    calls = {name: number / PROFILED for name, number in launches.most_common(8)}
    return {"ms": wall, "device_ms": busy, "waits": 1 - busy / wall, "kernels": kernels / PROFILED, "calls": calls}


def main(file: str, *words: str) -> None:
    device, steps = choose_device(os.environ.get("DEVICE", "cuda")), int(os.environ.get("REPEATS", "50"))
    config, console = compose(["recipe=mage", f"device={device}", *words]), Console(stderr=True)
    planner, source, _ = experiments.prepare(config, device, console)
    stages, figures = planner.stages(), {}
    with tempfile.TemporaryDirectory() as folder, fast_matmul(device):
        training = Training(planner, stages, source, config.engine, Path(folder), 0, device, console)
        for stage, settings in zip(stages, training.settings, strict=True):
            if stage.parameters:
                training._begin(stage, settings)
                optimization = Optimization(planner, stage, settings, 1000)
                take, timer, numbers = (
                    training._step_of(stage, optimization, source_of(stage, source), settings.batch_size),
                    Timer(device),
                    count(),
                )

                def step(take: Any = take, timer: Timer = timer, numbers: Any = numbers) -> None:
                    number = next(numbers)
                    take(number, number, timer)

                figures[stage.name] = measured(step, device, steps)
    Path(file).write_text(json.dumps({"words": words, "machine": machine(device), "stages": figures}, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
