"""``trajgen plot``: pictures of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from trajgen.cli.app import Words, command
from trajgen.cli.evaluate import ACTING, RunOptions, open_run, read_run
from trajgen.cli.overrides import select


@dataclass(frozen=True, kw_only=True)
class PlotOptions(RunOptions):
    """Options of ``trajgen plot``."""

    what: Annotated[tuple[str, ...], "learning", "usage", "plans", "control", "attention"] = ()
    """Pictures: learning (losses), usage (of the codebook), plans (after each scale), control (requested and achieved
    return), attention (between scales); by default all that apply."""
    seed: int = 0
    """Seed of the first episode."""
    plans: int = 4
    """Plans drawn from one state."""
    episodes: int = 8
    """Episodes for each return, and for the attention."""
    returns: tuple[float, ...] = ()
    """Returns-to-go to condition on, discounted, in the units of the data; by default quantiles of the data's."""
    format: Literal["png", "pdf", "svg"] = "png"
    """Of the files."""
    title: str | None = None
    """Above each picture."""
    labels: dict[str, str] | None = None
    """Texts by those that they replace, 'labels={total: sum of losses, x: training step}'; x and y are the axes."""
    out: Path | None = None
    """Folder of the pictures; by default plots/ of the run or, where an option is changed, a new plots/N."""


@command("plot", PlotOptions, "plot run=runs/mage-umaze-dwell-s0 what=[usage,plans]", groups=ACTING)
def plot(words: Words) -> None:
    """Draw pictures of a run: learning curves, codes, plans, returns, attention."""
    options, overrides = read_run(words, PlotOptions)
    from trajgen.core.terminal import Terminal
    from trajgen.viz.plot import PlotRequest
    from trajgen.viz.plot import plot as draw

    request, default = select(options, PlotRequest), PlotRequest()
    changed = bool(overrides) or replace(request, what=(), format="png", title=None, labels=None) != default
    draw(open_run(options, overrides), options.out, request, Terminal(), changed=changed)
