"""``trajgen evaluate`` and ``trajgen sample``, and how a command opens a run."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from trajgen.cli.app import Words, command
from trajgen.cli.overrides import COMPOSITION, parse, read
from trajgen.core.checks import check_device, refuse_idle
from trajgen.core.errors import ConfigError, nearest
from trajgen.core.options import entry, flat
from trajgen.experiments.options import SampleRequest

ACTING = ("sampler", "critic", "return_target", "policy", "evaluation")
"""The groups of options that help and completion name for a trained run; the others are accepted."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of every command that takes a run folder."""

    run: Path
    """Run folder, zoo/NAME of a planner that comes with trajgen (trajgen list zoo), or hf://USER/NAME."""
    device: Annotated[str, "auto", "cpu", "cuda"] = "auto"
    """auto, cpu, cuda or cuda:N."""
    imports: tuple[str, ...] = ()
    """Modules that register own components."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(RunOptions):
    """Options of ``trajgen evaluate``."""

    out: Path | None = None
    """Folder of evaluation.json, plots/ and summary.md; by default the run folder or, where an option is changed, a
    new folder in its evaluations/, named by what differs."""


@dataclass(frozen=True, kw_only=True)
class SampleOptions(SampleRequest, RunOptions):
    """Options of ``trajgen sample``."""


R = TypeVar("R", bound=RunOptions)


def read_run(words: Iterable[str], cls: type[R]) -> tuple[R, dict[str, Any]]:
    """The options of a command that takes a run, and its overrides of the run's configuration.

    Raises:
        ConfigError: if there is no such folder, or a word does not fit.
    """
    from trajgen.experiments.zoo import writable_folder

    options, rest = read(words, cls, [group for group in COMPOSITION if group != "engine"])
    check_device(options.device)
    for word in rest:
        if word.startswith("data=") and "{" not in word:
            fix = f"trajgen train {word} init={options.run}; data.KEY=VALUE changes an option"
            raise ConfigError("A run is evaluated on the task that it was trained on.", got=word, fix=fix)
    options, overrides = replace(options, run=existing(writable_folder(options.run))), parse(rest)
    if overrides:
        _check(options.run, overrides, has_imports=bool(options.imports))
    return options, overrides


def _check(folder: Path, overrides: dict[str, Any], *, has_imports: bool) -> None:
    """Raises a `ConfigError` for overrides that do nothing, or do not fit; imports no torch.

    Whether they fit is not known yet where components are not trajgen's, but a person's own.
    """
    from trajgen.config.schema import TOP, Config, merged
    from trajgen.experiments.run_folder import read_config

    plain = read_config(folder)
    refuse_idle((name for name, _ in flat(overrides)), entry(plain, ("policy", "revise")))
    if not has_imports and not plain.get("imports"):
        damaged = AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError
        with suppress(*damaged):  # loading says which file it is
            Config.from_plain(merged({key: value for key, value in plain.items() if key in TOP}, overrides))


def existing(folder: Path) -> Path:
    """A run folder; raises a `ConfigError` if there is none, with those that may be meant."""
    if os.path.lexists(folder / "config.json"):
        return folder
    from trajgen.config import zoo_files

    above = [path for path in folder.parents if folder.exists() and (path / "config.json").is_file()]
    runs = {str(path.parent) for root in (Path("runs"), folder, folder.parent) for path in root.glob("*/config.json")}
    close = nearest(str(folder), [*runs, *(f"zoo/{name}" for name in zoo_files())])
    if above:
        close = f"run={above[0]}"
    elif not runs and not close.startswith("did"):
        close = "train first: trajgen train recipe=mage; or run=zoo/mage-umaze"
    got = f"{folder}, which has no config.json" if folder.exists() else None
    raise ConfigError(f"There is no such run folder: {folder}.", got=got, fix=close)


@command("evaluate", EvaluateOptions, "evaluate run=runs/mage-umaze-dwell-s0 sampler=greedy", groups=ACTING)
def evaluate(words: Words) -> None:
    """Play episodes with a trained run, score and draw them."""
    options, overrides = read_run(words, EvaluateOptions)
    from trajgen import experiments
    from trajgen.core.terminal import Terminal

    experiments.evaluate(
        options.run, Terminal(), device=options.device, imports=options.imports, overrides=overrides, out=options.out
    )


@command("sample", SampleOptions, "sample run=runs/mage-umaze-dwell-s0 plans=4", groups=ACTING)
def sample(words: Words) -> None:
    """Draw the plans of a run for one state, scale by scale."""
    options, overrides = read_run(words, SampleOptions)
    from trajgen import experiments
    from trajgen.core.terminal import Terminal

    experiments.sample(
        options.run, Terminal(), options, device=options.device, imports=options.imports, overrides=overrides
    )
