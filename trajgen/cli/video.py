"""``trajgen video``: an episode of a run as a film, with the plan drawn in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trajgen.cli.words import key_values
from trajgen.core.errors import ConfigError

VIDEO_HELP = """trajgen video run=DIR [key=value …]

  seed=0                   of the episode
  steps=200                the most steps that are played; the whole episode if not given
  every=4                  steps of the episode from one frame to the next
  rate=15                  frames per second
  sampler=…, policy.…      as for 'trajgen evaluate'
  device=auto
  imports=[my_lab.parts]
  out=FILE.gif|FILE.mp4    videos/episode_SEED-N.gif in the run folder if not given

Mazes are drawn from above. Other worlds draw themselves, for which MuJoCo needs OpenGL (MUJOCO_GL=egl or
osmesa without a display); the plan stands beside them. An MP4 needs pip install 'trajgen[video]'."""


@dataclass(frozen=True, kw_only=True)
class VideoRequest:
    """Which film ``trajgen video`` makes."""

    seed: int = 0
    """Of the episode."""
    steps: int | None = None
    """The most that are played; None for the whole episode."""
    every: int = 4
    """Steps of the episode from one frame to the next."""
    rate: float = 15.0
    """Frames per second."""

    def __post_init__(self) -> None:
        limits = {
            "seed": (self.seed >= 0, "0 or more"),
            "steps": (self.steps is None or self.steps >= 1, "1 or more"),
            "every": (self.every >= 1, "1 or more"),
            "rate": (0 < self.rate <= 50, "more than 0 and at most 50"),
        }
        for name, (holds, expected) in limits.items():
            if not holds:
                raise ConfigError(
                    f"A film's {name} is out of range.",
                    expected=expected,
                    got=f"{name}={getattr(self, name)}",
                    fix=f"{name}={getattr(VideoRequest, name) or 200}",
                )


def video(words: list[str]) -> None:
    if "--help" in words or "-h" in words:
        print(VIDEO_HELP)
        return
    from dataclasses import fields

    from rich.console import Console
    from rich.markup import escape

    from trajgen.cli.opened import open_run
    from trajgen.core.options import structure
    from trajgen.experiments.run_folder import free_path

    values = key_values(words)
    out = values.pop("out", None)
    own = {f.name: values.pop(f.name) for f in fields(VideoRequest) if f.name in values}
    request = structure(VideoRequest, own, "")
    run = open_run(values)
    from trajgen.viz.film import check_film, write_film

    name = f"episode_{request.seed}-{{}}.gif"
    path = Path(str(out)) if out is not None else free_path(run.folder / "videos", name)
    check_film(path)
    console = Console()
    from trajgen.viz.episode import play
    from trajgen.viz.scenes import map_frames, scene_frames

    with console.status("playing the episode"):
        played = play(run.policy, run.eval_env, request.seed, steps=request.steps, every=request.every)
    if not played.plans:
        planner = run.config.components["planner"]["name"]
        console.print(f"Planner '{planner}' makes no plans of states: the film shows the episode alone.", markup=False)
    with console.status("drawing"):
        if run.eval_env.walls is not None:
            frames = map_frames(played, run.eval_env.walls, request.every)
        else:
            frames = scene_frames(played, request.every, run.config.data.stride, run.data)
        count = write_film(path, frames, request.rate)
    told = f"return {played.rewards.sum():.1f} in {len(played.rewards)} steps, {count} frames: {path}"
    console.print(escape(told), soft_wrap=True, highlight=False)
