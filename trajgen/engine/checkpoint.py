"""The checkpoints of a run folder, and how a model loads them."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from trajgen.core.errors import CheckpointError, TrainingError
from trajgen.core.files import remove_partial
from trajgen.engine.storage import (
    DamagedError,
    Position,
    T,
    check_shapes,
    check_state,
    read_header,
    read_tensors,
    shapes_of,
    under,
    unsaved_buffers,
    write_tensors,
)

KEEP_LAST = 2
FINAL, BEST = "final.safetensors", "best.safetensors"
NAME = re.compile(r"stage(\d+)-step(\d+)\.safetensors")
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""Error numbers of an operating system that does not write."""


class Checkpoints:
    """The checkpoints of one run: the last intermediate ones of an unfinished training, the final and the best weights.

    The best weights are those of the last stage with the lowest loss on held-out episodes; there are none without such.

    Args:
        folder: where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, position: Position, tensors: Mapping[str, Tensor]) -> Path:
        """Writes an intermediate checkpoint, and removes all but the last ones."""
        path = self.folder / f"stage{position.stage}-step{position.step:07d}.safetensors"
        write_tensors(path, tensors, position)
        for old in self.intermediate()[:-KEEP_LAST]:
            old.unlink()
        return path

    def save_weights(self, model: nn.Module, name: str) -> None:
        """Writes the weights alone, as ``FINAL`` or ``BEST``."""
        write_tensors(self.folder / name, {f"model.{k}": v for k, v in model.state_dict().items()}, Position())

    def save_final(self, model: nn.Module) -> Path:
        """Writes the weights of a finished training, and removes the intermediate checkpoints."""
        self.save_weights(model, FINAL)
        self.clean()
        return self.folder / FINAL

    def remove_best(self) -> None:
        """Removes the best weights of an earlier stage."""
        (self.folder / BEST).unlink(missing_ok=True)

    def best(self) -> Path:
        """The weights with the lowest loss on held-out windows.

        Raises:
            CheckpointError: if there are none.
        """
        path = self.folder / BEST
        if not path.exists():
            raise CheckpointError(
                "Best weights are kept where episodes are held out.",
                got=f"no {path}",
                fix="policy.weights=last, or train with data.val_fraction=0.1",
            )
        return path

    def clean(self) -> None:
        """Removes half-written files, and the intermediate checkpoints of a finished training."""
        remove_partial(self.folder)
        for path in self.intermediate() if self.finished else []:
            path.unlink()

    def intermediate(self) -> list[Path]:
        """Checkpoints of an unfinished training, oldest first."""
        matches = ((NAME.fullmatch(path.name), path) for path in self.folder.glob("stage*-step*.safetensors"))
        return [p for _, p in sorted(((int(m[1]), int(m[2])), path) for m, path in matches if m)]

    @property
    def finished(self) -> bool:
        """Whether the training came to its end."""
        return (self.folder / FINAL).exists()

    @property
    def last(self) -> str:
        """The newest checkpoint in words."""
        return str(self.newest()) if self.finished or self.intermediate() else "none yet"

    def newest(self) -> Path:
        """The final checkpoint, or the last intermediate one.

        Raises:
            CheckpointError: if there is none.
        """
        if self.finished:
            return self.folder / FINAL
        if not (paths := self.intermediate()):
            raise CheckpointError(
                "A run folder has a checkpoint.", got=f"none in {self.folder}", fix="train first, or run=ANOTHER_FOLDER"
            )
        return paths[-1]

    def read_newest(
        self, model: nn.Module, device: torch.device, console: Console
    ) -> tuple[Path, dict[str, Tensor], Position]:
        """Reads the last intermediate checkpoint that is whole; damaged ones are reported and renamed to .damaged.

        Raises:
            CheckpointError: if none is whole, or one does not fit the model.
        """
        damaged: list[tuple[Path, DamagedError]] = []
        for path in reversed(self.intermediate()):
            try:
                tensors, position = read_tensors(path, device, model)
            except DamagedError as error:
                damaged.append((path, error))
                continue
            for bad, cause in damaged:
                os.replace(bad, bad.with_name(f"{bad.name}.damaged"))
                message = f"A checkpoint is damaged ({cause.got}); going on from {path.name}."
                console.print(message, markup=False, soft_wrap=True)
            return path, tensors, position
        raise damaged[0][1]


def load_weights(model: nn.Module, path: Path, *, without: Iterable[str] = ()) -> None:
    """Loads the weights of a checkpoint, averaged ones where it has an average.

    Args:
        model: takes the weights.
        path: of the checkpoint.
        without: names of submodules, at any depth, that replace trained ones; they must have no weights of their own.

    Raises:
        CheckpointError: if the file cannot be read or does not fit the model.
    """
    replaced = set(without)
    expected = shapes_of(model)
    _, stored = read_header(path, model)
    shapes = {k: v for k, v in _averaged(stored).items() if not replaced & set(k.split("."))}
    if untrained := {part for k in expected if k not in shapes for part in replaced & set(k.split("."))}:
        raise CheckpointError(
            f"The {', '.join(sorted(untrained))} was not trained with the rest of the model in {path}.",
            fix=f"train anew with it, or leave {sorted(untrained)[0]} as it was",
        )
    check_shapes(expected, shapes, path)
    weights = _averaged(read_tensors(path, next(model.parameters()).device)[0])
    load_state(model, {k: weights[k] for k in shapes}, path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint by their names in the model, on the CPU; averaged ones where it has an average.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    return _averaged(read_tensors(path, torch.device("cpu"))[0])


def load_state(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Loads exactly these weights into a model, or raises a `CheckpointError` that names what does not fit."""
    check_state(model.state_dict(), weights, path)
    model.load_state_dict(dict(weights))


def load_buffers(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Loads the buffers outside a model's state; what a checkpoint does not hold stays as it is."""
    buffers = unsaved_buffers(model)
    for name, value in values.items():
        if name in buffers and buffers[name].shape == value.shape and buffers[name].dtype == value.dtype:
            buffers[name].copy_(value)


def _averaged(values: Mapping[str, T]) -> dict[str, T]:
    return under("model", values) | under("ema", values)


@contextmanager
def disk_errors(folder: Path, checkpoints: Checkpoints) -> Iterator[None]:
    """Turns a write that the disk refuses into a `TrainingError` that names the last checkpoint."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS and folder.is_dir():
            raise
        raise TrainingError(
            "A run writes into its folder.",
            expected=f"room on the disk, and the permission to write; the last good checkpoint is {checkpoints.last}",
            got=f"{error.filename or folder}: {error.strerror}",
            fix="free some space or mend the permissions, then the same command with resume=true",
        ) from error
