"""A policy encodes the images that it sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch

from trajgen.assemble import assemble
from trajgen.core.errors import ConfigError, TrajgenError
from trajgen.core.types import Space
from trajgen.export.package import export
from trajgen.policies.options import PolicyOptions
from trajgen.policies.receding_horizon import RecedingHorizonPolicy

SHAPE = (16, 16, 6)
SPACE = Space(
    state_dim=2 + 4,
    action_dim=2,
    goal_dim=2,
    state_key="velocity",
    goal_key="goal",
    state_offset=(5.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    image_key=("front", "wrist"),
    image_shape=SHAPE,
    feature_dim=4,
    encoder={"name": "conv", "dim": 4, "width": 8},
)


@pytest.fixture
def policy() -> RecedingHorizonPolicy:
    torch.manual_seed(0)
    planner: Any = assemble(tiny.nodes(), SPACE, tiny.WINDOW)
    planner.normalizer.state.mean.copy_(torch.arange(6.0))
    return RecedingHorizonPolicy(planner, planner.normalizer, SPACE, PolicyOptions(), discount=0.99, chunk=tiny.CHUNK)


def observation(batch: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    images = random.integers(256, size=(batch, *SHAPE), dtype=np.uint8)
    vectors = {name: random.normal(size=(batch, 2)) for name in ("velocity", "goal")}
    return {**vectors, "front": np.moveaxis(images[..., :3], -1, 1), "wrist": images[..., 3:]}


def test_the_state_is_the_vectors_and_the_features(policy: RecedingHorizonPolicy) -> None:
    batch = observation(3)
    images = np.concatenate([np.moveaxis(batch["front"], 1, -1), batch["wrist"]], axis=-1)
    with torch.no_grad():
        features = policy.planner.encoder(torch.from_numpy(images))
    vectors = torch.tensor(batch["velocity"] - [5.0, 0.0], dtype=torch.float32)
    expected = policy.normalizer.state(torch.cat([vectors, features], 1))
    torch.testing.assert_close(policy.condition(batch).state, expected)


def test_it_acts_in_one_environment_as_in_a_batch(policy: RecedingHorizonPolicy) -> None:
    batch = observation(2)
    policy.reset(batch=2)
    actions = policy.act(batch)
    policy.reset()
    first = policy.act({name: values[0] for name, values in batch.items()})
    assert actions.shape == (2, 2)
    single = policy.condition({name: values[0] for name, values in batch.items()}).state
    torch.testing.assert_close(single, policy.condition(batch).state[:1])
    assert first.shape == (2,) and np.isfinite(first).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda batch: batch.pop("wrist"), "entry of the observation is missing"),
        (lambda batch: batch.update(wrist=batch["wrist"].astype(np.float32)), "uint8, from 0 to 255"),
        (lambda batch: batch.update(wrist=batch["wrist"][:, :8]), "another shape"),
        (lambda batch: batch.update(wrist=batch["wrist"][..., :1]), r"shape \(16, 16, 6\)"),
        (lambda batch: batch.update(front=batch["front"][:1], wrist=batch["wrist"][:1]), "2 states and 1 images"),
    ],
)
def test_other_images_are_refused(policy: RecedingHorizonPolicy, change: Any, words: str) -> None:
    batch = observation(2)
    change(batch)
    policy.reset(batch=2)
    with pytest.raises(TrajgenError, match=words):
        policy.act(batch)


def test_an_export_is_refused_with_what_can_be_done(policy: RecedingHorizonPolicy, tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=r"trajgen\.load_policy"):
        export(policy, tmp_path / "out", format="torch_export")
