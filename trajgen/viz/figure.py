"""The look of all pictures: colors, type, and how a figure becomes a file, by Agg without pyplot or a display."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from trajgen.core.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

INK, SOFT, GRID, WALL, GOAL = "#22272e", "#8b949e", "#e6e9ec", "#d5d9de", "#e0245e"
LINES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#5c6b7a", "#8a6d00")
"""Told apart by color-blind eyes too: those of Okabe and Ito, without yellow and black, and two more."""
DASHED: Any = (0, (4, 3))
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlecolor": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.color": INK,
    "text.parse_math": False,  # names of runs, stages and losses may hold dollar signs
    "savefig.dpi": 150,
    "pdf.fonttype": 42,  # as text that journals accept, and that can be edited
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class Captions:
    """What the pictures drawn meanwhile say instead of their own words.

    Args:
        title: above the figure.
        labels: a text by the one that it replaces: of a curve, a panel, a tick; ``x`` and ``y`` are those of the axes.
    """

    title: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


_CAPTIONS: ContextVar[Captions | None] = ContextVar("captions", default=None)


@contextmanager
def captions(title: str | None, labels: Mapping[str, str] | None) -> Iterator[None]:
    """Gives the pictures that are drawn within it another title and other labels."""
    token = _CAPTIONS.set(Captions(title, labels or {}))
    try:
        yield
    finally:
        _CAPTIONS.reset(token)


def _write_captions(figure: Figure, texts: Captions | None) -> None:
    from matplotlib.text import Text

    if texts is None:
        return
    labels = texts.labels
    for ax in figure.axes:
        for axis, key in ((ax.xaxis, "x"), (ax.yaxis, "y")):
            if axis.get_label_text() and key in labels:
                axis.set_label_text(labels[key])
            ticks = [label.get_text() for label in axis.get_ticklabels()]
            if {*ticks} & {*labels}:
                axis.set_ticks(axis.get_ticklocs(), [labels.get(text, text) for text in ticks])
    for artist in figure.findobj(Text):
        if isinstance(artist, Text) and artist.get_text() in labels:
            artist.set_text(labels[artist.get_text()])
    if texts.title is not None:
        for ax in figure.axes if len(figure.axes) == 1 else []:
            for place in ("left", "center", "right"):
                ax.set_title("", loc=place)
        figure.suptitle(texts.title, x=0.02, ha="left", fontsize=10, fontweight="bold")


@contextmanager
def new_figure(
    width: float, height: float, path: Path | None = None, layout: Literal["constrained", "compressed"] = "constrained"
) -> Iterator[Figure]:
    """A figure of this size in inches, written to ``path`` in the end if one is given: PNG, PDF or SVG by its name.

    It is there whole or not at all.
    """
    backend = os.environ.pop("MPLBACKEND", None)  # a notebook's may not be installed here, and its import would fail
    try:
        matplotlib = import_module("matplotlib")
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout=layout)
        FigureCanvasAgg(figure)
        yield figure
        _write_captions(figure, _CAPTIONS.get())
        if path is not None:
            with replacing(path) as partial:
                write(figure, partial)


def write(figure: Figure, path: Path) -> None:
    """Writes a figure; a PNG is drawn once, where savefig draws a figure that has a layout twice."""
    if path.suffix == ".png":
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        figure.set_dpi(STYLE["savefig.dpi"])
        FigureCanvasAgg(figure).print_png(path)
    else:
        figure.savefig(path)


def log_scale(ax: Axes, name: Literal["x", "y"] = "y") -> None:
    """Makes an axis logarithmic, with labels that are no formulas."""
    from matplotlib.ticker import LogFormatter

    class PlainFormatter(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    ax.set(**{f"{name}scale": "log"})
    axis = ax.xaxis if name == "x" else ax.yaxis
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(PlainFormatter())
    ax.grid(True, which="major", axis=name)


def square_axes(ax: Axes, values: ArrayLike, margin: float = 0.05, **identity: Any) -> None:
    """Gives both axes the range of the values, and draws the line on which they are equal."""
    low, high = float(np.min(values)), float(np.max(values))
    room = margin * max(high - low, 1e-6)
    ends = (low - room, high + room)
    ax.plot(ends, ends, color=SOFT, lw=1, ls=DASHED, zorder=1, **identity)
    ax.set(xlim=ends, ylim=ends, aspect="equal")
    ax.grid(True)


def most_varied(states: np.ndarray, count: int) -> np.ndarray:
    """The indices of the features (…, S) that vary most, ascending."""
    spread = states.reshape(-1, states.shape[-1]).std(0)
    return np.sort(np.argsort(-spread, kind="stable")[:count])


def time_colors() -> Colormap:
    """Dark to light along time; the palest end of the map is left out, since it vanishes on white."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("time", colormaps["viridis"](np.linspace(0.0, 0.88, 128)))
