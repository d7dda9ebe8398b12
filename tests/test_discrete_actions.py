"""Discrete and multi-discrete actions: read as one-hot vectors, generated as such, taken as numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete

import trajgen
from trajgen.cli import main
from trajgen.config import compose
from trajgen.core.choices import choices_of, likeliest, numbers_of, one_hot
from trajgen.core.errors import DataError
from trajgen.core.files import read_json
from trajgen.data import minari
from trajgen.data.options import DataOptions
from trajgen.evaluation.evaluate import RandomPolicy
from trajgen.experiments.options import RecordOptions
from trajgen.experiments.recording import record
from trajgen.experiments.run_folder import load_config
from trajgen.export.exported_policy import Policy as Exported
from trajgen.export.package import export

SMALL = ["device=cpu", "data=set.yaml", "data.horizon=8", "data.stride=1", "data.chunk=1",
         "data.max_padding=1.0", "policy.replan_interval=1",
         "evaluation.episodes=4", "evaluation.latency=false", "engine.precision=float32"]  # fmt: skip


def use(id: str) -> None:
    """Writes the data preset that the trainings take."""
    Path("set.yaml").write_text(f"data: {{id: {id}}}\n", encoding="utf-8")


class Signs(gymnasium.Env):
    """Two numbers are seen; the reward counts the parts of the action (3 and 2 choices) that say where they lie."""

    observation_space, action_space = Box(-1, 1, (2,), np.float32), MultiDiscrete([3, 2])

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(np.asarray(action)), action
        reward = float((np.asarray(action) == right(self._seen)).sum())
        return self._observe(), reward, False, False, {}

    def _observe(self) -> np.ndarray:
        self._seen = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self._seen


def right(observation: np.ndarray) -> np.ndarray:
    """The action that earns 2."""
    return np.array([np.digitize(observation[0], [-0.3, 0.3]), int(observation[1] > 0)])


gymnasium.register("tests/Signs-v0", f"{__name__}:Signs", max_episode_steps=20)


pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.mark.parametrize(("space", "choices"), [(Discrete(3), (3,)), (MultiDiscrete([3, 2]), (3, 2))])
def test_numbers_become_vectors_and_numbers_again(space: Any, choices: tuple[int, ...]) -> None:
    assert choices_of(space) == choices
    space.seed(0)
    numbers = np.stack([space.sample() for _ in range(50)])
    vectors = one_hot(numbers, choices)
    assert vectors.shape == (50, sum(choices)) and (vectors.sum(-1) == len(choices)).all()
    np.testing.assert_array_equal(numbers_of(vectors, choices), numbers)
    noisy = torch.from_numpy(vectors) + 0.4 * torch.rand(50, sum(choices), generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(likeliest(noisy, choices).numpy(), vectors)


def test_other_spaces_and_numbers_are_no_choices() -> None:
    others = (Box(-1, 1, (2,)), Discrete(3, start=1), MultiDiscrete([[2, 2], [2, 2]]), gymnasium.spaces.MultiBinary(3))
    assert not any(map(choices_of, others))
    for actions in (np.array([3]), np.array([-1]), np.array([0.0]), np.zeros((2, 2), np.int64)):
        with pytest.raises(ValueError, match="action"):
            one_hot(actions, (3,))


@pytest.mark.parametrize(
    "space",
    [
        gymnasium.spaces.Tuple((Discrete(2), Box(-1, 1, (2,)))),
        gymnasium.spaces.Dict(arm=Box(-1, 1, (2,))),
        Discrete(3, start=5),
        Box(-3, 3, (2,), np.int64),
        Box(-1, 1, (2, 2)),
    ],
    ids=str,
)
def test_actions_that_nothing_learns_are_not_recorded(space: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Signs, "action_space", space)
    with pytest.raises(DataError, match="Discrete from 0 on") as refused:
        record(RecordOptions(env="tests/Signs-v0", episodes=1))
    assert str(space) in str(refused.value)


def test_random_choices_are_uniform_and_seeded() -> None:
    one, two = (RandomPolicy(MultiDiscrete([3, 2]), 1) for _ in range(2))
    one.reset(batch=600)
    two.reset(batch=600)
    numbers = one.act(None)
    np.testing.assert_array_equal(numbers, two.act(None))
    assert np.bincount(numbers[:, 0]).min() > 150 and np.bincount(numbers[:, 1]).min() > 250
    single = RandomPolicy(Discrete(3), 1)
    single.reset()
    assert single.act(None).shape == ()


def test_cloning_learns_multi_discrete_actions_and_plays_them(tmp_path: Path) -> None:
    main(["data", "record", "env=tests/Signs-v0", "policy=test_discrete_actions:right", "episodes=30",
          "id=tests/signs-v0"])  # fmt: skip
    episodes = minari.load("tests/signs-v0", DataOptions(id="tests/signs-v0", goals="none", state_key=None))
    assert episodes.space.choices == (3, 2) and episodes.actions.shape[1] == 5
    assert (episodes.actions[: len(episodes.rewards) - 1].sum(-1).max()) == 2
    use("tests/signs-v0")
    main(["train", "recipe=bc", *SMALL, "run_dir=runs/signs",
          "engine.stages.policy.steps=300", "engine.stages.policy.batch_size=64"])  # fmt: skip
    figures = read_json(Path("runs/signs/evaluation.json"))
    assert load_config(Path("runs/signs"))[1].choices == (3, 2)
    assert figures["return"]["mean"] > 34 and figures["random"]["mean"] < 24  # of 40; chance is 16.7
    policy = trajgen.load_policy("runs/signs", device="cpu")
    policy.reset()
    action = policy.act(np.array([0.9, -0.9], np.float32))
    assert action.dtype == np.int64 and action.tolist() == [2, 0]
    main(["data", "record", "env=tests/Signs-v0", "policy=runs/signs", "episodes=1", "id=tests/again-v0"])
    exported = Exported(export(policy, tmp_path / "exported", format="torch_export"))
    for observation in np.random.default_rng(0).uniform(-1, 1, (20, 2)).astype(np.float32):
        policy.reset()
        exported.reset()
        action = exported.act(observation)
        np.testing.assert_array_equal(action, policy.act(observation))
        assert action.shape == (2,) and action.dtype == np.int64


@pytest.mark.parametrize(
    "words",
    [
        ["recipe=mage", "tokenizer.width=8", "tokenizer.latent_length=4", "schedule.scales=3", "prior.width=16",
         "conditioner.width=16", "decoder.width=8", "action.width=16", "return_target.width=16"],
        ["recipe=dt", "prior.width=16", "prior.heads=1", "return_target.width=16"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_planners_act_in_cart_pole(words: list[str]) -> None:
    main(["data", "record", "env=CartPole-v1", "policy=random", "episodes=30", "id=tests/pole-v0"])
    use("tests/pole-v0")
    stages = [*compose(words).engine.stages]
    steps = [f"engine.stages.{stage}.{option}" for stage in stages for option in ("steps=2", "batch_size=8")]
    main(["train", *SMALL, *words, "run_dir=runs/pole", "data.max_episode_steps=30", *steps])
    figures = read_json(Path("runs/pole/evaluation.json"))
    assert figures["return"]["n"] == 4 and not figures["errors"] and figures["return"]["mean"] >= 8
