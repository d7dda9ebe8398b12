"""``trajgen train``: Hydra composes and sweeps."""

from __future__ import annotations

import os
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
MULTIRUN = ("-m", "--multirun")


def train(words: list[str]) -> None:
    if "--help" in words or "-h" in words:
        print(TRAIN_HELP)
        return
    from trajgen import config

    again = [_from_anywhere(word) for word in words]
    words, own = config.own_files(words)
    typed = dict(zip(words, again, strict=True))
    config.store_groups(own["recipe"], own["data"])
    config.check_choices(words, own["recipe"], own["data"])
    with _one_of_many(any(word in MULTIRUN for word in words)):
        _hydra_main(words, typed)


def _from_anywhere(word: str) -> str:
    """A word as a command repeats it: a file of one's own by its whole path, which any folder can use."""
    key, _, value = word.partition("=")
    own = key in ("recipe", "data") and value.endswith((".yaml", ".yml"))
    return f"{key}={Path(value).absolute()}" if own else word


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


def _hydra_main(words: list[str], typed: dict[str, str]) -> None:
    """Runs Hydra's own main, so that sweeps, launchers, --cfg and completion stay; its errors become ours.

    Args:
        words: for Hydra.
        typed: for each of them, the one that repeats it in a command.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf.errors import OmegaConfBaseException

    from trajgen import config
    from trajgen.experiments.results import score

    failed: list[TrajgenError] = []

    def job(composed: Any) -> float | None:
        try:
            given = [typed.get(word, word) for word in HydraConfig.get().overrides.task]
            folder = _train_one(config.from_hydra(composed), given)
            return None if HydraConfig.get().mode is RunMode.RUN else score(folder)
        except TrajgenError as error:
            if HydraConfig.get().mode is not RunMode.RUN:  # of a sweep, perhaps in another process
                raise
            failed.append(error)  # raised past Hydra, which would add words of its own
            return None

    decorated = hydra.main(version_base="1.3", config_path=None, config_name=config.ROOT)(job)
    before, sys.argv = sys.argv, ["trajgen train", *words]
    full = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print a short traceback and exit on its own
    try:
        decorated()
        if failed:
            raise failed[0]
    except (HydraException, OmegaConfBaseException) as error:
        raise config.explain(error, words) from error
    finally:
        sys.argv = before
        os.environ.pop("HYDRA_FULL_ERROR") if full is None else os.environ.update(HYDRA_FULL_ERROR=full)


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
