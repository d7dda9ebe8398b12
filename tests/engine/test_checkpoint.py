"""Checkpoints: whole or not there, and every fault named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from toys import Toy

from trajgen.core.errors import CheckpointError
from trajgen.engine import storage
from trajgen.engine.checkpoint import Checkpoints, load_weights
from trajgen.engine.storage import Position, part, read_tensors, write_tensors

CPU = torch.device("cpu")


def tensors(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"model.a": torch.full((2, 3), value), "optimizer.0.step": torch.tensor(3)}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "one.safetensors"
    write_tensors(path, {**tensors(), "model.t": torch.arange(6.0).view(2, 3).T}, Position(1, 42))
    found, position = read_tensors(path, CPU)
    assert position == Position(1, 42)
    assert torch.equal(found["model.t"], torch.arange(6.0).view(2, 3).T)
    assert int(found["optimizer.0.step"]) == 3
    assert set(part(found, "model")) == {"a", "t"}


def test_the_last_two_are_kept_in_order(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    for position in (Position(0, 9), Position(0, 10), Position(0, 100), Position(1, 0), Position(1, 9)):
        kept.save(position, tensors())
    assert [read_tensors(p, CPU)[1] for p in kept.on_the_way()] == [Position(1, 0), Position(1, 9)]
    assert read_tensors(kept.newest(), CPU)[1] == Position(1, 9) and not kept.finished
    kept.save_final(Toy())
    assert kept.finished and kept.on_the_way() == [] and kept.newest().name == "final.safetensors"


def test_a_write_that_breaks_off_never_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(Position(0, 1), tensors(1.0))

    def breaks(handle: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(storage.os, "fsync", breaks)
    for attempt in (lambda: kept.save(Position(0, 2), tensors(2.0)), lambda: kept.save_final(Toy())):
        with pytest.raises(OSError, match="no space"):
            attempt()
    assert [p.name for p in tmp_path.iterdir()] == ["stage0-step0000001.safetensors"] and not kept.finished
    assert float(read_tensors(kept.newest(), CPU)[0]["model.a"][0, 0]) == 1


def test_the_same_name_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    write_tensors(path, tensors(1.0), Position())
    write_tensors(path, tensors(2.0), Position())
    assert float(read_tensors(path, CPU)[0]["model.a"][0, 0]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["one.safetensors"]


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_a_file_cut_short_is_an_error_that_names_it(share: float, tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    write_tensors(path, tensors(), Position())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(CheckpointError, match=r"damaged or cut short[\s\S]*one\.safetensors") as caught:
        read_tensors(path, CPU)
    assert caught.value.fix


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"format": "2"},
        {"format": "one", "position": "{}"},
        {"format": "2", "position": "not json"},
        {"format": "2", "position": '{"place": 3}'},
        {"format": "2", "position": "[1]"},
    ],
)
def test_a_file_of_something_else_is_refused(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_file(tensors(), path, metadata=metadata)
    with pytest.raises(CheckpointError):
        read_tensors(path, CPU)


def test_garbage_and_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "garbage.safetensors").write_bytes(b"\x00" * 300)
    for name in ("garbage.safetensors", "missing.safetensors"):
        with pytest.raises(CheckpointError, match=name):
            read_tensors(tmp_path / name, CPU)
    with pytest.raises(CheckpointError, match="none in"):
        Checkpoints(tmp_path / "empty").newest()


def test_a_newer_format_says_so(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "new.safetensors", metadata={"format": "3", "position": "{}"})
    with pytest.raises(CheckpointError, match="newer trajgen"):
        read_tensors(tmp_path / "new.safetensors", CPU)


def test_another_model_says_what_does_not_fit(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path).save_final(Toy())
    other = Toy()
    other.two = nn.Linear(4, 5)
    with pytest.raises(CheckpointError, match=r"two\.weight has shape \(4, 4\), not \(5, 4\)"):
        load_weights(other, path)
    other = Toy()
    other.three = nn.Linear(1, 1)
    before = other.one.weight.clone()
    with pytest.raises(CheckpointError, match=r"three\.weight is missing"):
        load_weights(other, path)
    with pytest.raises(CheckpointError, match=r"one\.bias is not part of the model"):
        load_weights(nn.Linear(2, 2), path)
    assert torch.equal(other.one.weight, before)


def test_the_averaged_weights_are_those_to_act_with(tmp_path: Path) -> None:
    model, average = Toy(1), Toy(2)
    values = {f"model.{k}": v for k, v in model.state_dict().items()}
    values |= {f"ema.{k}": v for k, v in average.state_dict().items()}
    path = Checkpoints(tmp_path).save(Position(0, 5), values)
    loaded = Toy(3)
    load_weights(loaded, path)
    assert torch.equal(loaded.one.weight, average.one.weight)
