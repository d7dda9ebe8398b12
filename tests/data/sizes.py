"""Data sets of a given size, and what a process reaches with one under a limit of its memory."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from small_sets import episode, save, unbounded

from trajgen.data import minari
from trajgen.data.options import DataOptions
from trajgen.data.windows import Windows, fit_normalizer

ID = "tests/large-v0"
STATE, ACTION = 59, 4
"""With the reward 64 numbers a step: 256 bytes."""


def write(megabytes: int, steps: int = 4000) -> None:
    """Writes a set of this size in float32, every step of which is different."""

    def episodes() -> Iterator[dict[str, Any]]:
        rows = np.linspace(-1, 1, (steps + 1) * STATE, dtype=np.float32).reshape(-1, STATE)
        for number in range(megabytes * 2**20 // (256 * steps)):
            shift = np.float32(number)
            actions, rewards = np.cos(rows[1:, :ACTION] + shift), rows[1:, 0].astype(np.float64)
            yield episode(rows + shift, actions, rewards, terminated=number % 2 == 0)

    save(ID, episodes(), unbounded(STATE, np.float32), ACTION)


def status(entry: str) -> int:
    """Bytes of an entry of this process's status, as Linux counts them."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(entry + ":"))


def options(memory_map: bool | None) -> DataOptions:
    """How the set is read."""
    return DataOptions(id=ID, horizon=8, stride=4, chunk=8, memory_map=memory_map)


def train_on(limit: int, memory_map: bool | None, batches: int) -> dict[str, Any]:
    """Loads the set, fits a normalizer and draws batches, with no more than ``limit`` bytes beyond what was imported.

    RLIMIT_DATA bounds what a process allocates; RLIMIT_AS would count torch's reservations and the mapped file.
    """
    torch.set_num_threads(1)
    imported = status("VmData")
    limit += imported
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    before = status("VmRSS")
    try:
        choice = options(memory_map)
        episodes = minari.load(ID, choice)
        source = Windows(episodes, choice, fit_normalizer(episodes, choice))
        total, peak = 0.0, 0
        for step in range(batches):
            total += float(source.batch(step, 64).states.double().sum())
            peak = max(peak, status("VmRSS"))
    except (MemoryError, RuntimeError) as error:  # torch's own allocator raises the second
        return {"failed": f"{type(error).__name__}: {error}", "imported": imported}
    return {"steps": episodes.steps, "sum": total, "held": peak - before, "mapped": str(type(episodes.states).__name__)}


if __name__ == "__main__":
    size, *tries = sys.argv[1:]
    for mapping, many in zip(tries[::2], tries[1::2], strict=True):
        if child := os.fork():  # each with a limit of its own
            os.waitpid(child, 0)
            continue
        print(json.dumps(train_on(int(size), {"auto": None, "true": True, "false": False}[mapping], int(many))))
        sys.exit()
