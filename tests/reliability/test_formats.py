"""Run folders and checkpoints of other formats are refused in a sentence."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from trajgen.cli import main
from trajgen.core.errors import CheckpointError, TrajgenError
from trajgen.core.formats import FORMAT, current
from trajgen.engine.storage import read_header, read_tensors
from trajgen.experiments.run_folder import load_config, read_config, write_config
from trajgen.export import exported_policy

STRANGE = ["new", "", -1, 1.5, True, None, [1], "-1", "9" * 5000]
OTHERS = [(FORMAT + 1, "newer trajgen", "pip install --upgrade trajgen"), (1, "trajgen 0.1", "train it again")]


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    """A copy of a run folder, written by the present code."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


def altered(folder: Path, **values: Any) -> Path:
    """The same with other values in its config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def content(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_format_is_written_into_run_folders_and_checkpoints(folder: Path) -> None:
    assert json.loads((folder / "config.json").read_text())["format"] == FORMAT
    with safe_open(folder / "checkpoints" / "final.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == str(FORMAT)
    assert exported_policy.FORMAT_VERSION == FORMAT  # a file that stands alone, and cannot import it


def test_a_resumed_folder_keeps_its_command(folder: Path) -> None:
    command = read_config(folder)["command"]
    write_config(folder, *load_config(folder), "trajgen train another=one")
    plain = json.loads((folder / "config.json").read_text())
    assert plain["format"] == FORMAT and plain["command"] == command


@pytest.mark.parametrize(("number", "rule", "fix"), OTHERS)
@pytest.mark.parametrize("words", [["evaluate"], ["sample"], ["export"], ["plot"], ["train", "resume=true"]])
def test_a_folder_of_another_format_is_refused_and_stays_as_it_is(
    words: list[str], number: int, rule: str, fix: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    altered(folder, format=number, something_else={"of": "then"})
    before = content(folder)
    with pytest.raises(SystemExit) as ended:
        main([*words, f"run_dir={folder}" if words[0] == "train" else f"run={folder}"])
    error = capsys.readouterr().err
    assert ended.value.code == 1 and rule in error and fix in error
    assert f"format {number} in {folder / 'config.json'}" in error
    assert content(folder) == before


def test_a_folder_of_0_1_is_refused_with_the_new_name_of_an_option(folder: Path) -> None:
    policy = json.loads((folder / "config.json").read_text())["policy"]
    with pytest.raises(CheckpointError) as caught:
        load_config(altered(folder, format=1, policy={**policy, "replan": 4}))
    assert str(caught.value.got).endswith(f"reads {FORMAT}, which calls 'policy.replan' 'policy.replan_interval'")
    deep: dict[str, Any] = {}
    for _ in range(3000):
        deep = {"a": deep}
    for plain in ({"policy": policy}, deep):  # none of whose names is old
        with pytest.raises(CheckpointError) as caught:
            current({"format": 1, **plain}, "config.json")
        assert str(caught.value.got).endswith(f"reads {FORMAT}")


def test_a_folder_with_an_old_name_is_refused_with_the_new_one(folder: Path) -> None:
    plain = json.loads((folder / "config.json").read_text())
    altered(folder, policy={**plain["policy"], "replan": 4})
    with pytest.raises(TrajgenError) as caught:
        load_config(folder)
    assert "policy.replan_interval" in str(caught.value)


@pytest.mark.parametrize("written", STRANGE)
def test_a_format_that_is_none_is_a_damaged_file(written: object, folder: Path) -> None:
    with pytest.raises(CheckpointError, match="format"):
        load_config(altered(folder, format=written))


def checkpoint(path: Path, written: str) -> Path:
    save_file({"model.a": torch.zeros(2)}, path, metadata={"format": written, "position": '{"stage": 1, "step": 2}'})
    return path


@pytest.mark.parametrize(("number", "rule", "fix"), OTHERS)
def test_a_checkpoint_of_another_format_is_refused_before_a_tensor_is_read(
    number: int, rule: str, fix: str, tmp_path: Path
) -> None:
    path = checkpoint(tmp_path / "other.safetensors", str(number))
    for read in (read_header, lambda p: read_tensors(p, torch.device("cpu"))):
        with pytest.raises(CheckpointError, match=rule) as caught:
            read(path)
        assert type(caught.value) is CheckpointError  # not a damaged one, before which another might be whole
        assert str(path) in str(caught.value.got) and fix in str(caught.value.fix)


@pytest.mark.parametrize("written", [each for each in STRANGE if isinstance(each, str)])
def test_a_checkpoint_without_a_number_is_damaged(written: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="damaged"):
        read_header(checkpoint(tmp_path / "odd.safetensors", written))


def test_an_export_of_a_newer_format_is_read_by_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text(json.dumps({"format": "onnx", "format_version": FORMAT + 1}))
    with pytest.raises(ValueError, match=f"{FORMAT + 1}.*reads up to {FORMAT}.*policy.py of that folder"):
        exported_policy.Policy(tmp_path)
