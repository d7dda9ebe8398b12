"""``trajgen plot``: pictures of a run."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from trajgen.cli.app import Words, command
from trajgen.cli.evaluate import ACTING, RunOptions, read_run
from trajgen.viz.options import PlotRequest


@dataclass(frozen=True, kw_only=True)
class PlotOptions(PlotRequest, RunOptions):
    """Options of ``trajgen plot``."""

    out: Path | None = None
    """Folder of the pictures; by default plots/ of the run or, where an option is changed, a new plots/N."""


@command("plot", PlotOptions, "plot run=runs/mage-umaze-dwell-s0 what=[usage,plans]", groups=ACTING)
def plot(words: Words) -> None:
    """Draw pictures of a run: learning curves, codes, plans, returns, attention."""
    options, overrides = read_run(words, PlotOptions)
    from trajgen.core.terminal import Terminal
    from trajgen.experiments.loading import open_run
    from trajgen.viz.plot import plot as draw

    measured = {field.name for field in fields(PlotRequest)} - {"what", "format", "title", "labels"}
    changed = bool(overrides) or any(getattr(options, name) != getattr(PlotRequest, name) for name in measured)
    run = open_run(options.run, device=options.device, imports=options.imports, overrides=overrides)
    draw(run, options.out, options, Terminal(), changed=changed)
