"""Checkpoint files: safetensors with a position and a checksum, checked before a tensor is used, never unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from trajgen.core.errors import CheckpointError
from trajgen.core.files import write_file
from trajgen.core.formats import FORMAT, current

T = TypeVar("T")
Shapes = dict[str, tuple[int, ...]]

HEADER = 16 * 2**20
"""Bytes of the largest header; a model of ten thousand tensors has a tenth of it."""
SIZE = 16
"""Largest size of a checkpoint as a multiple of its model's; weights, average and a usual optimizer make four."""
SCALE = "scale"
SMALLEST = 4096
"""Numbers of the smallest matrix that is compressed."""
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
    """Writes tensors, position, and the checksum of both, atomically."""
    host = {k: v.detach().to("cpu").contiguous().clone() for k, v in tensors.items()}
    text = json.dumps(asdict(position))
    metadata = {"format": str(FORMAT), "position": text, "sha256": checksum(host, text)}
    write_file(path, save(host, metadata))


def checksum(tensors: Mapping[str, Tensor], position: str) -> str:
    """SHA-256 of names, types, shapes and bytes of tensors on the CPU, and of the position's text."""
    digest = sha256(position.encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_tensors(
    path: Path, device: torch.device, model: nn.Module | None = None
) -> tuple[dict[str, Tensor], Position]:
    """Reads a checkpoint and compares its checksum; one written before there were checksums is taken as it is.

    Args:
        path: of the checkpoint.
        device: where the tensors are put.
        model: whose weights they must fit; compared by shape before any of them is read.

    Raises:
        DamagedError: if the file is damaged or cut short.
        CheckpointError: if it is missing, of a newer format, too large for the model, or of another model.
    """
    metadata, shapes = read_header(path, model)
    if model is not None:
        check_shapes(shapes_of(model), under("model", shapes), path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in shapes}
        if "sha256" in metadata and checksum(tensors, metadata["position"]) != metadata["sha256"]:
            raise ValueError("its checksum is not that of its content")
        # A copy: what safetensors returns may be the file itself, mapped into memory.
        return {k: v.to(device, copy=True) for k, v in _restored(tensors).items()}, _position(metadata["position"])
    except torch.OutOfMemoryError:
        raise
    except UNREADABLE as error:
        raise _damaged(path, error) from error


def compressed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Large matrices in 8 bits, each row with its scale under ``scale.NAME``; `read_tensors` gives all in 32 bits."""
    result: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if value.dtype == torch.float32 and value.ndim > 1 and value.numel() >= SMALLEST:
            scale = (value.abs().flatten(1).amax(1) / 127).clamp(min=1e-12)
            result[f"{SCALE}.{name}"] = scale
            result[name] = (value / _by_row(scale, value)).round().to(torch.int8)
        else:
            result[name] = value
    return result


def _restored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    scales = under(SCALE, tensors)
    values = {k: v for k, v in tensors.items() if not k.startswith(f"{SCALE}.")}
    return {k: v * _by_row(scales[k], v) if k in scales else v for k, v in values.items()}


def _by_row(scale: Tensor, value: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (value.ndim - 1))


def read_header(path: Path, model: nn.Module | None = None) -> tuple[dict[str, str], Shapes]:
    """The metadata of a checkpoint in the present format, and the shapes of its tensors, none of which is read.

    Raises:
        DamagedError: if the header is damaged, or declares more than the file holds.
        CheckpointError: if the file is missing, of a newer format, or too large for the model.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist.", fix="check the path")
    size = path.stat().st_size
    if model is not None:
        values = [*model.state_dict().values(), *unsaved_buffers(model).values()]
        limit = SIZE * sum(v.numel() * v.element_size() for v in values) + HEADER
        if size > limit:
            raise unfit([f"it has {size:,} bytes, and a checkpoint of this model has at most {limit:,}"], path)
    try:
        with open(path, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
        if length > min(HEADER, size):
            raise ValueError(f"its header declares a length of {length:,} bytes")
        with safe_open(path, framework="pt") as file:
            stored: dict[str, str] = file.metadata() or {}
            if "format" not in stored:
                raise ValueError("it has no format")
            metadata: dict[str, str] = current(stored, path)
            _position(metadata["position"])
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}
            for name, rows in under(SCALE, shapes).items():  # which would be multiplied to any size
                if len(shapes[name]) < 2 or rows != shapes[name][:1]:
                    raise ValueError(f"{rows} scales for the rows of {name}, of shape {shapes[name]}")
            return metadata, shapes
    except UNREADABLE as error:
        raise _damaged(path, error) from error


def _position(text: str) -> Position:
    position = Position(**json.loads(text))
    for value in asdict(position).values():
        if type(value) is not int or not 0 <= value < 2**53:
            raise ValueError(f"its position is {text}")
    return position


def _damaged(path: Path, cause: BaseException) -> DamagedError:
    reason = str(cause).splitlines()[0][:200] if str(cause) else type(cause).__name__
    return DamagedError(
        "The checkpoint is damaged or cut short.",
        got=f"{path}: {reason}",
        fix="delete it to go on from the one before, or train again",
    )


def unsaved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that the state of a model leaves out, such as counters."""
    saved = model.state_dict()
    return {k: v for k, v in model.named_buffers() if k not in saved}


def shapes_of(model: nn.Module) -> Shapes:
    """The shapes of a model's state."""
    return _shapes(model.state_dict())


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {k: tuple(v.shape) for k, v in tensors.items()}


def check_state(expected: Mapping[str, Tensor], stored: Mapping[str, Tensor], path: Path) -> None:
    """Raises a `CheckpointError` that names the differences unless stored tensors have the right shapes and types."""
    check_shapes(_shapes(expected), _shapes(stored), path)
    if wrong := [f"{k} is {stored[k].dtype}, not {v.dtype}" for k, v in expected.items() if stored[k].dtype != v.dtype]:
        raise unfit(wrong, path)


def check_shapes(expected: Shapes, shapes: Shapes, path: Path) -> None:
    """Raises a `CheckpointError` that names the differences unless stored shapes are those expected."""
    wrong = [f"{k} is missing" for k in expected if k not in shapes]
    wrong += [f"{k} is not part of the model" for k in shapes if k not in expected]
    wrong += [f"{k} has shape {v}, not {expected[k]}" for k, v in shapes.items() if v != expected.get(k, v)]
    if wrong:
        raise unfit(wrong, path)


def unfit(wrong: list[str], path: Path) -> CheckpointError:
    """The error for a checkpoint of another model."""
    more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
    return CheckpointError(
        "The checkpoint belongs to another model.",
        got=f"{path}: " + "; ".join(wrong[:3]) + more,
        fix="use the config.json of its own run folder",
    )


def under(prefix: str, values: Mapping[str, T]) -> dict[str, T]:
    """The entries named PREFIX.NAME, by NAME."""
    return {k[len(prefix) + 1 :]: v for k, v in values.items() if k.startswith(prefix + ".")}
