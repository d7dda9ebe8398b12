"""``trajgen video``: an episode of a run as a film, with the plan drawn in."""

from __future__ import annotations

from pathlib import Path

from trajgen.cli.acting import run_arguments
from trajgen.cli.words import key_values

VIDEO_HELP = """trajgen video run=DIR [key=value …]

  seed=0                   of the episode
  steps=200                the most steps that are played; the whole episode if not given
  every=4                  steps of the episode from one frame to the next
  rate=15                  frames per second
  sampler=…, policy.…      as for 'trajgen evaluate'
  device=auto
  imports=[my_lab.parts]
  out=FILE.gif|FILE.mp4    videos/episode_SEED-N.gif in the run folder if not given

Mazes are drawn from above. Other environments render themselves, for which MuJoCo needs OpenGL (MUJOCO_GL=egl or
osmesa without a display); the plan stands beside them. An MP4 needs pip install 'trajgen[video]'."""


def video(words: list[str]) -> None:
    if "--help" in words or "-h" in words:
        print(VIDEO_HELP)
        return
    from dataclasses import fields

    from rich.console import Console

    from trajgen.core.options import structure
    from trajgen.viz.film import VideoRequest, make_video
    from trajgen.viz.run import open_run

    values = key_values(words)
    out = values.pop("out", None)
    options = {f.name: values.pop(f.name) for f in fields(VideoRequest) if f.name in values}
    request = structure(VideoRequest, options, "")
    folder, device, imports = run_arguments(values)
    run = open_run(folder, device=device, imports=imports, overrides=values)
    make_video(run, None if out is None else Path(str(out)), request, Console())
