"""The look of all pictures: colors, type, and how a figure becomes a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

INK, SOFT, WALL, GOAL = "#22272e", "#8b949e", "#d5d9de", "#e0245e"
LINES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#5c6b7a", "#8a6d00")
"""Told apart by color-blind eyes too: those of Okabe and Ito, without yellow and black, and two more."""
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlecolor": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": "#e6e9ec",
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "text.color": INK,
    "savefig.dpi": 150,
}


Layout = Literal["constrained", "compressed"]


@contextmanager
def drawn_figure(width: float, height: float, layout: Layout = "constrained") -> Iterator[Figure]:
    """A figure of this size in inches, drawn without a display."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout=layout)
        FigureCanvasAgg(figure)
        yield figure


@contextmanager
def saved_figure(path: str | Path, width: float, height: float, layout: Layout = "constrained") -> Iterator[Figure]:
    """A figure of this size in inches, drawn without a display and written to ``path`` in the end."""
    with drawn_figure(width, height, layout) as figure:
        yield figure
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def time_colours() -> Colormap:
    """Dark to light along time; the palest end of the map is left out, since it vanishes on white."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("time", colormaps["viridis"](np.linspace(0.0, 0.88, 128)))


def shades(count: int) -> list[str]:
    """Colors of things that have an order, such as scales: dark to light."""
    from matplotlib.colors import to_hex

    return [to_hex(time_colours()(share)) for share in np.linspace(0.0, 1.0, max(count, 1))][:count]
