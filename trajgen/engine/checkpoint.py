"""What a run keeps of its training: checkpoints on the way and the final weights, and how a model takes them up."""

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
from trajgen.engine.storage import (
    DamagedError,
    Position,
    T,
    part,
    read_header,
    read_tensors,
    refuse_unfit,
    unfit,
    unsaved_buffers,
    write_tensors,
)

KEPT = 2
BEST = "best.safetensors"
NAME = re.compile(r"stage(\d+)-step(\d+)\.safetensors")
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""What an operating system says when it will not write."""


class Checkpoints:
    """The checkpoints of one run: ``final.safetensors``, the last few on the way there, and the best weights.

    The best are those of the last stage with the lowest loss on held-out episodes. Where none are held out there are no
    best ones: the losses of what is trained on fall to the end.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, position: Position, tensors: Mapping[str, Tensor]) -> Path:
        """Writes a checkpoint on the way, and removes all but the last ones."""
        path = self.folder / f"stage{position.stage}-step{position.step:07d}.safetensors"
        write_tensors(path, tensors, position)
        for old in self.on_the_way()[:-KEPT]:
            old.unlink()
        return path

    def save_final(self, model: nn.Module) -> Path:
        """Writes the weights of a finished training, and removes those on the way."""
        path = self.folder / "final.safetensors"
        write_tensors(path, {f"model.{k}": v for k, v in model.state_dict().items()}, Position())
        self.tidy()
        return path

    def save_best(self, model: nn.Module) -> None:
        """Writes weights that do better on held-out windows than all before them in their stage."""
        write_tensors(self.folder / BEST, {f"model.{k}": v for k, v in model.state_dict().items()}, Position())

    def forget_best(self) -> None:
        """Removes the best weights of an earlier stage: they are no policy yet."""
        (self.folder / BEST).unlink(missing_ok=True)

    def best(self) -> Path:
        """The weights that do best on held-out windows.

        Raises:
            CheckpointError: if there are none.
        """
        path = self.folder / BEST
        if not path.exists():
            raise CheckpointError(
                "Which weights are best is known where episodes are held out.",
                expected=f"{path}, of a training with data.val_fraction=0.1, say",
                got="none",
                fix="policy.weights=last, or train with episodes held out",
            )
        return path

    def tidy(self) -> None:
        """Removes what a killed process left: half-written files, and those on the way to a finished training."""
        for left in [*self.folder.glob(".*.partial"), *(self.on_the_way() if self.finished else [])]:
            left.unlink()

    def on_the_way(self) -> list[Path]:
        """Checkpoints of an unfinished training, oldest first."""
        found = ((NAME.fullmatch(path.name), path) for path in self.folder.glob("stage*-step*.safetensors"))
        return [p for _, p in sorted(((int(m[1]), int(m[2])), path) for m, path in found if m)]

    @property
    def finished(self) -> bool:
        """Whether the training came to its end."""
        return (self.folder / "final.safetensors").exists()

    @property
    def last(self) -> str:
        """The newest checkpoint, in words."""
        return str(self.newest()) if self.finished or self.on_the_way() else "none yet"

    def newest(self) -> Path:
        """The final checkpoint, or the last one on the way.

        Raises:
            CheckpointError: if there is none.
        """
        paths = [*self.on_the_way(), *self.folder.glob("final.safetensors")]
        if not paths:
            raise CheckpointError(
                "A run folder holds a checkpoint.",
                expected="final.safetensors, or one on the way there",
                got=f"none in {self.folder}",
                fix="train first, or name another folder: run=DIR",
            )
        return paths[-1]

    def read_newest(
        self, model: nn.Module, device: torch.device, console: Console
    ) -> tuple[Path, dict[str, Tensor], Position]:
        """Reads the last checkpoint on the way that is whole; a damaged one is said, and put aside.

        Raises:
            CheckpointError: if none is whole, or one does not fit the model.
        """
        found: list[DamagedError] = []
        for path in reversed(self.on_the_way()):
            try:
                tensors, position = read_tensors(path, device, model)
            except DamagedError as error:
                found.append(error)
                continue
            for cause, spoilt in zip(found, reversed(self.on_the_way()), strict=False):
                os.replace(spoilt, spoilt.with_name(f"{spoilt.name}.damaged"))
                said = f"A checkpoint is damaged ({cause.got}); going on from {path.name}."
                console.print(said, markup=False, soft_wrap=True)
            return path, tensors, position
        raise found[0]


def load_weights(model: nn.Module, path: Path, *, without: Iterable[str] = ()) -> None:
    """Loads the weights to act with: the averaged ones where the checkpoint holds an average.

    Args:
        model: takes the weights.
        path: of the checkpoint.
        without: parts of the model, at any depth, whose stored weights are left out, since others took their place;
            one that needs weights of its own does not fit.

    Raises:
        CheckpointError: if the file cannot be read or does not fit the model.
    """
    swapped = set(without)
    own = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    _, declared = read_header(path, model)
    shapes = {k: v for k, v in _to_act_with(declared).items() if not swapped & set(k.split("."))}
    untrained = {part for k in own if k not in shapes for part in swapped & set(k.split("."))}
    if untrained:
        raise CheckpointError(
            "What was not trained with the others cannot take a part's place afterwards.",
            expected="a part without weights of its own",
            got=f"another {', '.join(sorted(untrained))} than the one that {path} was trained with",
            fix=f"train anew with it, or leave {sorted(untrained)[0]} as it was",
        )
    refuse_unfit(own, shapes, path)
    tensors, _ = read_tensors(path, next(model.parameters()).device)
    weights = _to_act_with(tensors)
    load_state(model, {k: weights[k] for k in shapes}, path)


def load_state(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Loads exactly these weights into a model, or raises a `CheckpointError` that says what does not fit."""
    own = model.state_dict()
    refuse_unfit({k: tuple(v.shape) for k, v in own.items()}, {k: tuple(v.shape) for k, v in weights.items()}, path)
    if other := [f"{k} is {weights[k].dtype}, not {own[k].dtype}" for k in own if weights[k].dtype != own[k].dtype]:
        raise unfit(other, path)
    model.load_state_dict(dict(weights))


def load_buffers(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Puts back what a model counts beside its weights; what a checkpoint does not hold stays as it is."""
    own = unsaved_buffers(model)
    with torch.no_grad():
        for name, value in values.items():
            if name in own and own[name].shape == value.shape and own[name].dtype == value.dtype:
                own[name].copy_(value)


def _to_act_with(values: Mapping[str, T]) -> dict[str, T]:
    return part(values, "model") | part(values, "ema")


@contextmanager
def on_disk(folder: Path, checkpoints: Checkpoints) -> Iterator[None]:
    """Turns what the disk refuses into a `TrainingError` that says what stays."""
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
