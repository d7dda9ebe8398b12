"""``trajgen train``: Hydra composes and sweeps."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from trajgen.cli.app import Words, command
from trajgen.cli.overrides import COMPOSITION, bare_word, options_of
from trajgen.core.checks import refuse_idle
from trajgen.core.errors import ConfigError, TrajgenError

PLAIN_PATH = r"""['"].*|[\w/.:~,+%$@|{} -]*"""
"""What Hydra's grammar reads as it stands: a path in quotes, and a list of paths for a sweep."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What the help of ``trajgen train`` shows first; Hydra reads the words."""

    recipe: str = "mage"
    """Recipe, or a FILE.yaml; see 'trajgen list recipes'."""
    data: str = "pointmaze/umaze-dwell"
    """Data preset, or a FILE.yaml; see 'trajgen list data'."""
    seed: int = 0
    """Seed of the training."""
    device: Annotated[str, "auto", "cpu", "cuda"] = "auto"
    """auto, cpu, cuda or cuda:N."""
    run_dir: Path | None = None
    """Run folder; by default runs/RECIPE-DATA-sSEED."""
    resume: bool = False
    """Continue an interrupted run."""
    imports: tuple[str, ...] = ()
    """Modules that register own components."""


@command("train", TrainOptions, "train recipe=mage engine.budget=2 tokenizer.codebook_size=256", groups=COMPOSITION)
def train(
    words: Words,
    multirun: Annotated[
        bool, typer.Option("-m", "--multirun", help="Train every combination of values, as in seed=0,1,2.")
    ] = False,
    cfg: Annotated[
        Literal["job", "hydra", "all"] | None, typer.Option("--cfg", "-c", help="Print the configuration and exit.")
    ] = None,
    config_dir: Annotated[
        Path | None, typer.Option("--config-dir", metavar="DIR", help="Folder of recipes and data of your own.")
    ] = None,
    info: Annotated[
        str | None, typer.Option("--info", metavar="WHAT", help="What Hydra knows: all, defaults, searchpath, …")
    ] = None,
    hydra_help: Annotated[bool, typer.Option("--hydra-help", help="Hydra's own help.")] = False,
) -> None:
    """Make data, train, evaluate and draw.

    With -m, hydra/launcher=joblib or submitit_slurm runs several trainings at a time.
    """
    from trajgen.config import quoted

    for number, word in enumerate(words):
        if "=" not in word and not word.startswith("~"):
            raise bare_word(word, options_of(TrainOptions), words[number + 1 :])
    words = [f"run_dir={quoted(word[8:], PLAIN_PATH)}" if word.startswith("run_dir=") else word for word in words]
    flags = {"--cfg": cfg, "--config-dir": config_dir and str(config_dir), "--info": info}
    hydra_flags = [word for flag, value in flags.items() if value for word in (flag, value)]
    run([*["--multirun"] * multirun, *["--hydra-help"] * hydra_help, *hydra_flags, *words])


def run(words: list[str]) -> None:
    """Trains what the words compose; Hydra takes over where a flag is its own."""
    from trajgen import config
    from trajgen.engine.launch import read_launch

    with _one_of_many("--multirun" in words):
        if config.is_for_hydra(words):
            config.hydra_run(words)
        composed = config.compose(words)
        refuse_idle((word.partition("=")[0].lstrip("+") for word in words), composed.policy.revise)
        if (line := config.task_line(words)) and not read_launch().rank:
            print(line)
        _train_one(composed, config.absolute_paths(words))


@contextmanager
def _one_of_many(swept: bool) -> Iterator[None]:
    """Has one process speak for all that a launcher started; another one says in a line what it alone met."""
    from trajgen.engine.launch import PeerError, read_launch

    launch = read_launch()
    try:
        if swept and launch.world_size > 1:
            raise ConfigError(
                "Processes that train together train one run.",
                got=f"-m, and {launch.world_size} processes",
                fix="one torchrun per run; or without torchrun, with hydra/launcher=submitit_slurm",
            )
        yield
    except PeerError:
        raise SystemExit(1) from None  # the first process has said why
    except TrajgenError as error:
        if launch.rank == 0:
            raise
        parts = [str(part) for part in (error.rule, error.got, error.fix) if part is not None]
        print(f"Process {launch.rank}: {' '.join(parts)}", file=sys.stderr)
        raise SystemExit(1) from None


def _train_one(config: Any, overrides: Sequence[str]) -> Path:
    from trajgen import experiments
    from trajgen.engine.launch import read_launch

    if read_launch().world_size == 1:
        _check_folders(config)
    from trajgen.core.terminal import Terminal
    from trajgen.engine.loop import StoppedError

    first = read_launch().rank == 0
    try:
        return experiments.train(config, Terminal(), shlex.join(["trajgen", "train", *overrides]))
    except StoppedError as stopped:
        if first:
            print(f"{stopped}\nThe same command with resume=true goes on.", file=sys.stderr)
        raise SystemExit(130) from None


def _check_folders(config: Any) -> None:
    """Refuses data, a run folder or a run to start from that are not there, before torch is imported."""
    from trajgen.data import store
    from trajgen.experiments.run_folder import find_folder
    from trajgen.experiments.zoo import init_folder

    store.require_here(config.data.id, config.data.maker)
    find_folder(config)
    if config.init is not None and not config.resume:  # a run that is resumed has its own checkpoint
        init_folder(config.init)
