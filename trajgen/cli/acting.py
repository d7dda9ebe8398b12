"""``trajgen evaluate`` and ``trajgen sample``: what a trained run does."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from trajgen.cli.words import key_values, take_imports
from trajgen.core.errors import ConfigError, nearest
from trajgen.core.options import structure

EVALUATE_HELP = """trajgen evaluate run=DIR [key=value …]

  evaluation.episodes=48   evaluation.seed=0 (of the first episode)
  policy.replan_interval=4          environment steps between plans
  sampler=greedy           any sampler; sampler.temperature=0.5, sampler.guidance=1
  return_target=constant return_target.value=50
  device=auto
  imports=[my_lab.parts]
  out=DIR                  where evaluation.json, plots/ and summary.md are written: the run folder, or,
                           where an option is changed, a new folder evaluations/N in it"""

SAMPLE_HELP = """trajgen sample run=DIR [key=value …]

  seed=0                   episode whose first state and goal the plans are made for
  state=[x,y,vx,vy]        another state to plan from; goal=[x,y] another goal
  return=50                return-to-go to ask for (discounted, the data's units); the target's own if not given
  plans=8                  how many plans
  sampler=…                as for 'trajgen evaluate'

Draws the plans after each scale into plots/, and prints the condition error."""


def evaluate(words: list[str]) -> None:
    if "--help" in words or "-h" in words:
        print(EVALUATE_HELP)
        return
    from rich.console import Console

    from trajgen import experiments

    values = key_values(words)
    folder, device, imports = run_arguments(values)
    out = values.pop("out", None)
    experiments.evaluate(
        folder,
        Console(),
        device=device,
        imports=imports,
        overrides=values,
        out=None if out is None else Path(str(out)),
    )


def sample(words: list[str]) -> None:
    if "--help" in words or "-h" in words:
        print(SAMPLE_HELP)
        return
    from rich.console import Console

    from trajgen import experiments

    values = key_values(words)
    folder, device, imports = run_arguments(values)
    if "return" in values:  # a word that Python keeps for itself
        values["returns"] = values.pop("return")
    own = {f.name: values.pop(f.name) for f in fields(experiments.SampleRequest) if f.name in values}
    request = structure(experiments.SampleRequest, own, "")
    experiments.sample(folder, Console(), request, device=device, imports=imports, overrides=values)


def run_arguments(values: dict[str, Any]) -> tuple[Path, str, tuple[str, ...]]:
    """Takes run, device and imports out of the values."""
    if "run" not in values:
        raise ConfigError(
            "Which run?", expected="run=DIR", got="no run=…", fix="run=runs/mage-umaze-dwell-s0, for example"
        )
    folder = Path(str(values.pop("run")))
    if not folder.is_dir():
        beside = [path.name for path in folder.parent.glob("*/")]
        raise ConfigError(
            "There is no such run folder.",
            expected="a folder that 'trajgen train' made",
            got=f"run={folder}",
            fix=nearest(folder.name, beside) if beside else "train first: trajgen train recipe=mage",
        )
    return folder, str(values.pop("device", "auto")), take_imports(values)
