"""``trajgen data record``: a policy in any environment, the same data when it was stopped; mazes of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trajgen.cli import main
from trajgen.core.errors import ConfigError
from trajgen.data import minari, store
from trajgen.data.options import DataOptions
from trajgen.envs.eval_env import make_eval_env
from trajgen.envs.makers import make
from trajgen.experiments import recording
from trajgen.experiments.options import RecordOptions
from trajgen.experiments.recording import record

CORNER = [[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 0, 1], [1, 1, 1, 1]]


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recorded(id: str) -> list[Any]:
    return list(minari.open_dataset(id).iterate_episodes())


def test_a_recording_that_was_stopped_ends_as_one_that_was_not(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    words = ["data", "record", "env=Pendulum-v1", "max_episode_steps=7", "episodes=4", "seed=5"]
    main([*words, "id=whole/pendulum-v0"])
    play, played = recording._episode, []

    def stopping(env: Any, policy: Any, seed: int, name: str) -> Any:
        if len(played) == 2:
            raise KeyboardInterrupt
        played.append(seed)
        return play(env, policy, seed, name)

    with monkeypatch.context() as patch:
        patch.setattr(recording, "_episode", stopping)
        with pytest.raises(SystemExit):
            main([*words, "id=twice/pendulum-v0"])
    assert not store.folder("twice/pendulum-v0").exists() and [each.id for each in store.local_sets()] == [
        "whole/pendulum-v0"
    ]
    monkeypatch.setattr(
        recording, "_episode", lambda env, policy, seed, name: (played.append(seed), play(env, policy, seed, name))[1]
    )
    main([*words, "id=twice/pendulum-v0"])
    assert played == [5, 6, 7, 8]
    for one, two in zip(recorded("whole/pendulum-v0"), recorded("twice/pendulum-v0"), strict=True):
        np.testing.assert_array_equal(one.observations, two.observations)
        np.testing.assert_array_equal(one.actions, two.actions)
        assert len(one.rewards) == 7 and one.truncations[-1] and not one.terminations[-1]
    assert minari.describe("twice/pendulum-v0")["eval_env"] == "Pendulum-v1"
    assert not list((root / "datasets" / recording.RECORDINGS).rglob("*.npz"))


def test_a_policy_of_ones_own_in_an_environment_with_goals(root: Path) -> None:
    (root / "steering.py").write_text(
        "def push(observation):\n    return observation['desired_goal'].clip(-1, 1).astype('f')\n"
    )
    id = record(RecordOptions(env="PointMaze_UMaze-v3", policy="steering:push", episodes=1, max_episode_steps=3))
    assert id == "recorded/PointMaze_UMaze-push-v0"
    (episode,) = recorded(id)
    goals = np.asarray(episode.observations["desired_goal"])
    np.testing.assert_allclose(episode.actions, goals[:3].clip(-1, 1), rtol=1e-6)
    assert set(episode.observations) == {"observation", "desired_goal", "achieved_goal"}


def test_a_trained_run_is_recorded(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    id = record(RecordOptions(env="PointMaze_UMaze-v3", policy=str(run), episodes=1, max_episode_steps=3, device="cpu"))
    assert len(recorded(id)[0].actions) == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"policy": "rondom"}, "policy=random"),
        ({"policy": "numpy:sin"}, "actions of the environment"),
        ({"episodes": 0}, "at least"),
    ],
)
def test_mistakes_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        record(RecordOptions(**{"env": "Pendulum-v1", "max_episode_steps": 3, **change}))


def test_a_maze_of_ones_own_is_recorded_with_its_controller() -> None:
    id = make("pointmaze", steps=1500, map=CORNER, id="own/corner-v0", quiet=True)
    (episode, _) = recorded(id)
    cells = np.floor(np.asarray(episode.observations["observation"])[:, :2] + 2)
    assert {tuple(cell) for cell in cells.astype(int)} <= {(1, 2), (2, 2), (2, 1)}  # (column, row from below)
    assert episode.rewards.sum() > 100  # goals are reached and held
    keys: dict[str, Any] = {"state_key": "observation", "goal_key": "desired_goal", "achieved_key": "achieved_goal"}
    eval_env = make_eval_env(DataOptions(id=id, goals="hindsight", goal_radius=0.45, **keys))
    assert eval_env.controller is not None and len(eval_env.walls or ()) == 13 and not eval_env.bounds


@pytest.mark.parametrize(
    "map", [[[1, 1], [1, 0]], [[1, 1, 1], [1, 0, 1], [1, 1, 1]], [[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1]]]
)
def test_a_map_that_is_no_maze_is_refused(map: list[list[int]]) -> None:
    with pytest.raises(ConfigError, match="closed by walls"):
        make("pointmaze", map=map, id="own/bad-v0")
