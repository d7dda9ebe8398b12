"""Run folders and checkpoints of older formats are read as if they were written today; newer ones are refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import trajgen
from trajgen.cli import main
from trajgen.core import formats
from trajgen.core.errors import CheckpointError
from trajgen.core.formats import FORMAT, UPGRADES, current
from trajgen.engine.storage import read_header, read_tensors
from trajgen.experiments.run_folder import identity, load_config, read_config, write_config
from trajgen.export import exported

STRANGE = ["new", "", -1, 1.5, True, None, [1], "-1", "9" * 5000]


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    """A copy of a run folder, written by the present code."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


def altered(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The same with another config.json."""
    path = folder / "config.json"
    plain = json.loads(path.read_text())
    change(plain)
    path.write_text(json.dumps(plain))
    return folder


def without_formats(plain: dict[str, Any]) -> None:
    """As it was written before the format was, and before some options were there."""
    del plain["format"], plain["engine"]["accumulate"], plain["engine"]["log"], plain["policy"]["backend"]


def content(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_format_is_written_into_run_folders_and_checkpoints(folder: Path) -> None:
    assert json.loads((folder / "config.json").read_text())["format"] == FORMAT
    with safe_open(folder / "checkpoints" / "final.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == str(FORMAT)
    assert exported.FORMAT_VERSION == FORMAT  # a file that stands alone, and cannot ask


def test_a_folder_from_before_formats_is_the_same_run(folder: Path) -> None:
    before, known = load_config(folder), identity(folder)
    altered(folder, without_formats)
    assert load_config(folder) == before and identity(folder) == known
    assert trajgen.load_policy(folder, device="cpu").act is not None


def test_an_option_that_came_later_has_what_was_done_without_it_not_what_is_usual_now() -> None:
    once = {
        "prior": {"name": "diffusion", "width": 8},
        "planner": {"name": "history"},
        "policy": {"replan_interval": 2},
    }
    now = current("config", once, "here")
    assert now["prior"] == {"name": "diffusion", "width": 8, "network": "transformer"}
    assert now["planner"]["past_actions"] is True and now["policy"] == {"replan_interval": 2, "backend": "eager"}
    assert once["policy"] == {"replan_interval": 2}  # what was given stays
    for other in ({"prior": {"name": "transformer"}}, {"prior": None}, {"prior": 3}, {}):
        assert current("config", other, "here") == other
    kept = {"prior": {"name": "diffusion", "network": "convolution"}}
    assert current("config", kept, "here") == kept
    recorded = {"prior": {"name": "diffusion"}}
    assert current("config", {"format": FORMAT, **recorded}, "here") == recorded


def test_a_resumed_folder_is_written_in_the_present_format_and_keeps_its_command(folder: Path) -> None:
    altered(folder, without_formats)
    command = read_config(folder)["command"]
    write_config(folder, *load_config(folder), "trajgen train another=one")
    plain = json.loads((folder / "config.json").read_text())
    assert plain["format"] == FORMAT and plain["command"] == command and plain["policy"]["backend"] == "eager"


@pytest.mark.parametrize("words", [["evaluate"], ["sample"], ["export"], ["plot"], ["train", "resume=true"]])
def test_a_newer_folder_is_refused_and_stays_as_it_is(
    words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    altered(folder, lambda plain: plain.update(format=FORMAT + 1, something_new={"of": "then"}))
    before = content(folder)
    place = f"run_dir={folder}" if words[0] == "train" else f"run={folder}"
    with pytest.raises(SystemExit) as ended:
        main([*words, place])
    said = capsys.readouterr().err
    assert ended.value.code == 1 and "newer trajgen" in said
    assert f"format {FORMAT} or older" in said and f"format {FORMAT + 1} in {folder / 'config.json'}" in said
    assert "pip install --upgrade trajgen" in said
    assert content(folder) == before


@pytest.mark.parametrize("written", STRANGE)
def test_a_format_that_is_none_is_a_damaged_file(written: object, folder: Path) -> None:
    altered(folder, lambda plain: plain.update(format=written))
    with pytest.raises(CheckpointError, match="not as trajgen wrote it") as caught:
        load_config(folder)
    assert caught.value.expected and "format" in str(caught.value.got) and caught.value.fix


def checkpoint(path: Path, written: str) -> Path:
    save_file({"model.a": torch.zeros(2)}, path, metadata={"format": written, "position": '{"stage": 1, "step": 2}'})
    return path


def test_a_checkpoint_of_a_newer_format_is_refused_before_a_tensor_is_read(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "new.safetensors", str(FORMAT + 1))
    for read in (read_header, lambda p: read_tensors(p, torch.device("cpu"))):
        with pytest.raises(CheckpointError, match="newer trajgen") as caught:
            read(path)
        assert type(caught.value) is CheckpointError  # not a damaged one, before which another might be whole
        error = caught.value
        assert str(path) in str(error.got) and str(FORMAT) in str(error.expected) and "upgrade" in str(error.fix)


@pytest.mark.parametrize("written", [each for each in STRANGE if isinstance(each, str)])
def test_a_checkpoint_without_a_number_is_damaged(written: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="damaged"):
        read_header(checkpoint(tmp_path / "odd.safetensors", written))


def test_a_checkpoint_goes_through_the_chain_as_a_folder_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    save_file({"model.a": torch.ones(2)}, path, metadata={"format": "1", "place": '{"stage": 1, "step": 2}'})

    def renamed(values: dict[str, Any]) -> dict[str, Any]:
        return {"position": values["place"]}

    def numbered(number: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
        return lambda values: {**values, "went": [*values.get("went", []), number]}

    steps = ({"config": numbered(1)}, {"checkpoint": renamed, "config": numbered(2)}, {"config": numbered(3)})
    monkeypatch.setattr(formats, "UPGRADES", steps)
    monkeypatch.setattr(formats, "FORMAT", 3)
    tensors, position = read_tensors(path, torch.device("cpu"))
    assert (position.stage, position.step) == (1, 2) and torch.equal(tensors["model.a"], load_file(path)["model.a"])
    assert [current("config", {"format": n}, "here").get("went") for n in range(4)] == [[1, 2, 3], [2, 3], [3], None]


def test_there_is_an_upgrade_from_every_format() -> None:
    assert len(UPGRADES) == FORMAT and all({*step} <= {"config", "checkpoint"} for step in UPGRADES)


def test_an_export_of_a_newer_format_is_read_by_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text(json.dumps({"format": "onnx", "format_version": FORMAT + 1}))
    with pytest.raises(ValueError, match=f"{FORMAT + 1}.*reads up to {FORMAT}.*policy.py of that folder"):
        exported.Policy(tmp_path)
