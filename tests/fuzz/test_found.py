"""What spoilt files found, written out: each raised another exception, or took all memory, and is refused now."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from made_set import DICT_OPTIONS, ID, write_set

from trajgen import security
from trajgen.cli.overrides import parse
from trajgen.config import RECIPES, compose, read_yaml
from trajgen.core.errors import CheckpointError, ConfigError, DataError
from trajgen.core.options import convert
from trajgen.data import minari, store
from trajgen.envs.eval_env import make_eval_env
from trajgen.experiments.definition import Study, Variant
from trajgen.experiments.results import episode_returns
from trajgen.experiments.run_folder import read_evaluation
from trajgen.experiments.study import check_folder


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a small data set's files."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    write_set()
    return store.folder(ID) / "data"


ACTIONS = "episode_1/actions"


def huge(file: h5py.File) -> None:
    del file[ACTIONS]
    file.create_dataset(ACTIONS, shape=(2**28, 1), dtype="f4", chunks=(1024, 1))


def packed(file: h5py.File) -> None:
    del file[ACTIONS]
    file.create_dataset(
        ACTIONS, data=np.zeros((2**26, 1), "u1"), chunks=(2**20, 1), compression="gzip", compression_opts=1
    )


def repeated(file: h5py.File) -> None:
    """The same hundred arrays, in a hundred groups, in a hundred groups …"""
    inner = file.create_group("laughs0")
    for n in range(100):
        inner[str(n)] = file[ACTIONS]
    for depth in range(1, 6):
        outer = file.create_group(f"laughs{depth}")
        for n in range(100):
            outer[str(n)] = inner
        inner = outer
    file["episode_0/infos"] = inner


def looped(file: h5py.File) -> None:
    file["episode_1/infos"] = file["episode_1"]


def outside(file: h5py.File) -> None:
    del file[ACTIONS]
    file[ACTIONS] = h5py.ExternalLink("/etc/passwd", "/actions")


@pytest.mark.parametrize("spoil", [huge, packed, repeated, looped, outside])
def test_arrays_that_are_not_there_are_refused_before_they_are_read(
    spoil: Callable[[h5py.File], None], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "SLACK", 2**20)
    assert minari.load(ID, DICT_OPTIONS).steps == 30
    with h5py.File(data / "main_data.hdf5", "r+") as file:
        spoil(file)
    with pytest.raises(DataError, match=r"memory|leads elsewhere"):
        minari.load(ID, DICT_OPTIONS)


@pytest.mark.parametrize("steps", [[1, 2], "many", np.nan])
def test_an_episode_s_length_that_is_no_number(steps: Any, data: Path) -> None:
    with h5py.File(data / "main_data.hdf5", "r+") as file:
        file["episode_1"].attrs["total_steps"] = steps
    with pytest.raises(DataError):
        minari.describe(ID)


DEEP = "[" * 100_000
SPACE = {"type": "Box", "dtype": "float32", "shape": [2**36], "low": 0.0, "high": 1.0}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("total_episodes", 2**40), ("total_episodes", "3"), ("total_steps", None), ("env_spec", 3.0),
        ("eval_env_spec", [1]), ("eval_env_spec", DEEP), ("observation_space", json.dumps(SPACE)),
        ("action_space", DEEP), ("action_space", {}),
        ("observation_space", json.dumps({"type": "Dict", "subspaces": {"state": SPACE}})),
    ],
)  # fmt: skip
def test_metadata_that_minari_never_wrote(key: str, value: Any, data: Path) -> None:
    path = data / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    for read in (
        lambda: minari.load(ID, DICT_OPTIONS),
        lambda: make_eval_env(DICT_OPTIONS),
        lambda: minari.describe(ID),
    ):
        with pytest.raises(DataError) as caught:
            read()
        assert len(str(caught.value)) < 3000
    assert [entry.problem is not None for entry in store.local_sets()] == [True]


def test_deep_metadata_is_refused(data: Path) -> None:
    (data / "metadata.json").write_text(DEEP)
    with pytest.raises(DataError):
        store.metadata(ID)


@pytest.mark.parametrize(
    "figures",
    [
        {"episode_returns": {"policy": [1.0, {}]}}, {"episode_returns": {"policy": "os.system"}},
        {"episode_returns": []}, {"episode_returns": {"policy": [1.0], "controller": [1.0, 2.0]}}, {"return": 3.0},
        {"normalized": [1]}, {"normalized": {"name": 3.0}}, {"normalized": {"mean": "x"}},
        {"condition_error": {"state": [1]}}, {"success": "made up"},
        {"decision_ms": {"batch_1": 1}},
        {"ratio_to_controller": {}},
    ],
)  # fmt: skip
def test_an_evaluation_of_other_types(figures: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"return": {"mean": 1.0}} | figures))
    with pytest.raises(CheckpointError):
        read_evaluation(path)


def test_seeds_with_other_numbers_of_episodes() -> None:
    with pytest.raises(CheckpointError, match="same episodes"):
        episode_returns(
            {0: {"episode_returns": {"policy": [1.0]}}, 1: {"episode_returns": {"policy": [1.0, 2.0]}}}, "policy"
        )
    with pytest.raises(CheckpointError, match="same episodes"):
        episode_returns({0: {"episode_returns": {"policy": [1.0]}}}, "controller")


@pytest.mark.parametrize(
    "change", [{"seeds": None}, {"seeds": [[1]]}, {"seeds": True}, {"composed": 1.0}, {"composed": {"one": "x"}}]
)
def test_a_study_s_definition_of_other_types(change: dict[str, Any], tmp_path: Path) -> None:
    study = Study(name="a", variants={"one": Variant()})
    (tmp_path / "study.json").write_text(json.dumps({**study.to_plain(), "composed": {"one": {}}} | change))
    with pytest.raises(CheckpointError):
        check_folder(tmp_path, study, {"one": {}})


RECIPE = read_yaml(RECIPES / "mage.yaml")


@pytest.mark.parametrize(
    "change",
    [
        {"engine": {"stages": [1]}}, {"engine": {"stages": {"prior": 0.1}}}, {"engine": [1]}, {"schedule": {"name": 7}},
        {"prior": {"name": ["transformer"]}}, {"prior": {"name": None}},
    ],
)  # fmt: skip
def test_a_recipe_of_other_types(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "given.yaml"
    path.write_text(json.dumps(RECIPE | change))
    with pytest.raises(ConfigError):
        compose([f"recipe={path}"])


@pytest.mark.parametrize("text", ["a: 2026-02-31", f"a: {'9' * 5000}", f"a: {DEEP}"])
def test_values_that_yaml_s_reader_cannot_make(text: str, tmp_path: Path) -> None:
    (tmp_path / "given.yaml").write_text(text)
    with pytest.raises(ConfigError):
        read_yaml(tmp_path / "given.yaml")
    with pytest.raises(ConfigError):
        parse([text.replace(": ", "=")])


def test_a_whole_number_beyond_all_floats() -> None:
    with pytest.raises(ConfigError, match="wrong type"):
        convert(10**400, float, "lr")


def test_a_component_s_list_is_no_group() -> None:
    with pytest.raises(ConfigError, match="not both"):
        parse(["sampler=[1]", "sampler=greedy"])
