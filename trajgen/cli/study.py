"""``trajgen study``: a grid of variants over seeds, trained, evaluated and compared."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from trajgen.core.errors import ConfigError, nearest

AXES = ("axis", "evaluate")
STUDY_HELP = """trajgen study [study=NAME] [axis=[…]] [key=value …]

  study=NAME|FILE.yaml     see 'trajgen list studies'
  task=NAME                of a study of several: study=paper_table task=adroit
  'axis=[prior.depth=2,4]' an axis of its own: the values of an option, or overrides, a blank between those
                           of one variant: 'axis=[schedule=unit, schedule=linear schedule.scales=3]';
                           several axes make a grid, with the study's variants too
  'evaluate=[sampler=greedy,sampler.temperature=1.0]'
                           an axis of evaluations, which need no training of their own
  reference=VARIANT        to which the others are compared (the first if not given)
  seeds=[0,1,2]
  equal=[steps,time]       compare at equal steps, at equal time of training, or both
  out=DIR                  where everything is kept (studies/NAME if not given)
  workers=N                cells at a time (one a core; one on a GPU)
  probe=50                 steps of each stage that are timed for equal time
  executor=NAME            inline, loky (processes), submitit (SLURM) or ray; the last two: executor.KEY=VALUE
  key=value                any option of 'trajgen train', for all variants: engine.budget=0.1, device=cpu, …

The same command goes on where it was stopped: finished cells are kept, failed ones are tried again.
The folder holds table.md, plot.png, results.json, commands.sh (each cell's commands), study.json (what was
asked), cells/ (a run folder each) and jobs/ (what each cell said)."""


def study(words: list[str]) -> None:
    if "--help" in words or "-h" in words:
        print(STUDY_HELP)
        return
    axes = [word.partition("=")[::2] for word in words if word.partition("=")[0] in AXES]
    others = [word for word in words if word.partition("=")[0] not in AXES]
    own, base = sorted_words(others, ("study", "task", "reference", "seeds", "equal", "out", "workers", "probe"))
    from trajgen.experiments.executors import read_executor_words

    executor, options, base = read_executor_words(base)
    asked = _asked(own, axes, base)
    from rich.console import Console

    from trajgen import experiments
    from trajgen.experiments.study import PROBE

    try:
        experiments.run_study(
            asked,
            Console(),
            folder=Path(own["out"]) if "out" in own else None,
            workers=number("workers", own["workers"]) if "workers" in own else None,
            probe=number("probe", own["probe"]) if "probe" in own else PROBE,
            executor=executor,
            executor_options=options,
            command=shlex.join(["trajgen", "study", *words]),
        )
    except KeyboardInterrupt:
        print("The study was stopped; the same command goes on with it.", file=sys.stderr)
        raise SystemExit(130) from None


def sorted_words(words: list[str], keys: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """The values of a command's own keys, and the rest."""
    own: dict[str, str] = {}
    base: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals and not word.startswith("~"):
            name = keys[0]
            fix = f"{name}=NAME, for a shipped {name}"
            raise ConfigError("Options are written key=value.", expected="key=value", got=word, fix=fix)
        if key in keys:
            own[key] = value
        else:
            base.append(word)
    return own, base


def _asked(own: dict[str, str], axes: list[tuple[str, str]], base: list[str]) -> Any:
    """The study that the words ask for."""
    from trajgen.experiments.definition import Study, grid, grid_name, read_axis

    parts = [read_axis(text, evaluate=key == "evaluate") for key, text in axes]
    changes: dict[str, Any] = {}
    if "seeds" in own:
        changes["seeds"] = seeds_of(own["seeds"])
    if "equal" in own:
        changes["equal"] = tuple(_items(own["equal"]))
    if "study" in own:
        asked = _find(own["study"], own.get("task"))
        if parts:
            together = grid([asked.variants, *parts])
            first = [asked.reference, *(next(iter(part)) for part in parts)]
            asked = replace(asked, variants=together, reference=", ".join(first))
    elif parts:
        asked = Study(name=grid_name(parts), variants=grid(parts))
    else:
        from trajgen.config import study_files

        raise ConfigError(
            "Which study?",
            expected=", ".join(study_files()),
            got="neither study=… nor axis=[…]",
            fix="study=num_scales, or an axis of your own: 'axis=[prior.depth=2,4]'",
        )
    if "reference" in own:
        changes["reference"] = own["reference"]
    return replace(asked, **changes).with_overrides(base)


def _find(name: str, task: str | None) -> Any:
    from trajgen.config import study_files
    from trajgen.experiments.definition import read_study

    files = study_files()
    if name.endswith((".yaml", ".yml")):
        return read_study(Path(name), task)
    if name not in files:
        raise ConfigError(
            f"There is no study '{name}'.",
            expected=", ".join(files),
            got=f"study={name}",
            fix=f"{nearest(name, files)} A path to a .yaml file of your own works too.",
        )
    return read_study(files[name], task)


def _items(text: str) -> list[str]:
    return [item.strip(" '\"") for item in text.strip().removeprefix("[").removesuffix("]").split(",") if item.strip()]


def seeds_of(text: str) -> tuple[int, ...]:
    """The seeds of ``[0,1,2]``."""
    items = _items(text)
    if not all(item.isdecimal() for item in items):
        raise ConfigError(
            "Seeds are different whole numbers from 0 on, at least one.",
            expected="seeds=[0,1,2]",
            got=f"seeds={text}",
            fix="name each seed once",
        )
    return tuple(int(item) for item in items)


def number(key: str, text: str) -> int:
    """A whole number from 1 on, as the value of ``key``."""
    if not text.isdecimal() or not int(text):
        raise ConfigError(
            f"'{key}' is a whole number, at least 1.", expected=f"{key}=2", got=f"{key}={text}", fix="or leave it out"
        )
    return int(text)
