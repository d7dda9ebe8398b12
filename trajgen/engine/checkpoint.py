"""Checkpoints: tensors in safetensors files and a little JSON; written whole or not at all, never unpickled."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from trajgen.core.errors import CheckpointError

FORMAT = 1
KEPT = 2


@dataclass(frozen=True)
class Position:
    """How far a training has come: the stage's number, and steps done in it."""

    stage: int = 0
    step: int = 0


class Checkpoints:
    """The checkpoints of one run: ``final.safetensors``, and the last few on the way there.

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
        for old in self.on_the_way():
            old.unlink()
        return path

    def on_the_way(self) -> list[Path]:
        """Checkpoints of an unfinished training, oldest first."""
        return sorted(self.folder.glob("stage*-step*.safetensors"))

    @property
    def finished(self) -> bool:
        """Whether the training came to its end."""
        return (self.folder / "final.safetensors").exists()

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


def write_tensors(path: Path, tensors: Mapping[str, Tensor], position: Position) -> None:
    """Writes tensors and position under a temporary name, flushes them to the disk, and renames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    plain = {k: v.detach().to("cpu").contiguous().clone() for k, v in tensors.items()}
    metadata = {"format": str(FORMAT), "position": json.dumps(asdict(position))}
    save_file(plain, temporary, metadata=metadata)
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_tensors(path: Path, device: torch.device) -> tuple[dict[str, Tensor], Position]:
    """Reads a checkpoint.

    Raises:
        CheckpointError: if the file is missing, damaged, cut short, or of a newer format.
    """
    if not path.is_file():
        raise CheckpointError(
            "A checkpoint is a file.",
            expected="a safetensors file written by trajgen",
            got=f"{path} does not exist",
            fix="check the path",
        )
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            written = int(metadata["format"])
            if written > FORMAT:
                raise CheckpointError(
                    "The checkpoint was written by a newer trajgen.",
                    expected=f"format {FORMAT} or older",
                    got=f"format {written} in {path}",
                    fix="pip install --upgrade trajgen",
                )
            names: list[str] = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
            return tensors, Position(**json.loads(metadata["position"]))
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise CheckpointError(
            "The checkpoint is damaged or cut short.",
            expected="a safetensors file written by trajgen",
            got=f"{path}: {error}",
            fix="delete it to go on from the one before, or train again",
        ) from error


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
    device = next(model.parameters()).device
    tensors, _ = read_tensors(path, device)
    weights = part(tensors, "model") | part(tensors, "ema")
    swapped = set(without)
    weights = {k: v for k, v in weights.items() if not swapped & set(k.split("."))}
    untrained = {part for k in model.state_dict() if k not in weights for part in swapped & set(k.split("."))}
    if untrained:
        raise CheckpointError(
            "What was not trained with the others cannot take a part's place afterwards.",
            expected="a part without weights of its own",
            got=f"another {', '.join(sorted(untrained))} than the one that {path} was trained with",
            fix=f"train anew with it, or leave {sorted(untrained)[0]} as it was",
        )
    load_state(model, weights, path)


def load_state(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Loads exactly these weights into a model, or raises a `CheckpointError` that says what does not fit."""
    own = model.state_dict()
    wrong = [f"{k} is missing" for k in own if k not in weights]
    wrong += [f"{k} is not part of the model" for k in weights if k not in own]
    wrong += [
        f"{k} has shape {tuple(weights[k].shape)}, not {tuple(own[k].shape)}"
        for k in own
        if k in weights and weights[k].shape != own[k].shape
    ]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise CheckpointError(
            "The checkpoint belongs to another model.",
            expected="weights of the model in config.json",
            got=f"{path}: " + "; ".join(wrong[:3]) + more,
            fix="use the config.json of its own run folder",
        )
    model.load_state_dict(dict(weights))


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, by the rest of their names."""
    return {k[len(prefix) + 1 :]: v for k, v in tensors.items() if k.startswith(prefix + ".")}
