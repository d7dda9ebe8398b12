"""Checkpoints: the order of what is written, every byte checked, a damaged one put aside."""

from __future__ import annotations

import io
import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load, save
from torch import Tensor, nn

from trajgen.core.errors import CheckpointError
from trajgen.engine import storage
from trajgen.engine.checkpoint import Checkpoints, load_weights
from trajgen.engine.storage import DamagedError, Position, read_tensors, write_tensors

CPU = torch.device("cpu")
FLIPS = 200


class Model(nn.Module):
    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((5, 7), value))
        self.register_buffer("seen", torch.tensor(3))


def state(value: float = 0.0) -> dict[str, Tensor]:
    return {f"model.{k}": v for k, v in Model(value).state_dict().items()} | {"optimizer.0.exp_avg": torch.ones(5, 7)}


def test_a_power_cut_finds_the_old_file_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes reach the disk before the name does, and the name before anything older is removed."""
    kept, done = Checkpoints(tmp_path), []

    def note(place: Any, name: str, what: Any) -> None:
        own = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *given, **rest: (done.append(what(*given)), own(*given, **rest))[1])

    def flushed(handle: int) -> str:
        return "flush " + Path(os.readlink(f"/proc/self/fd/{handle}")).name

    if not Path("/proc/self/fd").exists():
        pytest.skip("the names of open files are not known here")
    for step in (1, 2):
        kept.save(Position(0, step), state())
    note(os, "fsync", flushed)
    note(os, "replace", lambda old, new: f"{Path(old).name} -> {Path(new).name}")
    note(Path, "unlink", lambda path, **_: f"remove {path.name}")
    kept.save(Position(0, 3), state())
    name = "stage0-step0000003.safetensors"
    partial = f".{name}.partial"
    assert done == [
        f"flush {partial}", f"{partial} -> {name}", f"flush {tmp_path.name}", "remove stage0-step0000001.safetensors"
    ]  # fmt: skip


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """Unless it changes nothing that is read: a blank at the end of the header may become another."""
    path = tmp_path / "stage0-step0000001.safetensors"
    write_tensors(path, state(), Position(0, 1))
    whole, draw, noticed = path.read_bytes(), random.Random(1), 0
    known = load(whole)
    for _ in range(FLIPS):
        place = draw.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :])
        try:
            tensors, position = read_tensors(path, CPU)
        except CheckpointError:
            noticed += 1
        else:
            assert position == Position(0, 1)
            assert tensors.keys() == known.keys() and all(torch.equal(tensors[k], known[k]) for k in known)
    assert noticed > 0.9 * FLIPS


def test_a_damaged_newest_falls_back_and_says_so(tmp_path: Path) -> None:
    kept, said = Checkpoints(tmp_path), io.StringIO()
    for step in (1, 2):
        path = kept.save(Position(0, step), state(float(step)))
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    found, tensors, position = kept.read_newest(Model(), CPU, Console(file=said))
    assert position == Position(0, 1) and found.name in said.getvalue() and path.name in said.getvalue()
    assert len(said.getvalue().splitlines()) == 1
    assert float(tensors["model.weight"][0, 0]) == 1.0
    assert kept.on_the_way() == [found] and path.with_name(path.name + ".damaged").exists()


def test_none_that_is_whole_is_an_error(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(Position(0, 1), state()).write_bytes(b"")
    with pytest.raises(DamagedError, match="step0000001"):
        kept.read_newest(Model(), CPU, Console(quiet=True))
    assert len(kept.on_the_way()) == 1


def test_another_model_is_not_passed_over(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(Position(0, 1), state())
    kept.save(Position(0, 2), {"model.other": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="another model"):
        kept.read_newest(Model(), CPU, Console(quiet=True))


def test_one_from_before_checksums_is_read(tmp_path: Path) -> None:
    path = tmp_path / "final.safetensors"
    path.write_bytes(save(state(4.0), {"format": "2", "position": json.dumps({"stage": 0, "step": 0})}))
    model = Model()
    load_weights(model, path)
    assert float(model.weight[0, 0].detach()) == 4.0


def test_order_is_that_of_numbers(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    places = [Position(2, 9_999_999), Position(2, 10_000_000), Position(10, 1)]
    for position in places:
        kept.save(position, state())
    assert [read_tensors(path, CPU)[1] for path in kept.on_the_way()] == places[1:]
    (tmp_path / "stagex-step1.safetensors").write_text("")
    assert len(kept.on_the_way()) == 2


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(Position(0, 1), state())
    (tmp_path / ".stage0-step0000002.safetensors.partial").write_bytes(b"half")
    kept.tidy()
    assert [path.name for path in tmp_path.iterdir()] == ["stage0-step0000001.safetensors"]


# --- strangers' checkpoints -----------------------------------------------------------------------------------------


def header(size: int, *, dtype: str = "F32", shape: Any = None, end: int | None = None, **metadata: str) -> bytes:
    """The beginning of a file that declares one tensor."""
    about = {"format": "2", "position": '{"stage": 0, "step": 0}'} | metadata
    tensor = {"dtype": dtype, "shape": shape or [size // 4], "data_offsets": [0, size if end is None else end]}
    text = json.dumps({"__metadata__": about, "model.weight": tensor}).encode()
    return struct.pack("<Q", len(text)) + text


DEEP = "[" * 100_000 + "]" * 100_000
HOSTILE = {
    "a header of 2^60 bytes": struct.pack("<Q", 2**60) + b"{}",
    "a header of all there is to memory": struct.pack("<Q", 2**63 - 1) + b"{}",
    "a deep header": struct.pack("<Q", len(DEEP)) + DEEP.encode(),
    "a shape beyond the file": header(2**40),
    "a shape that is not its length": header(16, shape=[2**40, 2**20]) + b"\0" * 16,
    "a shape that overflows": header(16, shape=[2**32, 2**32, 2**32]) + b"\0" * 16,
    "a negative shape": header(16, shape=[-4]) + b"\0" * 16,
    "an offset before the beginning": header(16, end=-16) + b"\0" * 16,
    "an unknown type": header(16, dtype="pickle") + b"\0" * 16,
    "a deep position": header(16, position=DEEP) + b"\0" * 16,
    "a position below zero": header(16, position='{"stage": -1, "step": 0}') + b"\0" * 16,
    "a position that is no number": header(16, position='{"stage": true, "step": 1e400}') + b"\0" * 16,
    "a huge position": header(16, position=f'{{"stage": {"9" * 5000}, "step": 0}}') + b"\0" * 16,
    "a format that is no number": header(16, format="one") + b"\0" * 16,
    "a wrong checksum": header(16, sha256="0" * 64) + b"\0" * 16,
    "an archive": b"PK\x03\x04" + b"\0" * 100,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_checkpoints_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "final.safetensors"
    path.write_bytes(HOSTILE[name])
    for read in (lambda: read_tensors(path, CPU), lambda: load_weights(Model(), path)):
        with pytest.raises(CheckpointError) as caught:
            read()
        assert caught.value.fix and len(str(caught.value)) < 2000


class Touch:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("by", ["torch", "pickle"])
def test_a_pickle_by_another_name_is_not_unpickled(by: str, tmp_path: Path) -> None:
    import pickle

    path, trace = tmp_path / "final.safetensors", tmp_path / "executed"
    if by == "torch":
        torch.save({"model.weight": Touch(trace)}, path)
    else:
        path.write_bytes(pickle.dumps(Touch(trace)))
    with pytest.raises(CheckpointError):
        load_weights(Model(), path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Touch(trace)))
    assert trace.exists()  # the trap works


def test_huge_weights_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with holes: it declares 64 GiB, and holds them."""
    path = tmp_path / "stage0-step0000001.safetensors"
    start = header(2**36)
    path.write_bytes(start)
    try:
        os.truncate(path, len(start) + 2**36)
    except OSError:
        pytest.skip("no files with holes here")

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was opened")

    monkeypatch.setattr(storage, "safe_open", never)
    with pytest.raises(CheckpointError, match="at most"):
        load_weights(Model(), path)
    with pytest.raises(CheckpointError, match="at most"):
        Checkpoints(tmp_path).read_newest(Model(), CPU, Console(quiet=True))


def test_other_shapes_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stage0-step0000001.safetensors"
    write_tensors(path, {**state(), "model.weight": torch.zeros(1000, 1000)}, Position(0, 1))

    def never(*_: Any) -> str:
        raise AssertionError("it was read")

    monkeypatch.setattr(storage, "checksum", never)
    for read in (
        lambda: load_weights(Model(), path),
        lambda: Checkpoints(tmp_path).read_newest(Model(), CPU, Console(quiet=True)),
    ):
        with pytest.raises(CheckpointError, match="has shape"):
            read()


def test_huge_company_of_the_weights_is_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "stage0-step0000001.safetensors"
    write_tensors(path, state() | {"optimizer.1.exp_avg": torch.zeros(2**23)}, Position(0, 1))
    with pytest.raises(CheckpointError, match="at most"):
        load_weights(Model(), path)
    with pytest.raises(CheckpointError, match="at most"):
        Checkpoints(tmp_path).read_newest(Model(), CPU, Console(quiet=True))


def test_weights_of_another_type_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "final.safetensors"
    write_tensors(path, {**state(), "model.weight": torch.zeros(5, 7, dtype=torch.complex64)}, Position())
    with pytest.raises(CheckpointError, match="complex64"):
        load_weights(Model(), path)
