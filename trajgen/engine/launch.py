"""What torchrun or SLURM says about the processes that train together; read without importing torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from trajgen.core.errors import ConfigError, TrajgenError

PORTS = range(20_000, 30_000)
"""Where the processes of a SLURM job meet; which one follows from the job's number."""


class ElsewhereError(TrajgenError):
    """This process ends because another one cannot go on; that one says why."""


@dataclass(frozen=True)
class Launch:
    """One process among those that train together; by default the only one."""

    rank: int = 0
    world: int = 1
    local: int = 0
    """Its number on its own machine, which is that of the device it takes."""
    meeting: str = "env://"
    """Where the processes find each other, as torch.distributed writes it."""


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """This process, as its launcher describes it: torchrun (or submitit's export of the same names), or srun.

    A batch script of SLURM that is not started by srun is one process, however many tasks the job has.

    Raises:
        ConfigError: if what the launcher says is incomplete.
    """
    try:
        if "RANK" in environment and "WORLD_SIZE" in environment:
            rank, world = int(environment["RANK"]), int(environment["WORLD_SIZE"])
            if world > 1:
                _ = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
            found = Launch(rank, world, int(environment["LOCAL_RANK"]) if world > 1 else 0)
        elif int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            job = int(environment["SLURM_JOB_ID"])
            nodes = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]
            found = Launch(
                int(environment["SLURM_PROCID"]),
                int(environment["SLURM_STEP_NUM_TASKS"]),
                int(environment["SLURM_LOCALID"]),
                f"tcp://{first_node(nodes)}:{PORTS[job % len(PORTS)]}",
            )
        else:
            return Launch()
        if not 0 <= found.rank < found.world:
            raise ValueError(f"rank {found.rank} of {found.world}")
    except (KeyError, ValueError) as error:
        raise ConfigError(
            "Processes that train together are told apart by their environment.",
            expected="RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, or what srun sets",
            got=f"{type(error).__name__}: {error}",
            fix="start them with torchrun --nproc-per-node=N -m trajgen train …, or with srun",
        ) from error
    return found


def first_node(nodes: str) -> str:
    """The first name of a list in SLURM's short form: node[03-05,9],other is node03 and so on."""
    head, bracket, rest = nodes.partition("[")
    if not bracket or "," in head:
        return head.partition(",")[0]
    numbers, _, tail = rest.partition("]")
    return head + numbers.replace("-", ",").partition(",")[0] + tail.partition(",")[0]
