"""Checkpoints: tensors in safetensors files and a little JSON; written whole, checked when read, never unpickled."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from trajgen.core.errors import CheckpointError, TrainingError

T = TypeVar("T")

FORMAT = 1
KEPT = 2
NAME = re.compile(r"stage(\d+)-step(\d+)\.safetensors")
HEADER = 16 * 2**20
"""Largest header in bytes: that of a model of ten thousand tensors has a tenth of it."""
SIZE = 16
"""Largest size of a checkpoint, as a multiple of its model's; weights, average and a usual optimiser have four."""
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""What an operating system says when it will not write."""
UNREADABLE = (SafetensorError, KeyError, ValueError, TypeError, OSError, OverflowError, RecursionError, RuntimeError)
"""What safetensors, json and torch raise on files that are not checkpoints."""


class DamagedError(CheckpointError):
    """A checkpoint whose bytes are not those that were written; the one before it may be whole."""


@dataclass(frozen=True)
class Position:
    """How far a training has come: the stage's number, and steps done in it."""

    stage: int = 0
    step: int = 0


class Checkpoints:
    """The checkpoints of one run: ``final.safetensors``, and the last few on the way there.

    None is kept for being the best: there is no validation loss, and the losses of different stages, or of one stage
    whose parts still move, cannot be compared; what counts is the score in the world, which is measured at the end.

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


def write_tensors(path: Path, tensors: Mapping[str, Tensor], position: Position) -> None:
    """Writes tensors, position, and the checksum of both."""
    plain = {k: v.detach().to("cpu").contiguous().clone() for k, v in tensors.items()}
    place = json.dumps(asdict(position))
    metadata = {"format": str(FORMAT), "position": place, "sha256": checksum(plain, place)}
    write_whole(path, save(plain, metadata))


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name, flushes it to the disk, renames it, and flushes the folder's entry.

    Whatever ends the process or the power, the path holds the old content or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()  # a disk that is full has better uses for the room
        raise
    flush(path.parent)


def flush(path: Path) -> None:
    """Waits until the disk holds a file's content, or a folder's names; a system that cannot open folders is let be."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checksum(tensors: Mapping[str, Tensor], place: str) -> str:
    """SHA-256 of names, types, shapes and bytes of tensors on the CPU, and of the position's text."""
    digest = sha256(place.encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_tensors(
    path: Path, device: torch.device, model: nn.Module | None = None
) -> tuple[dict[str, Tensor], Position]:
    """Reads a checkpoint, and compares its checksum; one written before there were checksums is taken as it is.

    Args:
        path: of the checkpoint.
        device: where the tensors are put.
        model: whose weights they must fit, which is seen before any of them is read.

    Raises:
        DamagedError: if the file is damaged or cut short.
        CheckpointError: if it is missing, of a newer format, too large for the model, or of another model.
    """
    metadata, shapes = read_header(path, model)
    if model is not None:
        own = {k: tuple(v.shape) for k, v in model.state_dict().items()}
        refuse_unfit(own, part(shapes, "model"), path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in shapes}
        if "sha256" in metadata and checksum(tensors, metadata["position"]) != metadata["sha256"]:
            raise ValueError("its checksum is not that of its content")
        # A copy: what safetensors gives may be the file itself, mapped into memory.
        return {k: v.to(device, copy=True) for k, v in tensors.items()}, read_position(metadata["position"])
    except torch.OutOfMemoryError:
        raise
    except UNREADABLE as error:
        raise damaged(path, error) from error


def read_header(path: Path, model: nn.Module | None = None) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """The metadata of a checkpoint and the shapes of its tensors, none of which is read.

    Raises:
        DamagedError: if the header is damaged, or declares more than the file holds.
        CheckpointError: if the file is missing, of a newer format, or too large for the model.
    """
    if not path.is_file():
        raise CheckpointError(
            "A checkpoint is a file.",
            expected="a safetensors file written by trajgen",
            got=f"{path} does not exist",
            fix="check the path",
        )
    if model is not None:
        refuse_large(model, path)
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > min(HEADER, path.stat().st_size):
            raise ValueError(f"its header declares a length of {length:,} bytes")
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            written = int(metadata["format"])
            if written <= FORMAT:
                read_position(metadata["position"])
            names = list(file.keys())
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except UNREADABLE as error:
        raise damaged(path, error) from error
    if written > FORMAT:
        raise CheckpointError(
            "The checkpoint was written by a newer trajgen.",
            expected=f"format {FORMAT} or older",
            got=f"format {written} in {path}",
            fix="pip install --upgrade trajgen",
        )
    return metadata, shapes


def read_position(text: str) -> Position:
    """The position of a checkpoint's metadata; a ValueError or TypeError if it is none."""
    position = Position(**json.loads(text))
    for value in asdict(position).values():
        if type(value) is not int or not 0 <= value < 2**53:
            raise ValueError(f"its position is {text}")
    return position


def damaged(path: Path, cause: BaseException) -> DamagedError:
    """The error for a checkpoint that cannot be read."""
    said = str(cause).splitlines()[0][:200] if str(cause) else type(cause).__name__
    return DamagedError(
        "The checkpoint is damaged or cut short.",
        expected="a safetensors file written by trajgen",
        got=f"{path}: {said}",
        fix="delete it to go on from the one before, or train again",
    )


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
        raise _unfit(other, path)
    model.load_state_dict(dict(weights))


def load_buffers(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Puts back what a model counts beside its weights; what a checkpoint does not hold stays as it is."""
    own = unsaved_buffers(model)
    with torch.no_grad():
        for name, value in values.items():
            if name in own and own[name].shape == value.shape and own[name].dtype == value.dtype:
                own[name].copy_(value)


def unsaved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that the state of a model leaves out, such as counters that are no weights."""
    saved = model.state_dict()
    return {k: v for k, v in model.named_buffers() if k not in saved}


def refuse_unfit(own: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Raises a `CheckpointError` that says what does not fit if stored shapes are not those of the model."""
    wrong = [f"{k} is missing" for k in own if k not in shapes]
    wrong += [f"{k} is not part of the model" for k in shapes if k not in own]
    wrong += [f"{k} has shape {shapes[k]}, not {own[k]}" for k in own if k in shapes and shapes[k] != own[k]]
    if wrong:
        raise _unfit(wrong, path)


def refuse_large(model: nn.Module, path: Path) -> None:
    """Raises a `CheckpointError` if a file is far larger than what a training of the model keeps."""
    values = [*model.state_dict().values(), *unsaved_buffers(model).values()]
    limit = SIZE * sum(v.numel() * v.element_size() for v in values) + HEADER
    if (size := path.stat().st_size) > limit:
        raise _unfit([f"it has {size:,} bytes, and a checkpoint of this model has at most {limit:,}"], path)


def _unfit(wrong: list[str], path: Path) -> CheckpointError:
    more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
    return CheckpointError(
        "The checkpoint belongs to another model.",
        expected="weights of the model in config.json",
        got=f"{path}: " + "; ".join(wrong[:3]) + more,
        fix="use the config.json of its own run folder",
    )


def part(values: Mapping[str, T], prefix: str) -> dict[str, T]:
    """The entries under a prefix, by the rest of their names."""
    return {k[len(prefix) + 1 :]: v for k, v in values.items() if k.startswith(prefix + ".")}


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
