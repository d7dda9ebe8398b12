"""``trajgen plot``: pictures of a run."""

from __future__ import annotations

from pathlib import Path

from trajgen.cli.acting import run_arguments
from trajgen.cli.words import key_values

PLOT_HELP = """trajgen plot run=DIR [what=NAME] [key=value …]

  what=learning            every loss of every stage over the steps
  what=usage               the share of the codebook in use and its perplexity, scale by scale
  what=plans               plans after each scale: over the map, or as curves with the data's range
  what=control             target return against return achieved
  what=attention           how much each scale attends to every other
  'what=[usage,plans]'     several; all that apply if not given
  seed=0                   of the first episode
  plans=4                  plans drawn from one state
  episodes=8               played for each target return; read for the attention
  'returns=[10,30,50]'     target returns-to-go (discounted, the data's units); quantiles of the data's
                           if not given
  sampler=…, policy.…      as for 'trajgen evaluate'
  device=auto
  imports=[my_lab.parts]
  out=DIR                  where the pictures are written: the run's plots/, where they are drawn anew, or,
                           where an option is changed, a new folder plots/N in it

Why a run cannot have a picture is printed in one line."""


def plot(words: list[str]) -> None:
    if "--help" in words or "-h" in words:
        print(PLOT_HELP)
        return
    from dataclasses import fields

    from rich.console import Console

    from trajgen.core.options import structure
    from trajgen.viz.plot import PlotRequest, plot
    from trajgen.viz.run import open_run

    values = key_values(words)
    out = values.pop("out", None)
    options = {f.name: values.pop(f.name) for f in fields(PlotRequest) if f.name in values}
    if isinstance(options.get("what"), str):
        options["what"] = [options["what"]]
    request = structure(PlotRequest, options, "")
    folder, device, imports = run_arguments(values)
    run = open_run(folder, device=device, imports=imports, overrides=values)
    changed = bool(values) or bool({*options} - {"what"})
    plot(run, None if out is None else Path(str(out)), request, Console(), changed=changed)
