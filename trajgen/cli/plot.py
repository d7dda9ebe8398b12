"""``trajgen plot``: pictures of a run."""

from __future__ import annotations

from pathlib import Path

from trajgen.cli.words import key_values

PLOT_HELP = """trajgen plot run=DIR [what=NAME] [key=value …]

  what=learning            every loss of every stage over the steps
  what=usage               the share of the codebook in use and its perplexity, scale by scale
  what=plans               plans after each scale: over the map, or as curves with the data's range
  what=control             return asked for against return achieved
  what=attention           how much each scale looks at every other
  'what=[usage,plans]'     several; all that apply if not given
  seed=0                   of the first episode
  plans=4                  plans drawn from one state
  episodes=8               played for each return; read for the attention
  'returns=[10,30,50]'     returns-to-go to ask for (discounted, the data's units); quantiles of the data's
                           if not given
  sampler=…, policy.…      as for 'trajgen evaluate'
  device=auto
  imports=[my_lab.parts]
  out=DIR                  where the pictures are written: the run's plots/, where they are drawn anew, or,
                           where an option is changed, a new folder plots/N in it

A picture that a run cannot have is said in one line."""


def plot(words: list[str]) -> None:
    if "--help" in words or "-h" in words:
        print(PLOT_HELP)
        return
    from dataclasses import fields

    from rich.console import Console

    from trajgen.cli.opened import open_run
    from trajgen.core.options import structure
    from trajgen.experiments.run_folder import free_path
    from trajgen.viz.draw import PlotRequest, draw

    values = key_values(words)
    out = values.pop("out", None)
    own = {f.name: values.pop(f.name) for f in fields(PlotRequest) if f.name in values}
    if isinstance(own.get("what"), str):
        own["what"] = [own["what"]]
    request = structure(PlotRequest, own, "")
    run = open_run(values)
    changed = bool(values) or any(name != "what" for name in own)
    plots = run.folder / "plots"
    folder = Path(str(out)) if out is not None else free_path(plots) if changed else plots
    draw(run, folder, request, Console())
