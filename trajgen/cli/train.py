"""``trajgen train``: Hydra composes and sweeps."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trajgen.core.errors import ConfigError, TrajgenError

TRAIN_HELP = """trajgen train [recipe=NAME] [data=NAME] [KIND=NAME] [key=value …]

  recipe=NAME|FILE.yaml    see 'trajgen list recipes'
  data=NAME|FILE.yaml      see 'trajgen list data'
  engine.budget=2          twice the steps of every stage
  run_dir=DIR              where the run is kept (runs/RECIPE-DATA-sSEED if not given)
  resume=true              go on with an interrupted run
  device=cpu|cuda|auto
  imports=[my_lab.parts]   own modules that register components

  -m seed=0,1,2            a run for each value, one after the other, and a table of them;
                           hydra/launcher=joblib or submitit_slurm runs several at a time

Hydra composes: '--cfg job' prints the whole configuration, '--hydra-help' says more."""


def train(words: list[str]) -> None:
    if "--help" in words or "-h" in words:
        print(TRAIN_HELP)
        return
    from trajgen import config

    with _one_of_many("-m" in words or "--multirun" in words):
        if config.is_for_hydra(words):
            config.hydra_run(words)
        _train_one(config.compose(words), config.absolute_paths(words))


@contextmanager
def _one_of_many(swept: bool) -> Iterator[None]:
    """Has one process speak for all that a launcher started; another one says in a line what it alone met."""
    from trajgen.engine.launch import PeerError, read_launch

    launch = read_launch()
    try:
        if swept and launch.world_size > 1:
            raise ConfigError(
                "Processes that train together train one run.",
                expected="no -m under torchrun or srun",
                got=f"-m, and {launch.world_size} processes",
                fix="one torchrun per run; or without torchrun, with hydra/launcher=submitit_slurm",
            )
        yield
    except PeerError:
        raise SystemExit(1) from None  # the first process has said why
    except TrajgenError as error:
        if launch.rank == 0:
            raise
        print(f"Process {launch.rank}: {error.rule} {error.got}", file=sys.stderr)
        raise SystemExit(1) from None


def _train_one(config: Any, overrides: Sequence[str]) -> Path:
    from rich.console import Console

    from trajgen import experiments
    from trajgen.engine.launch import read_launch
    from trajgen.engine.loop import Interrupted

    first = read_launch().rank == 0
    try:
        return experiments.train(config, Console(), shlex.join(["trajgen", "train", *overrides]))
    except Interrupted as stopped:
        if first:
            print(f"{stopped}\nThe same command with resume=true goes on.", file=sys.stderr)
        raise SystemExit(130) from None
