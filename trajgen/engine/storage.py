"""Tensors on the disk: files that are whole or not there, checked before a byte of them is used, never unpickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from trajgen.core.errors import CheckpointError
from trajgen.core.formats import FORMAT, current

T = TypeVar("T")

HEADER = 16 * 2**20
"""Largest header in bytes: that of a model of ten thousand tensors has a tenth of it."""
SIZE = 16
"""Largest size of a checkpoint, as a multiple of its model's; weights, average and a usual optimizer have four."""
UNREADABLE = (SafetensorError, KeyError, ValueError, TypeError, OSError, OverflowError, RecursionError, RuntimeError)
"""What safetensors, json and torch raise on files that are not checkpoints."""


class DamagedError(CheckpointError):
    """A checkpoint whose bytes are not those that were written; the one before it may be whole."""


@dataclass(frozen=True)
class Position:
    """How far a training has come: the stage's number, and steps done in it."""

    stage: int = 0
    step: int = 0


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
    """The metadata of a checkpoint, in the present format, and the shapes of its tensors, none of which is read.

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
            written: dict[str, str] = file.metadata() or {}
            if "format" not in written:
                raise ValueError("it has no format")
            metadata: dict[str, str] = current("checkpoint", written, path)
            read_position(metadata["position"])
            names = list(file.keys())
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except UNREADABLE as error:
        raise damaged(path, error) from error
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
        raise unfit(wrong, path)


def refuse_large(model: nn.Module, path: Path) -> None:
    """Raises a `CheckpointError` if a file is far larger than what a training of the model keeps."""
    values = [*model.state_dict().values(), *unsaved_buffers(model).values()]
    limit = SIZE * sum(v.numel() * v.element_size() for v in values) + HEADER
    if (size := path.stat().st_size) > limit:
        raise unfit([f"it has {size:,} bytes, and a checkpoint of this model has at most {limit:,}"], path)


def unfit(wrong: list[str], path: Path) -> CheckpointError:
    """The error for a checkpoint of another model, with what does not fit."""
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
