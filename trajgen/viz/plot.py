"""The pictures of a run by name, and the drawing of those that apply."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajgen.core.errors import TrajgenError, printable
from trajgen.core.files import free_path, read_metrics
from trajgen.envs.replay import recorded_states
from trajgen.evaluation.rollout import first_observations
from trajgen.viz.figure import captions
from trajgen.viz.options import PlotRequest
from trajgen.viz.plans import draw_plans, stride_of
from trajgen.viz.returns import default_targets, depends_on_return, draw_control, measure_control
from trajgen.viz.training import draw_losses, draw_usage

if TYPE_CHECKING:
    from rich.console import Console

    from trajgen.viz.run import Run

PLANNED = 3
"""Episodes from whose first states plans are drawn."""

Pictures = list[Path] | str
"""The pictures that were drawn, or why there is none."""


def plot(run: Run, out: Path | None, request: PlotRequest, console: Console, *, changed: bool = False) -> list[Path]:
    """Draws the requested pictures, and prints their paths or in one line why one does not apply.

    They go into ``out``, else into the run's plots/, or, where options are ``changed``, into a new folder in it.

    Raises:
        TrajgenError: if a picture that was requested by name cannot be drawn; else the error is only printed.
    """
    from rich.text import Text

    plots = run.folder / "plots"
    folder = out or (free_path(plots) if changed else plots)
    paths: list[Path] = []
    for name in request.what or PICTURES:
        try:
            with console.status(f"drawing {name}"), captions(request.title, request.labels):
                pictures = PICTURES[name](run, folder, request)
        except TrajgenError as error:
            if request.what:
                raise
            pictures = " ".join(str(error).split())
        for line in [pictures] if isinstance(pictures, str) else pictures:
            console.print(Text.assemble((name, "bold"), f": {printable(str(line))}"), soft_wrap=True, highlight=False)
        paths += [] if isinstance(pictures, str) else pictures
    return paths


def _learning(run: Run, folder: Path, request: PlotRequest) -> Pictures:
    path = folder / f"training.{request.format}"
    return [path] if draw_losses(path, read_metrics(run.metrics)) else "this run has no losses in its metrics.jsonl"


def _usage(run: Run, folder: Path, request: PlotRequest) -> Pictures:
    path = folder / f"usage.{request.format}"
    return [path] if draw_usage(path, read_metrics(run.metrics)) else "this run has no codebook whose use was logged"


def _plans(run: Run, folder: Path, request: PlotRequest) -> Pictures:
    paths = []
    seeds = range(request.seed, request.seed + PLANNED)
    limits = run.data.limits if run.eval_env.walls is None and run.data is not None else None
    target = request.returns[0] if request.returns else None
    env, usual_stride = run.eval_env, run.config.data.strides[0]
    for seed, observation in first_observations(env, seeds).items():
        states = recorded_states(env, seed) if env.replayed_episodes else None
        cond, plan, refinements = run.policy.preview([observation] * request.plans, target)
        how: dict[str, Any] = {"cond": cond, "stride": stride_of(plan, usual_stride), "limits": limits}
        paths.append(folder / f"plans_seed_{seed}.{request.format}")
        if not draw_plans(paths[-1], run.policy, env, observation, refinements, states, **how):
            return f"planner '{run.config.components['planner']['name']}' makes no plans of states here"
    return paths


def _control(run: Run, folder: Path, request: PlotRequest) -> Pictures:
    if run.eval_env.replayed_episodes:
        return "what a target achieves needs an environment, and the data name none: data.env_id=ID"
    targets = list(request.returns) or default_targets(run)
    low, high = min(targets), max(targets)
    if not depends_on_return(run, low, high if high > low else low + 1.0):
        return "what this run plans does not depend on the target return"
    path = folder / f"control.{request.format}"
    draw_control(path, measure_control(run, targets, range(request.seed, request.seed + request.episodes)))
    return [path]


def _attention(run: Run, folder: Path, request: PlotRequest) -> Pictures:
    from trajgen.viz.attention import draw_attention

    path = folder / f"attention.{request.format}"
    seeds = range(request.seed, request.seed + request.episodes)
    return [path] if draw_attention(path, run, seeds) else "this run has no prior that attends from scale to scale"


PICTURES: dict[str, Callable[[Run, Path, PlotRequest], Pictures]] = {
    "learning": _learning,
    "usage": _usage,
    "plans": _plans,
    "control": _control,
    "attention": _attention,
}
"""What draws each picture."""
