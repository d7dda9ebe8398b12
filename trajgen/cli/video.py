"""``trajgen video``: an episode of a run as a film, with the plan drawn in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trajgen.cli.app import Words, command
from trajgen.cli.evaluate import ACTING, RunOptions, read_run
from trajgen.viz.options import VideoRequest


@dataclass(frozen=True, kw_only=True)
class VideoOptions(VideoRequest, RunOptions):
    """Options of ``trajgen video``."""

    out: Path | None = None
    """File, .gif or .mp4; by default a new videos/episode_SEED-N.gif in the run folder."""


@command("video", VideoOptions, "video run=runs/mage-umaze-dwell-s0 seed=3 steps=200", groups=ACTING)
def video(words: Words) -> None:
    """Film an episode of a run, with the plan drawn in.

    Mazes are drawn from above. Other environments are rendered by MuJoCo, which needs OpenGL (MUJOCO_GL=egl or osmesa
    without a display). MP4 needs pip install 'trajgen[video]'.
    """
    options, overrides = read_run(words, VideoOptions)
    from trajgen.core.terminal import Terminal
    from trajgen.experiments.loading import open_run
    from trajgen.viz.film import make_video

    run = open_run(options.run, device=options.device, imports=options.imports, overrides=overrides)
    make_video(run, options.out, options, Terminal())
