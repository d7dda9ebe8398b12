"""What ``trajgen plot`` and ``trajgen video`` draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from trajgen.core.checks import check_finite, check_range
from trajgen.core.errors import ConfigError, nearest

PICTURE_NAMES = ("learning", "usage", "plans", "control", "attention")
"""Pictures of a run, by name."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """How pictures look."""

    format: Literal["png", "pdf", "svg"] = "png"
    """Of the files; of a study, of another one beside plot.png."""
    title: str | None = None
    """Above each picture; of a study, by default its name."""
    labels: dict[str, str] | None = None
    """Texts by those that they replace, 'labels={total: sum of losses, x: training step}'; x and y are the axes."""


@dataclass(frozen=True, kw_only=True)
class PlotRequest(Look):
    """Which pictures of a run are drawn."""

    what: Annotated[tuple[str, ...], *PICTURE_NAMES] = ()
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

    def __post_init__(self) -> None:
        for name in self.what:
            if name not in PICTURE_NAMES:
                raise ConfigError(
                    f"There is no picture '{name}'.", got=f"what={name}", fix=nearest(name, PICTURE_NAMES)
                )
        for name, least in (("seed", 0), ("plans", 1), ("episodes", 1)):
            check_range(name, getattr(self, name), least, usual=getattr(PlotRequest, name))
        check_finite("returns", *self.returns)


@dataclass(frozen=True, kw_only=True)
class VideoRequest:
    """The film of an episode."""

    seed: int = 0
    """Seed of the episode."""
    steps: int | None = None
    """Most steps that are played; by default the whole episode."""
    frame_interval: int = 4
    """Steps of the episode from one frame to the next."""
    rate: float = 15.0
    """Frames per second, at most 50."""

    def __post_init__(self) -> None:
        check_range("seed", self.seed, 0, usual=0)
        check_range("steps", self.steps, 1, usual=200)
        check_range("frame_interval", self.frame_interval, 1, usual=4)
        check_range("rate", self.rate, 0.1, 50, usual=15)
