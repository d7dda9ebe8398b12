"""Images of data sets: read as they are, gathered in uint8, made features of once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import image_sets
import minari as minari_package
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict
from small_sets import episode, save, unbounded

from trajgen.assemble import build_encoder
from trajgen.core.errors import ConfigError, DataError
from trajgen.core.normalizer import Normalizer
from trajgen.core.sources import source_of
from trajgen.core.stages import Stage
from trajgen.data import minari
from trajgen.data.encoding import Unencoded, encoded, with_room
from trajgen.data.mapped import is_mapped
from trajgen.data.options import DataOptions
from trajgen.data.windows import Windows, fit_normalizer

ID = "tests/images-v0"
NODE = {"name": "conv", "dim": 4, "width": 8}
IMAGES = Stage("encoder", dict, [], images=True)
OTHER = Stage("policy", dict, [])


def options(**changes: Any) -> DataOptions:
    keys: dict[str, Any] = {"state_key": "velocity", "image_key": "front", "horizon": 3, "stride": 2, "chunk": 2}
    return DataOptions(id=ID, **(keys | changes))


@pytest.mark.parametrize("layout", ["last", "first"])
@pytest.mark.parametrize("mapped", [False, True])
def test_images_are_read_as_they_are(layout: str, mapped: bool) -> None:
    image_sets.write(ID, layout)
    episodes = minari.load(ID, options(memory_map=mapped))
    assert episodes.images is not None and episodes.images.dtype == np.uint8 and is_mapped(episodes) == mapped
    assert episodes.space.image_shape == (16, 16, 3) and episodes.space.state_dim == episodes.space.vector_dim == 2
    expected = np.concatenate([image_sets.images(number) for number in range(image_sets.EPISODES)])
    np.testing.assert_array_equal(episodes.images, expected)


def test_images_of_several_cameras_are_joined_along_the_channels() -> None:
    image_sets.write(ID, "first")
    episodes = minari.load(ID, options(image_key=("front", "wrist")))
    assert episodes.images is not None and episodes.space.image_shape == (16, 16, 6)
    np.testing.assert_array_equal(episodes.images[:13, ..., :3], image_sets.images(0))
    np.testing.assert_array_equal(episodes.images[:13, ..., 3:], image_sets.images(50))


def test_observations_that_are_images_need_no_key() -> None:
    image_sets.write_bare(ID)
    episodes = minari.load(ID, options(state_key=None, image_key=None))
    assert episodes.states.shape == (6 * 13, 0) and episodes.space.state_key == ()
    np.testing.assert_array_equal(episodes.images, np.concatenate([image_sets.images(n) for n in range(6)]))


def test_without_a_key_images_are_not_read() -> None:
    image_sets.write(ID)
    episodes = minari.load(ID, options(image_key=None))
    assert episodes.images is None and episodes.space.image_shape == ()


@pytest.mark.filterwarnings("ignore:.*is set to None:UserWarning", "ignore:env_spec is None")
def test_jpeg_images_of_minari_are_decoded() -> None:
    rows = [np.full((2, 40, 48, 3), 60 * n, np.uint8) for n in range(3)]
    buffers = [
        minari_package.data_collector.EpisodeBuffer(
            observations=each, actions=np.zeros((1, 2), np.float32), rewards=[0.0], terminations=[False],
            truncations=[True],
        )
        for each in rows
    ]  # fmt: skip
    spaces = {"observation_space": Box(0, 255, (40, 48, 3), np.uint8), "action_space": unbounded(2, np.float32)}
    minari_package.create_dataset_from_buffers(ID, buffers, data_format="hdf5", **spaces)
    episodes = minari.load(ID, options(state_key=None, image_key=None))
    assert episodes.images is not None and episodes.images.shape == (6, 40, 48, 3)
    assert np.abs(episodes.images[::2].astype(int) - np.stack(rows)[:, 0]).max() <= 2


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"state_key": "front"}, "data.image_key=front"),
        ({"image_key": "velocity"}, "data.image_key=ENTRY"),
        ({"image_key": "back"}, "choose one of: front"),
        ({"state_key": (), "image_key": None}, "data.image_key=ENTRY"),
    ],
)
def test_a_wrong_key_is_refused_with_advice(changes: dict[str, Any], advice: str) -> None:
    image_sets.write(ID)
    with pytest.raises((ConfigError, DataError), match=advice):
        minari.load(ID, options(**changes))


def test_images_in_floats_are_refused_with_advice() -> None:
    image_sets.write_bare(ID, np.float32)
    with pytest.raises(DataError, match=r"np\.round\(255 \* images\)\.astype\(np\.uint8\)"):
        minari.load(ID, options(state_key=None, image_key=None))


def test_images_of_two_sizes_are_not_joined() -> None:
    spaces = {"a": Box(0, 255, (8, 8, 3), np.uint8), "b": Box(0, 255, (8, 9, 3), np.uint8)}
    rows = {name: np.zeros((3, *space.shape), np.uint8) for name, space in spaces.items()}
    save(ID, [episode(rows, image_sets.actions(0)[:2])], Dict(spaces), 2)
    with pytest.raises(ConfigError, match="one size"):
        minari.load(ID, options(state_key=(), image_key=("a", "b")))


def make(mapped: bool) -> tuple[Windows, Any, Any]:
    """Windows of a set whose images are not encoded yet, its episodes, and the encoder."""
    image_sets.write(ID)
    torch.manual_seed(0)
    raw = minari.load(ID, options(memory_map=mapped))
    encoder = build_encoder(NODE, raw.space)
    episodes = with_room(raw, encoder.features, NODE)
    normalizer = Normalizer(6, 2)
    unencoded = Unencoded(episodes, options(), encoder, torch.device("cpu"), normalizer)
    return Windows(episodes, options(), normalizer, "cpu", 3, unencoded), episodes, encoder


@pytest.mark.parametrize("mapped", [False, True])
def test_a_stage_with_images_gets_those_of_its_windows_in_uint8(mapped: bool) -> None:
    windows, episodes, _ = make(mapped)
    batch = source_of(IMAGES, windows).batch(0, 32)
    images = batch.image_pairs
    assert images.dtype == torch.uint8 and images.shape == (32, 2, 16, 16, 3)
    velocities = torch.from_numpy(episodes.states[:, :2])
    for pair, states in zip(images, batch.states[:, :, :2], strict=True):
        rows = [int((velocities == state).all(1).nonzero()[0, 0]) for state in states[:2]]
        assert rows[1] - rows[0] == 2 or rows[1] == rows[0] + 1  # M steps apart, or at the end of the episode
        np.testing.assert_array_equal(pair.numpy(), episodes.images[rows])


@pytest.mark.parametrize("mapped", [False, True])
def test_other_stages_get_features_that_are_made_once(mapped: bool) -> None:
    windows, episodes, encoder = make(mapped)
    calls: list[int] = []
    encoder.register_forward_hook(lambda *_: calls.append(1))
    assert not windows.without_features().batch(0, 4).states[..., 2:].any()
    source = source_of(OTHER, windows)
    batch = source.batch(0, 32)
    done = len(calls)
    assert done == -(-len(episodes.states) // 64)
    source_of(OTHER, windows).batch(1, 32)
    assert len(calls) == done and batch.images is None

    encoded_episodes = encoded(episodes, encoder, torch.device("cpu"))
    with torch.no_grad():
        expected = encoder(torch.from_numpy(np.array(episodes.images[:64])))
    np.testing.assert_array_equal(encoded_episodes.states[:64, 2:], expected.numpy())
    normalizer = fit_normalizer(encoded_episodes, options())
    same = Windows(encoded_episodes, options(), normalizer, "cpu", 3).batch(0, 32)
    torch.testing.assert_close(batch.states, same.states, rtol=0, atol=0)
    torch.testing.assert_close(windows.normalizer.state.mean, normalizer.state.mean, rtol=0, atol=0)
    assert float(batch.states[..., 2:].std()) > 0.3  # normalized


def test_features_follow_the_encoder_as_it_is_when_its_training_is_over() -> None:
    windows, episodes, encoder = make(mapped=False)
    source_of(IMAGES, windows).batch(0, 8)
    with torch.no_grad():
        encoder.head.bias.add_(1.0)  # as training does
    features = encoded(episodes, encoder, torch.device("cpu")).states[:, 2:]
    batch = source_of(OTHER, windows).batch(0, 8)
    raw = windows.normalizer.state.inverse(batch.states)[..., 2:].reshape(-1, 4)
    distance = torch.cdist(raw.double(), torch.from_numpy(features).double())
    assert float(distance.min(1).values.max()) < 1e-5


def test_the_space_of_encoded_data_says_what_the_features_are() -> None:
    windows, episodes, encoder = make(mapped=False)
    features = encoded(episodes, encoder, windows.device)
    assert features.images is None and features.space == episodes.space
    assert (features.space.state_dim, features.space.vector_dim, features.space.feature_dim) == (6, 2, 4)
    with pytest.raises(ConfigError, match="other features"):
        build_encoder({}, replace(features.space, encoder=NODE | {"dim": 5}))
