"""``trajgen train``: Hydra composes and sweeps."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from trajgen.core.errors import TrajgenError

TRAIN_HELP = """trajgen train [recipe=NAME] [data=NAME] [KIND=NAME] [key=value …]

  recipe=NAME|FILE.yaml    see 'trajgen list recipes'
  data=NAME|FILE.yaml      see 'trajgen list data'
  engine.budget=2          twice the steps of every stage
  run_dir=DIR              where the run is kept (runs/RECIPE-DATA-sSEED if not given)
  resume=true              go on with an interrupted run
  device=cpu|cuda|auto
  imports=[my_lab.parts]   own modules that register components

Hydra composes: '--cfg job' prints the whole configuration, '-m seed=0,1,2' runs a sweep,
'--hydra-help' says more."""


def train(words: list[str]) -> None:
    if "--help" in words or "-h" in words:
        print(TRAIN_HELP)
        return
    from trajgen import config

    words, own = config.own_files(words)
    config.store_groups(own["recipe"], own["data"])
    config.check_choices(words, own["recipe"], own["data"])
    _hydra_main(words)


def _hydra_main(words: list[str]) -> None:
    """Runs Hydra's own main, so that sweeps, launchers, --cfg and completion stay; its errors become ours."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf.errors import OmegaConfBaseException

    from trajgen import config

    failed: list[TrajgenError] = []

    def job(composed: Any) -> None:
        try:
            _train_one(config.from_hydra(composed), HydraConfig.get().overrides.task)
        except TrajgenError as error:
            if HydraConfig.get().mode is not RunMode.RUN:  # of a sweep, perhaps in another process
                raise
            failed.append(error)  # raised past Hydra, which would add words of its own

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


def _train_one(config: Any, overrides: Sequence[str]) -> None:
    from rich.console import Console

    from trajgen import runs
    from trajgen.engine.loop import Interrupted

    try:
        runs.train(config, Console(), shlex.join(["trajgen", "train", *overrides]))
    except Interrupted as stopped:
        print(f"{stopped}\nThe same command with resume=true goes on.", file=sys.stderr)
        raise SystemExit(130) from None
