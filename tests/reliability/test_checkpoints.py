"""Checkpoints: whole or not there, in the order of their steps, every byte checked, a damaged one put aside."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load, save
from torch import Tensor, nn

from trajgen.core import files
from trajgen.core.errors import CheckpointError
from trajgen.engine import storage
from trajgen.engine.checkpoint import Checkpoints, load_weights
from trajgen.engine.storage import DamagedError, Position, read_tensors, under, write_tensors
from trajgen.nn.low_rank import ADAPTED, merged_weights

CPU = torch.device("cpu")
QUIET = Console(quiet=True)
FLIPS = 200


class Model(nn.Module):
    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((5, 7), value))
        self.register_buffer("count", torch.tensor(3))


def state(value: float = 0.0) -> dict[str, Tensor]:
    return {f"model.{k}": v for k, v in Model(value).state_dict().items()} | {"optimizer.0.exp_avg": torch.ones(5, 7)}


# --- writing --------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "one.safetensors"
    write_tensors(path, state(), Position())
    write_tensors(path, {**state(2.0), "model.t": torch.arange(6.0).view(2, 3).T}, Position(1, 42))
    tensors, position = read_tensors(path, CPU)
    assert position == Position(1, 42) and set(under("model", tensors)) == {"weight", "count", "t"}
    assert torch.equal(tensors["model.t"], torch.arange(6.0).view(2, 3).T) and float(tensors["model.weight"][0, 0]) == 2
    assert [p.name for p in path.parent.iterdir()] == ["one.safetensors"]


def test_the_last_two_are_kept_in_the_order_of_numbers(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match="none in"):
        checkpoints.newest()
    for position in (Position(0, 9), Position(0, 10), Position(2, 9_999_999), Position(2, 10_000_000), Position(10, 1)):
        checkpoints.save(position, state())
    (tmp_path / "stagex-step1.safetensors").write_text("")
    positions = [read_tensors(path, CPU)[1] for path in checkpoints.intermediate()]
    assert positions == [Position(2, 10_000_000), Position(10, 1)] and not checkpoints.finished
    assert read_tensors(checkpoints.newest(), CPU)[1] == Position(10, 1)
    checkpoints.save_final(Model())
    assert checkpoints.finished and checkpoints.intermediate() == []
    assert checkpoints.newest().name == "final.safetensors"


def test_the_content_is_on_the_disk_before_it_is_renamed_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, Path]] = []
    flush, replace = files.flush, files.os.replace
    monkeypatch.setattr(files, "flush", lambda path: (calls.append(("flush", path)), flush(path)))
    monkeypatch.setattr(files.os, "replace", lambda old, new: (calls.append(("replace", new)), replace(old, new)))
    files.write_file(tmp_path / "one", "text")
    partial = tmp_path / f"{files.PARTIAL}one"
    assert calls == [("flush", partial), ("replace", tmp_path / "one"), ("flush", tmp_path)]


def test_a_write_that_breaks_off_never_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(Position(0, 1), state(1.0))

    def fail(handle: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(files.os, "fsync", fail)
    for write in (lambda: checkpoints.save(Position(0, 2), state(2.0)), lambda: checkpoints.save_final(Model())):
        with pytest.raises(OSError, match="no space"):
            write()
    assert [p.name for p in tmp_path.iterdir()] == ["stage0-step0000001.safetensors"] and not checkpoints.finished
    assert float(read_tensors(checkpoints.newest(), CPU)[0]["model.weight"][0, 0]) == 1


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the names of open files are not known here")
def test_a_power_cut_finds_the_old_file_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes reach the disk before the name does, and the name before anything older is removed."""
    checkpoints, calls = Checkpoints(tmp_path), []

    def record(owner: Any, name: str, describe: Any) -> None:
        call = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **rest: (calls.append(describe(*args)), call(*args, **rest))[1])

    for step in (1, 2):
        checkpoints.save(Position(0, step), state())
    record(os, "fsync", lambda handle: f"flush {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")
    record(os, "replace", lambda old, new: f"{Path(old).name} -> {Path(new).name}")
    record(Path, "unlink", lambda path, **_: f"remove {path.name}")
    checkpoints.save(Position(0, 3), state())
    name = "stage0-step0000003.safetensors"
    partial = files.PARTIAL + name
    assert calls == [
        f"flush {partial}", f"{partial} -> {name}", f"flush {tmp_path.name}", "remove stage0-step0000001.safetensors"
    ]  # fmt: skip


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save(Position(0, 1), state())
    (tmp_path / f"{files.PARTIAL}stage0-step0000002.safetensors").write_bytes(b"half")
    checkpoints.clean()
    assert list(tmp_path.iterdir()) == [path]


# --- damage ---------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """Unless it changes nothing that is read: a blank at the end of the header may become another."""
    path = tmp_path / "stage0-step0000001.safetensors"
    write_tensors(path, state(), Position(0, 1))
    content, draw, noticed = path.read_bytes(), random.Random(1), 0
    expected = load(content)
    for _ in range(FLIPS):
        offset = draw.randrange(len(content))
        path.write_bytes(content[:offset] + bytes([content[offset] ^ 1 << draw.randrange(8)]) + content[offset + 1 :])
        try:
            tensors, position = read_tensors(path, CPU)
        except CheckpointError:
            noticed += 1
        else:
            assert position == Position(0, 1)
            assert tensors.keys() == expected.keys() and all(torch.equal(tensors[k], expected[k]) for k in expected)
    assert noticed > 0.9 * FLIPS


@pytest.mark.parametrize("fraction", [0.0, 0.02, 0.5, 0.99])
def test_a_file_cut_short_is_an_error_that_names_it(fraction: float, tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    write_tensors(path, state(), Position())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])
    with pytest.raises(CheckpointError, match=r"damaged or cut short[\s\S]*one\.safetensors") as caught:
        read_tensors(path, CPU)
    assert caught.value.fix


def test_a_damaged_newest_falls_back_and_says_so(tmp_path: Path) -> None:
    checkpoints, output = Checkpoints(tmp_path), io.StringIO()
    for step in (1, 2):
        path = checkpoints.save(Position(0, step), state(float(step)))
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    read, tensors, position = checkpoints.read_newest(Model(), CPU, Console(file=output))
    assert position == Position(0, 1) and read.name in output.getvalue() and path.name in output.getvalue()
    assert len(output.getvalue().splitlines()) == 1 and float(tensors["model.weight"][0, 0]) == 1.0
    assert checkpoints.intermediate() == [read] and path.with_name(path.name + ".damaged").exists()
    read.write_bytes(b"")
    with pytest.raises(DamagedError, match="step0000001"):  # none is whole
        checkpoints.read_newest(Model(), CPU, QUIET)
    assert checkpoints.intermediate() == [read]


# --- another model --------------------------------------------------------------------------------------------------


def test_another_model_is_named_and_not_passed_over(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(Position(0, 1), state())
    path = checkpoints.save(Position(0, 2), {**state(), "model.other": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="another model"):
        checkpoints.read_newest(Model(), CPU, QUIET)
    with pytest.raises(CheckpointError, match="other is not part of the model"):
        load_weights(Model(), path)
    wider, more = Model(), Model()
    wider.weight = nn.Parameter(torch.zeros(5, 8))
    more.other, more.third = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    with pytest.raises(CheckpointError, match=r"weight has shape \(5, 7\), not \(5, 8\)"):
        load_weights(wider, path)
    with pytest.raises(CheckpointError, match=r"third is missing"):
        load_weights(more, path)
    write_tensors(path, {**state(), "model.weight": torch.zeros(5, 7, dtype=torch.complex64)}, Position())
    with pytest.raises(CheckpointError, match="complex64"):
        load_weights(Model(), path)


def test_averaged_weights_are_loaded_and_checksums_may_be_missing(tmp_path: Path) -> None:
    """A file from before there were checksums is taken as it is."""
    path, model = tmp_path / "final.safetensors", Model()
    path.write_bytes(save(state(4.0), {"format": "2", "position": json.dumps({"stage": 0, "step": 0})}))
    load_weights(model, path)
    assert float(model.weight[0, 0].detach()) == 4.0
    path = Checkpoints(tmp_path).save(Position(0, 5), state(1.0) | {"ema.weight": torch.full((5, 7), 2.0)})
    load_weights(model, path)
    assert float(model.weight[0, 0].detach()) == 2.0


# --- strangers' checkpoints -----------------------------------------------------------------------------------------


def header(size: int, *, dtype: str = "F32", shape: Any = None, end: int | None = None, **metadata: str) -> bytes:
    """The beginning of a file that declares one tensor."""
    about = {"format": "2", "position": '{"stage": 0, "step": 0}'} | metadata
    tensor = {"dtype": dtype, "shape": shape or [size // 4], "data_offsets": [0, size if end is None else end]}
    text = json.dumps({"__metadata__": about, "model.weight": tensor}).encode()
    return struct.pack("<Q", len(text)) + text


DEEP = "[" * 100_000 + "]" * 100_000
HOSTILE = {
    "garbage": b"\x00" * 300,
    "a header of 2^60 bytes": struct.pack("<Q", 2**60) + b"{}",
    "a header of all there is to memory": struct.pack("<Q", 2**63 - 1) + b"{}",
    "a deep header": struct.pack("<Q", len(DEEP)) + DEEP.encode(),
    "a shape beyond the file": header(2**40),
    "a shape that is not its length": header(16, shape=[2**40, 2**20]) + b"\0" * 16,
    "a shape that overflows": header(16, shape=[2**32, 2**32, 2**32]) + b"\0" * 16,
    "a negative shape": header(16, shape=[-4]) + b"\0" * 16,
    "an offset before the beginning": header(16, end=-16) + b"\0" * 16,
    "an unknown type": header(16, dtype="pickle") + b"\0" * 16,
    "no metadata": save(state()),
    "no position": save(state(), {"format": "2"}),
    "a position of other entries": header(16, position='{"place": 3}') + b"\0" * 16,
    "a position that is a list": header(16, position="[1]") + b"\0" * 16,
    "a deep position": header(16, position=DEEP) + b"\0" * 16,
    "a position below zero": header(16, position='{"stage": -1, "step": 0}') + b"\0" * 16,
    "a position that is no number": header(16, position='{"stage": true, "step": 1e400}') + b"\0" * 16,
    "a huge position": header(16, position=f'{{"stage": {"9" * 5000}, "step": 0}}') + b"\0" * 16,
    "a format that is no number": header(16, format="one") + b"\0" * 16,
    "a newer format": header(16, format="3") + b"\0" * 16,
    "a wrong checksum": header(16, sha256="0" * 64) + b"\0" * 16,
    "an archive": b"PK\x03\x04" + b"\0" * 100,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_checkpoints_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "final.safetensors"
    path.write_bytes(HOSTILE[name])
    for read in (lambda: read_tensors(path, CPU), lambda: load_weights(Model(), path)):
        with pytest.raises(CheckpointError, match="newer trajgen" if name == "a newer format" else None) as caught:
            read()
        assert caught.value.fix and len(str(caught.value)) < 2000
    with pytest.raises(CheckpointError, match="missing"):
        read_tensors(tmp_path / "missing.safetensors", CPU)


class Touch:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("by", ["torch", "pickle"])
def test_a_pickle_by_another_name_is_not_unpickled(by: str, tmp_path: Path) -> None:
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


def assert_refused(folder: Path, message: str) -> None:
    """A checkpoint is refused when acting, and when resuming."""
    with pytest.raises(CheckpointError, match=message):
        load_weights(Model(), folder / "stage0-step0000001.safetensors")
    with pytest.raises(CheckpointError, match=message):
        Checkpoints(folder).read_newest(Model(), CPU, QUIET)


def test_huge_weights_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with holes: it declares 64 GiB, and holds them."""
    path = tmp_path / "stage0-step0000001.safetensors"
    start = header(2**36)
    path.write_bytes(start)
    try:
        os.truncate(path, len(start) + 2**36)
    except OSError:
        pytest.skip("no files with holes here")
    monkeypatch.setattr(storage, "safe_open", lambda *_, **__: pytest.fail("it was opened"))
    assert_refused(tmp_path, "at most")


def test_other_shapes_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {**state(), "model.weight": torch.zeros(1000, 1000)}
    write_tensors(tmp_path / "stage0-step0000001.safetensors", tensors, Position(0, 1))
    monkeypatch.setattr(storage, "checksum", lambda *_: pytest.fail("it was read"))
    assert_refused(tmp_path, "has shape")


def test_huge_tensors_beside_the_weights_are_refused_too(tmp_path: Path) -> None:
    tensors = state() | {"optimizer.1.exp_avg": torch.zeros(2**23)}
    write_tensors(tmp_path / "stage0-step0000001.safetensors", tensors, Position(0, 1))
    assert_refused(tmp_path, "at most")


@pytest.mark.parametrize("scale", [torch.ones(4096), torch.ones(2), torch.ones(1, 1)])
def test_scales_of_other_rows_are_refused_before_they_are_multiplied(tmp_path: Path, scale: Tensor) -> None:
    path = tmp_path / "one.safetensors"
    write_tensors(path, {"model.x": torch.zeros(1, 4096, dtype=torch.int8), "scale.model.x": scale}, Position())
    with pytest.raises(DamagedError, match="scales for the rows"):
        read_tensors(path, CPU)


@pytest.mark.parametrize("factors", [{}, {"up": (4096, 1), "down": (1, 4096)}, {"up": (4, 1), "down": (2, 4)}])
def test_adapters_of_another_shape_are_refused_before_they_are_multiplied(factors: dict[str, Any]) -> None:
    layer = f"layer{ADAPTED}"
    adapters = {f"{layer}0.{name}": torch.zeros(shape) for name, shape in factors.items()}
    for weight in (torch.zeros(4, 4), torch.tensor(0.0)):
        with pytest.raises(CheckpointError, match="shape of the weight"):
            merged_weights({f"{layer}original": weight, **adapters})
