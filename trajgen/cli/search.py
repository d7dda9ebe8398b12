"""``trajgen search``: options that Optuna proposes, trained, scored and compared."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from trajgen.cli.study import number, seeds_of, sorted_words
from trajgen.core.errors import ConfigError, nearest

SEARCH_HELP = """trajgen search search=NAME|FILE.yaml [key=value …]

  search=NAME|FILE.yaml    see 'trajgen list searches'
  trials=20                how many; more can be added to a search that is done
  seeds=[0]                of the trainings of each trial; its score is their mean
  out=DIR                  where everything is kept (studies/NAME if not given)
  workers=N                trainings at a time (one a core; one on a GPU)
  executor=NAME            inline, loky (processes), submitit (SLURM) or ray; the last two: executor.KEY=VALUE
  key=value                any option of 'trajgen train', for all trials: engine.budget=0.1, device=cpu, …

What is made large is the ratio to the controller, or the return where there is none, on tuning episodes:
evaluation.seed=10000 unless another is given, and never those that are reported. The base as it is comes
first, and the others are compared to it. The same command goes on where it was stopped."""


def search(words: list[str]) -> None:
    if "--help" in words or "-h" in words:
        print(SEARCH_HELP)
        return
    from trajgen.experiments.executors import read_executor_words

    own, rest = sorted_words(words, ("search", "trials", "seeds", "out", "workers"))
    executor, options, base = read_executor_words(rest)
    asked = _find(own.get("search")).with_overrides(base)
    changes: dict[str, Any] = {}
    if "trials" in own:
        changes["trials"] = number("trials", own["trials"])
    if "seeds" in own:
        changes["seeds"] = seeds_of(own["seeds"])
    from rich.console import Console

    from trajgen import experiments

    try:
        experiments.run_search(
            replace(asked, **changes),
            Console(),
            folder=Path(own["out"]) if "out" in own else None,
            workers=number("workers", own["workers"]) if "workers" in own else None,
            executor=executor,
            executor_options=options,
            command=shlex.join(["trajgen", "search", *words]),
        )
    except KeyboardInterrupt:
        print("The search was stopped; the same command goes on with it.", file=sys.stderr)
        raise SystemExit(130) from None


def _find(name: str | None) -> Any:
    from trajgen.config import search_files
    from trajgen.experiments.search import read_search

    files = search_files()
    if name is not None and name.endswith((".yaml", ".yml")):
        return read_search(Path(name))
    if name not in files:
        raise ConfigError(
            "Which search?" if name is None else f"There is no search '{name}'.",
            expected=", ".join(files),
            got="no search=…" if name is None else f"search={name}",
            fix=f"{nearest(name or '', files)} A path to a .yaml file of your own works too.",
        )
    return read_search(files[name])
