"""The look of all pictures: colours, type, and how a figure becomes a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, SOFT, WALL, GOAL = "#22272e", "#8b949e", "#d5d9de", "#e0245e"
LINES = ("#2f6fb5", "#e08a1e", "#3a9d6b", "#9b5fc0", "#c44536", "#5c6b7a", "#b8a106", "#1aa6b7")
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


@contextmanager
def saved_figure(
    path: str | Path,
    width: float,
    height: float,
    layout: Literal["constrained", "compressed"] = "constrained",
) -> Iterator[Figure]:
    """A figure of this size in inches, drawn without a display and written to ``path`` in the end."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout=layout)
        FigureCanvasAgg(figure)
        yield figure
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
