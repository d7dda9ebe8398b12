"""The zoo: trained planners that come with trajgen, and the folder of a run by any of its names."""

from __future__ import annotations

import filecmp
import os
import shutil
from itertools import count
from pathlib import Path

from trajgen.config.files import zoo_files
from trajgen.core.errors import CheckpointError, unknown_name
from trajgen.core.files import file_lock, new_folder

PREFIX = "zoo/"
"""Of the names of its runs."""
HUB = "hf://"
"""Prefix of the names of runs on the Hugging Face Hub."""
COPIES = Path("runs")
"""Where commands that write into a run folder copy it to: zoo/NAME, and hub/USER--NAME."""
WEIGHTS = Path("checkpoints/final.safetensors")


def local_folder(run: str | os.PathLike[str]) -> Path:
    """The folder of a run: ``zoo/NAME`` that of the zoo, unless there is such a folder; ``hf://USER/NAME`` is pulled.

    Raises:
        ConfigError: if the zoo has no such run.
    """
    text = os.fspath(run)
    if is_on_hub(run):
        from trajgen.experiments.hub import pull

        return pull(text.partition(":")[2].lstrip("/"))
    if not text.startswith(PREFIX) or Path(text).is_dir():
        return Path(run)
    name = text.removeprefix(PREFIX).rstrip("/")
    if name not in (runs := zoo_files()):
        raise unknown_name(f"There is no '{name}' in the zoo.", name, runs)
    return runs[name].parent


def init_folder(run: str) -> Path:
    """The folder of the run from which a training starts.

    Raises:
        CheckpointError: if there is none.
    """
    folder = local_folder(run)
    if not folder.is_dir():
        raise CheckpointError("init names a run folder.", got=f"init={run}, which is no folder", fix="init=runs/NAME")
    return folder


def is_on_hub(run: str | os.PathLike[str]) -> bool:
    """Whether it is ``hf://USER/NAME``."""
    return os.fspath(run).startswith(HUB[:-1])  # as a Path it has one slash


def writable_folder(run: str | os.PathLike[str]) -> Path:
    """The folder of a run that a command writes into: a copy in ``runs/`` of one of the zoo or the hub."""
    folder = local_folder(run)
    if folder == Path(run):
        return folder
    copies = COPIES / ("hub" if is_on_hub(run) else "zoo")
    for number in count(1):
        copy = copies / (folder.name if number == 1 else f"{folder.name}-{number}")
        if not copy.exists():
            with file_lock(copies / f".{folder.name}.lock", wait=True):
                if not copy.exists():  # another process may have been faster
                    with new_folder(copy) as temporary:
                        shutil.copytree(folder, temporary, copy_function=shutil.copyfile, dirs_exist_ok=True)
        if (copy / WEIGHTS).is_file() and filecmp.cmp(folder / WEIGHTS, copy / WEIGHTS, shallow=False):
            return copy
    raise AssertionError("count has no end")
