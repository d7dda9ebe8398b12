"""Trainings on images: first the encoder, then all else on its features; data that are encoded once; refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import image_sets
import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from trajgen import load_policy
from trajgen.cli import main
from trajgen.config import compose
from trajgen.core.errors import CheckpointError, ConfigError, DataError
from trajgen.core.files import read_metrics
from trajgen.data import minari, store
from trajgen.data.options import DataOptions
from trajgen.engine.distributed import StopSignal
from trajgen.engine.loop import StoppedError
from trajgen.experiments import train
from trajgen.experiments.encoding import encode as encode_set
from trajgen.experiments.options import EncodeOptions

ID, NEW_ID = "tests/images-v0", "tests/features-v0"
WORDS = [
    "recipe=bc",
    "data.maker=null",
    "data.goals=none",
    "data.goal_radius=null",
    "data.goal_key=null",
    "data.achieved_key=null",
    "data.goal_state=[]",
    "data.horizon=3",
    "data.stride=2",
    "conditioner.fields=[state]",
    "conditioner.width=16",
    "device=cpu",
    "engine.precision=float32",
    "engine.log_every=3",
    "engine.stages.policy.steps=6",
    "engine.stages.policy.batch_size=8",
]
READ = ["data.id=tests/images-v0", "data.state_key=velocity", "data.image_key=front"]
CONV = ["encoder=conv", "encoder.dim=4", "encoder.width=8"]
STAGE = ["engine.stages.encoder.steps=6", "engine.stages.encoder.batch_size=8"]
QUIET = Console(quiet=True)
pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    monkeypatch.chdir(tmp_path)
    image_sets.write(ID)
    return tmp_path


def observation(number: int = 0, row: int = 0) -> dict[str, Any]:
    return {name: values[row] for name, values in image_sets.observations(number).items()}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "final.safetensors")


def test_the_encoder_is_trained_first_and_the_policy_acts_on_images() -> None:
    run = train(compose([*WORDS, *READ, *CONV, *STAGE]), QUIET)
    stages = [line["stage"] for line in read_metrics(run / "metrics.jsonl")]
    assert stages == ["encoder"] * 2 + ["policy"] * 2
    policy = load_policy(run, device="cpu")
    features = policy.planner.encoder(torch.from_numpy(observation()["front"])[None])
    state = torch.cat([torch.tensor(observation()["velocity"])[None].float(), features], 1)
    torch.testing.assert_close(policy.condition(observation()).state, policy.normalizer.state(state))
    assert float(policy.normalizer.state.scale[2:].sub(1).abs().min()) > 0  # fitted to the features
    policy.reset()
    assert policy.act(observation()).shape == (2,)


def test_a_stopped_training_goes_on_as_if_it_had_not_been(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the stage of the encoder, and again in that of the policy."""
    words = [*WORDS, *READ, *CONV, *STAGE]
    uninterrupted = train(compose([*words, "run_dir=runs/uninterrupted"]), QUIET)
    steps = 0

    def stops(signal: StopSignal) -> bool:
        nonlocal steps
        steps += 1
        return steps in (4, 9)

    with monkeypatch.context() as patch:
        patch.setattr(StopSignal, "should_stop", stops)
        for resume in ("false", "true"):
            with pytest.raises(StoppedError):
                train(compose([*words, "run_dir=runs/stopped", f"resume={resume}"]), QUIET)
    resumed = train(compose([*words, "run_dir=runs/stopped", "resume=true"]), QUIET)
    first, second = weights(uninterrupted), weights(resumed)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_stopped_training_goes_on_without_the_run_from_which_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """That run's normalizer of features, which is fitted to others than the encoder's of the end, stays."""
    words = [*WORDS, *READ, *CONV, *STAGE]
    first = train(compose([*words, "run_dir=runs/first"]), QUIET)
    words += ["init=runs/first", "seed=1"]
    uninterrupted = train(compose([*words, "run_dir=runs/uninterrupted"]), QUIET)
    requests = iter(range(99))
    with monkeypatch.context() as patch:
        patch.setattr(StopSignal, "should_stop", lambda _: next(requests) == 3)
        with pytest.raises(StoppedError):
            train(compose([*words, "run_dir=runs/stopped"]), QUIET)
    shutil.rmtree(first)
    resumed = train(compose([*words, "run_dir=runs/stopped", "resume=true"]), QUIET)
    assert all(torch.equal(weights(resumed)[name], value) for name, value in weights(uninterrupted).items())


def encode(*words: str) -> DataOptions:
    """Encodes the set by the command line; the options that read the new set."""
    named = ["id=tests/images-v0", "state_key=velocity", "image_key=front"]
    main(["data", "encode", *named, f"new_id={NEW_ID}", "device=cpu", *words])
    return DataOptions(id=NEW_ID, state_key="observation", horizon=3, stride=2)


FROZEN = ["encoder=timm", "encoder.backbone=test_resnet", "encoder.weights=random", "encoder.dim=null"]


@pytest.mark.parametrize(
    "encoder", [FROZEN, [*CONV, "engine.stages.encoder.steps=3", "engine.stages.encoder.batch_size=8"]],
    ids=["frozen", "trained"],
)  # fmt: skip
def test_data_that_are_encoded_once_give_a_policy_that_acts_on_images(
    encoder: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = encode(*encoder)
    assert "state_key: observation" in capsys.readouterr().out
    episodes = minari.load(NEW_ID, options)
    space = episodes.space
    assert episodes.images is None and space.encoded and space.vector_dim == 2 and space.image_shape == (16, 16, 3)
    assert space.state_key == "velocity" and space.image_key == "front"

    run = train(compose([*WORDS, f"data.id={NEW_ID}", "data.state_key=observation"]), QUIET)
    assert {line["stage"] for line in read_metrics(run / "metrics.jsonl")} == {"policy"}
    shutil.rmtree(store.folder(NEW_ID))  # the run folder holds all that acting takes
    shutil.rmtree(store.folder(ID))
    policy = load_policy(run, device="cpu")
    images = torch.from_numpy(np.concatenate([image_sets.images(number) for number in range(image_sets.EPISODES)]))
    with torch.no_grad():
        features = torch.cat([policy.planner.encoder(images[i : i + 64]) for i in range(0, len(images), 64)])
    np.testing.assert_array_equal(episodes.states[:, 2:], features.numpy())
    expected = policy.normalizer.state(torch.from_numpy(episodes.states[:1]))
    torch.testing.assert_close(policy.condition(observation()).state, expected)
    policy.reset()
    assert np.isfinite(policy.act(observation())).all()


def test_the_preset_of_encoded_data_has_what_the_task_s_preset_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = {
        "data": {"id": "tests/images-v0", "state_key": "velocity", "image_key": "front", "discount": 0.9, "chunk": 3},
        "evaluation": {"episodes": 5},
        "recipes": {"mage": ["encoder=conv", "engine.stages.encoder.lr=2e-3", "sampler.temperature=1"]},
    }
    (tmp_path / "task.yaml").write_text(json.dumps(task))
    main(["data", "encode", f"data={tmp_path / 'task.yaml'}", f"new_id={NEW_ID}", "device=cpu", *FROZEN])
    assert yaml.safe_load(capsys.readouterr().out.partition("\n\n")[2]) == {
        "data": {"chunk": 3, "discount": 0.9, "id": NEW_ID, "state_key": "observation"},
        "evaluation": {"episodes": 5},
        "recipes": {"mage": ["sampler.temperature=1"]},
    }


def test_encoded_data_keep_the_scores_to_which_returns_are_normalized() -> None:
    scores = {"ref_min_score": -3.0, "ref_max_score": 7.5}
    image_sets.write(ID, force=True, write_extra=lambda _: scores)
    encode(*FROZEN)
    assert scores.items() <= store.metadata(NEW_ID).items()


def test_only_hdf5_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    episodes = minari.load(ID, DataOptions(id=ID, state_key="velocity", image_key="front"))
    monkeypatch.setattr("trajgen.experiments.encoding.load_episodes", lambda *_: episodes)
    (store.folder(ID) / "data" / minari.FILE).unlink()
    with pytest.raises(ConfigError, match="Only data sets in HDF5"):
        encode_set(compose([*WORDS, *READ, *FROZEN]), EncodeOptions(new_id=NEW_ID), QUIET)


def test_encoding_once_is_encoding_in_the_training() -> None:
    """With a frozen encoder the features, their normalizer and the fresh weights are the same to the last bit."""
    encode(*FROZEN)
    direct = load_policy(train(compose([*WORDS, *READ, *FROZEN, "run_dir=runs/a"]), QUIET), device="cpu")
    words = [f"data.id={NEW_ID}", "data.state_key=observation", "run_dir=runs/b"]
    encoded = load_policy(train(compose([*WORDS, *words]), QUIET), device="cpu")
    for part in ("encoder", "normalizer"):
        first, second = (getattr(policy.planner, part).state_dict() for policy in (direct, encoded))
        assert all(torch.equal(first[name], second[name]) for name in first), part
    one, two = (policy.condition(observation()).state for policy in (direct, encoded))
    torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["data.id=tests/images-v0", "data.state_key=velocity", "encoder=conv"], "data.image_key=ENTRY"),
        ([f"data.id={NEW_ID}", "data.state_key=observation", "encoder=conv"], "'~encoder'"),
        ([*READ, "recipe=mage", "schedule=auto", "data.horizon=8", "tokenizer.latent_length=4"], "trajgen data encode"),
    ],
)
def test_an_encoder_that_has_nothing_to_do_is_refused(words: list[str], advice: str) -> None:
    if f"data.id={NEW_ID}" in words:
        encode(*FROZEN)
    common = [
        word for word in WORDS if "recipe=mage" not in words or not word.startswith(("recipe", "cond", "engine.st"))
    ]
    with pytest.raises(ConfigError, match=advice):
        train(compose([*common, *words]), QUIET)


def damaged(change: Callable[[dict[str, Any]], object]) -> None:
    """Changes what the metadata of the encoded set say of its features."""
    path = store.folder(NEW_ID) / "data" / "metadata.json"
    content = json.loads(path.read_text())
    change(content["images"])
    path.write_text(json.dumps(content))


def test_metadata_that_were_never_written_are_refused() -> None:
    encode(*CONV, "engine.stages.encoder.steps=1", "engine.stages.encoder.batch_size=8")
    metadata = (store.folder(NEW_ID) / "data" / "metadata.json").read_text()
    changes: tuple[Callable[[dict[str, Any]], object], ...] = (
        lambda about: about.update(feature_dim=10**9),
        lambda about: about.update(image_shape=[16, 16]),
        lambda about: about.update(encoder=3),
        lambda about: about.update(surprise=1),
        lambda about: about["encoder"].update(width=2**20),
    )
    for change in changes:
        (store.folder(NEW_ID) / "data" / "metadata.json").write_text(metadata)
        damaged(change)
        with pytest.raises((DataError, ConfigError)):
            train(compose([*WORDS, f"data.id={NEW_ID}", "data.state_key=observation"]), QUIET)


def test_weights_of_a_stranger_are_not_unpickled() -> None:
    encode(*FROZEN)
    (store.folder(NEW_ID) / "data" / "encoder.safetensors").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(CheckpointError):
        train(compose([*WORDS, f"data.id={NEW_ID}", "data.state_key=observation"]), QUIET)
