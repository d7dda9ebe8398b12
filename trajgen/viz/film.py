"""Frames as a film: an animated GIF by Pillow, or an MP4 where imageio-ffmpeg is installed."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import numpy as np

from trajgen.core.errors import ConfigError, nearest
from trajgen.core.files import replacing
from trajgen.viz.episode import Frame

KINDS = (".gif", ".mp4")
COLOURS = 255
MODELS = 8
"""Frames from which the colors of a GIF are chosen."""


def check_film(path: Path) -> None:
    """Refuses a film that could not be written, before it is made.

    Raises:
        ConfigError: for another kind of file, one that exists, or an MP4 without what encodes it.
    """
    if path.suffix not in KINDS:
        raise ConfigError(
            "A film is a GIF or an MP4.",
            expected="out=FILE.gif or out=FILE.mp4",
            got=f"out={path}",
            fix=nearest(path.suffix, KINDS),
        )
    if path.exists():
        raise ConfigError(
            "No file is overwritten unasked.",
            expected="a new file",
            got=f"{path} exists",
            fix="out=ANOTHER, or remove that file first",
        )
    if path.suffix == ".mp4" and find_spec("imageio_ffmpeg") is None:
        raise ConfigError(
            "An MP4 is encoded by the package imageio-ffmpeg.",
            expected="imageio-ffmpeg installed",
            got=f"out={path}, and no such package",
            fix="pip install 'trajgen[video]', or out=FILE.gif, which needs nothing more",
        )


def write_film(path: Path, frames: Iterable[Frame], rate: float) -> int:
    """Writes frames (height, width, 3) of one size as a film; whole, or not at all.

    Args:
        path: ends in .gif or .mp4.
        frames: in order, at least one.
        rate: frames per second; a GIF keeps it to a hundredth of a second.

    Returns:
        How many frames there were.
    """
    with replacing(path) as temporary:
        return (_write_gif if path.suffix == ".gif" else _write_mp4)(temporary, frames, rate)


def _write_gif(path: Path, frames: Iterable[Frame], rate: float) -> int:
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in frames]
    some = pictures[:: max(1, len(pictures) // MODELS)]
    together = Image.fromarray(np.concatenate([np.asarray(picture) for picture in some]))
    palette = together.quantize(COLOURS)  # one for all frames, so that nothing flickers
    first, *others = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    first.save(
        path, format="GIF", save_all=True, append_images=others, duration=round(100 / rate) * 10, loop=0, optimize=True
    )
    return len(pictures)


def _write_mp4(path: Path, frames: Iterable[Frame], rate: float) -> int:
    from imageio_ffmpeg import write_frames

    moving = iter(frames)
    first = next(moving)
    height, width = first.shape[:2]
    writer = write_frames(str(path), (width, height), fps=rate, codec="libx264", macro_block_size=2, quality=8)
    writer.send(None)
    count = 0
    try:
        for frame in chain([first], moving):
            writer.send(np.ascontiguousarray(frame))
            count += 1
    finally:
        writer.close()
    return count
