"""The environment variables by which torchrun or SLURM describe a process; read without importing torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from trajgen.core.errors import ConfigError, TrajgenError

PORTS = range(20_000, 30_000)
"""Where the processes of a SLURM job meet; the job's number chooses one."""


class PeerError(TrajgenError):
    """This process ends because another one cannot go on, which says why."""


@dataclass(frozen=True)
class Launch:
    """One process among those that train together; by default the only one."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Its number on its own machine, which is that of its device."""
    init_method: str = "env://"
    """Where the processes meet, as torch.distributed writes it."""


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """This process as its launcher describes it: torchrun (or submitit's export of the same variables), or srun.

    A batch script of SLURM that is not started by srun is one process, however many tasks the job has.

    Raises:
        ConfigError: if the variables are incomplete.
    """
    try:
        if "RANK" in environment and "WORLD_SIZE" in environment:
            rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
            if size > 1:
                _ = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
            launch = Launch(rank, size, int(environment["LOCAL_RANK"]) if size > 1 else 0)
        elif int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            nodes = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]
            port = PORTS[int(environment["SLURM_JOB_ID"]) % len(PORTS)]
            launch = Launch(
                int(environment["SLURM_PROCID"]),
                int(environment["SLURM_STEP_NUM_TASKS"]),
                int(environment["SLURM_LOCALID"]),
                f"tcp://{first_node(nodes)}:{port}",
            )
        else:
            return Launch()
        if not 0 <= launch.rank < launch.world_size:
            raise ValueError(f"rank {launch.rank} of {launch.world_size}")
    except (KeyError, ValueError) as error:
        raise ConfigError(
            "The launcher's environment variables are incomplete.",
            expected="RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, or what srun sets",
            got=f"{type(error).__name__}: {error}",
            fix="start the processes with torchrun --nproc-per-node=N -m trajgen train …, or with srun",
        ) from error
    return launch


def first_node(nodes: str) -> str:
    """The first name of a list in SLURM's short form: node[03-05,9],other is node03 and so on."""
    head, bracket, rest = nodes.partition("[")
    if not bracket or "," in head:
        return head.partition(",")[0]
    numbers, _, tail = rest.partition("]")
    return head + numbers.replace("-", ",").partition(",")[0] + tail.partition(",")[0]
