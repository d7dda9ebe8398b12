"""The pictures of a run by name, and the drawing of those that apply."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from trajgen.core.errors import ConfigError, TrajgenError, nearest
from trajgen.viz.run import Run

PLANNED = 3
"""Episodes from whose first states plans are drawn."""

Drawn = list[Path] | str
"""The pictures that were drawn, or why there is none."""


@dataclass(frozen=True, kw_only=True)
class PlotRequest:
    """Which pictures ``trajgen plot`` draws."""

    what: tuple[str, ...] = ()
    """Names of pictures; none for all that apply."""
    seed: int = 0
    """Of the first episode."""
    plans: int = 4
    """Plans drawn from one state."""
    episodes: int = 8
    """Played for each return that is asked for; and whose first plans are read for the attention."""
    returns: tuple[float, ...] = ()
    """Returns-to-go to ask for, discounted, in the data's units; by default some that the data hold."""

    def __post_init__(self) -> None:
        for name in self.what:
            if name not in PICTURES:
                raise ConfigError(
                    f"There is no picture '{name}'.",
                    expected=", ".join(PICTURES),
                    got=f"what={name}",
                    fix=nearest(name, PICTURES),
                )
        for name, least in (("seed", 0), ("plans", 1), ("episodes", 1)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"'{name}' is a whole number, at least {least}.",
                    expected=f"{name}={max(least, 4)}",
                    got=f"{name}={getattr(self, name)}",
                    fix="or leave it out",
                )


def draw(run: Run, folder: Path, request: PlotRequest, console: Console) -> list[Path]:
    """Draws the pictures that are asked for into a folder, and says in one line why one does not apply.

    Args:
        run: whose pictures they are.
        folder: that gets them; a picture of the same name is drawn anew.
        request: which pictures, and of what.
        console: where each picture's path is printed.

    Returns:
        The pictures' paths.

    Raises:
        TrajgenError: if a picture that was asked for by name cannot be drawn; of all that apply, that is only said.
    """
    drawn: list[Path] = []
    for name in request.what or PICTURES:
        try:
            with console.status(f"drawing {name}"):
                found = PICTURES[name](run, folder, request)
        except TrajgenError as error:
            if request.what:
                raise
            found = " ".join(str(error).split())
        if isinstance(found, str):
            console.print(f"[bold]{name}[/]: {escape(found)}", soft_wrap=True, highlight=False)
            continue
        for path in found:
            console.print(f"[bold]{name}[/]: {escape(str(path))}", soft_wrap=True, highlight=False)
        drawn += found
    return drawn


def _learning(run: Run, folder: Path, request: PlotRequest) -> Drawn:
    from trajgen.viz.plans import draw_training

    path = folder / "training.png"
    return [path] if draw_training(path, run.metrics) else f"there is no {run.metrics.name} in the run folder"


def _usage(run: Run, folder: Path, request: PlotRequest) -> Drawn:
    from trajgen.core.files import read_metrics
    from trajgen.viz.usage import usage_figure

    path = folder / "usage.png"
    rows = read_metrics(run.metrics)
    return [path] if usage_figure(path, rows) else "this run has no codebook whose use was logged"


def _plans(run: Run, folder: Path, request: PlotRequest) -> Drawn:
    from trajgen.viz.plans import draw_plans, first_observations

    drawn = []
    seeds = range(request.seed, request.seed + PLANNED)
    limits = None
    if run.eval_env.walls is None and run.data is not None:
        limits = run.data.low, run.data.high
    for seed, observation in zip(seeds, first_observations(run.eval_env, seeds), strict=True):
        asked = request.returns[0] if request.returns else None
        _, _, refinements = run.policy.preview([observation] * request.plans, asked)
        path = folder / f"plans_seed_{seed}.png"
        if not draw_plans(path, run.policy, run.eval_env, observation, refinements, limits=limits):
            return f"planner '{run.config.components['planner']['name']}' makes no plans of states here"
        drawn.append(path)
    return drawn


def _control(run: Run, folder: Path, request: PlotRequest) -> Drawn:
    from trajgen.viz.control import control_figure, measure_control, obeys, returns_to_ask

    asked = list(request.returns) or returns_to_ask(run)
    ends = (min(asked), max(asked)) if len({*asked}) > 1 else (asked[0], asked[0] + 1.0)
    if not obeys(run, *ends):
        return "what this run plans does not depend on the return that is asked for"
    seeds = range(request.seed, request.seed + request.episodes)
    path = folder / "control.png"
    control_figure(path, measure_control(run, asked, seeds))
    return [path]


def _attention(run: Run, folder: Path, request: PlotRequest) -> Drawn:
    from trajgen.viz.attention import draw_attention

    path = folder / "attention.png"
    seeds = range(request.seed, request.seed + request.episodes)
    drawn = draw_attention(path, run, seeds)
    return [path] if drawn else "this run has no prior of adaptive blocks that goes from scale to scale"


PICTURES: dict[str, Callable[[Run, Path, PlotRequest], Drawn]] = {
    "learning": _learning,
    "usage": _usage,
    "plans": _plans,
    "control": _control,
    "attention": _attention,
}
"""What draws each picture."""
