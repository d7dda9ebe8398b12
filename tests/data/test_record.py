"""``trajgen data record``: a policy in any environment, the same data when it was stopped; mazes of one's own."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import yaml
from gymnasium.envs.registration import EnvSpec

from trajgen.cli import main
from trajgen.core import terminal
from trajgen.core.errors import ConfigError, DataError, TrainingError, TrajgenError
from trajgen.data import minari, store
from trajgen.data.options import DataOptions
from trajgen.envs.eval_env import make_eval_env
from trajgen.envs.makers import make
from trajgen.envs.numeric import NumericObservation
from trajgen.experiments import recording
from trajgen.experiments.options import RecordOptions
from trajgen.experiments.recording import record
from trajgen.policies.inputs import ObservationReader
from trajgen.policies.receding_horizon import RecedingHorizonPolicy

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


def test_a_stopped_recording_is_neither_mixed_with_another_nor_removed(
    monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    options = RecordOptions(env="Pendulum-v1", policy="steady:push", episodes=2, max_episode_steps=2)
    (root / "steady.py").write_text("import numpy\n\n\ndef push(observation):\n    return numpy.full(1, 0.5, 'f')\n")
    play = recording._episode

    def stopping(env: Any, policy: Any, seed: int, name: str) -> Any:
        if seed == 1:
            raise KeyboardInterrupt
        return play(env, policy, seed, name)

    with monkeypatch.context() as patch:
        patch.setattr(recording, "_episode", stopping)
        with pytest.raises(KeyboardInterrupt):
            record(options)
    (episode,) = (root / "datasets").rglob("*.npz")
    (root / "steady.py").write_text((root / "steady.py").read_text().replace("0.5", "-0.25"))
    monkeypatch.delitem(sys.modules, "steady")
    with pytest.raises(DataError, match="stopped, with 1 of its episodes"):
        record(options)
    assert episode.exists()
    record(replace(options, force=True))
    assert [np.unique(each.actions).tolist() for each in recorded(options.name)] == [[-0.25], [-0.25]]


def test_a_log_has_the_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=count(step=30).__next__))
    main(["data", "record", "env=Pendulum-v1", "max_episode_steps=2", "episodes=4", "id=whole/pendulum-v0"])
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("recording")]
    assert shown[0] == "recording 1/4, 0:01:30 left  whole/pendulum-v0" and len(shown) == 4


def test_a_policy_of_ones_own_in_an_environment_with_goals(root: Path) -> None:
    (root / "steering.py").write_text(
        "def push(observation):\n    return observation['desired_goal'].clip(-1, 1).astype('f')\n\n\n"
        "class Pusher:\n    def act(self, observation):\n        return push(observation)\n"
    )
    id = record(RecordOptions(env="PointMaze_UMaze-v3", policy="steering:push", episodes=1, max_episode_steps=3))
    assert id == "recorded/PointMaze_UMaze-push-v0"
    by_class = record(
        RecordOptions(env="PointMaze_UMaze-v3", policy="steering:Pusher", episodes=1, max_episode_steps=3)
    )
    np.testing.assert_array_equal(recorded(by_class)[0].actions, recorded(id)[0].actions)
    (episode,) = recorded(id)
    goals = np.asarray(episode.observations["desired_goal"])
    np.testing.assert_allclose(episode.actions, goals[:3].clip(-1, 1), rtol=1e-6)
    assert set(episode.observations) == {"observation", "desired_goal", "achieved_goal"}


def test_a_trained_run_is_recorded(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    id = record(RecordOptions(env="PointMaze_UMaze-v3", policy=str(run), episodes=1, max_episode_steps=3, device="cpu"))
    assert len(recorded(id)[0].actions) == 3


def test_each_episode_of_a_run_has_random_numbers_of_its_own(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    decide = RecedingHorizonPolicy.act

    def act(self: RecedingHorizonPolicy, observation: Any) -> Any:
        seeds.append(self._rng.initial_seed())
        return decide(self, observation)

    monkeypatch.setattr(RecedingHorizonPolicy, "act", act)
    options = RecordOptions(env="PointMaze_UMaze-v3", policy=str(run), episodes=2, seed=7, device="cpu")
    record(replace(options, id="tests/two-v0", max_episode_steps=3))
    assert seeds == [7, 7, 7, 8, 8, 8]


GRID = """
import gymnasium, numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Text, Tuple


class Grid(gymnasium.Env):
    observation_space = Dict({
        "direction": Discrete(4), "view": Box(0, 255, (5, 5, 3), np.uint8), "mission": Text(9),
        "board": Tuple((Discrete(2), MultiDiscrete([2, 3]))),
    })
    action_space = Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action):
        self.steps += 1
        return self.observe(), float(action == self.steps % 3), self.steps == 9, False, {}

    def observe(self):
        view = np.full((5, 5, 3), self.steps, np.uint8)
        board = (self.steps % 2, np.array([1, self.steps % 3]))
        return {"direction": self.steps % 4, "view": view, "mission": "go", "board": board}


class Counting:
    def __init__(self, env):
        self.env = env.unwrapped

    def act(self, observation):
        return (self.env.steps + 1) % 3


gymnasium.register("Mine/Grid-v0", "grids:Grid", max_episode_steps=9)
"""


def test_an_environment_of_ones_own_with_discrete_entries_and_text(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "grids.py").write_text(GRID)
    monkeypatch.syspath_prepend(str(root))
    main(["data", "record", "env=grids:Mine/Grid-v0", "policy=grids:Counting", "episodes=2", "id=own/grid-v0"])
    printed = capsys.readouterr()
    assert "mission (Text)" in printed.err and "data=grid.yaml imports=[grids]'" in printed.out
    preset = yaml.safe_load(printed.out[printed.out.index("data:") :])["data"]
    assert preset["image_key"] == "view" and set(preset["state_key"]) == {"direction", "board"}
    (episode, _) = recorded("own/grid-v0")
    assert set(episode.observations) == {"direction", "view", "board"} and episode.rewards.sum() == 9
    np.testing.assert_array_equal(np.argmax(episode.observations["direction"], 1), np.arange(10) % 4)
    np.testing.assert_array_equal(episode.observations["board"][1], [0, 1, 0, 1, 0, 1, 0])
    options = DataOptions(**{**preset, "state_key": tuple(preset["state_key"])})
    eval_env, space = make_eval_env(options), minari.load("own/grid-v0", options).space
    assert space.vector_dim == 11 and space.image_shape == (5, 5, 3) and space.choices == (3,)
    env = eval_env.make_env()
    eval_env.require_fits(env, space)
    observation, _ = eval_env.reset(env, 0)
    states, _, images = ObservationReader(space)(observation)
    assert states.shape == (1, 11) and images is not None
    with pytest.raises(TrajgenError, match="NumericObservation"):
        ObservationReader(replace(space, state_key="direction", state_dim=4))(env.unwrapped.observe())


def test_an_observation_without_numbers_is_refused() -> None:
    class Speaker(gymnasium.Env):
        observation_space, action_space = gymnasium.spaces.Text(5), gymnasium.spaces.Discrete(2)

    with pytest.raises(DataError, match="holds numbers"):
        NumericObservation(Speaker())


@pytest.mark.parametrize(("env", "words"), [("nowhere:Grid-v0", "pip install nowhere"), ("Zork-v9", "MODULE:Zork-v9")])
def test_an_environment_that_is_not_there_is_refused(env: str, words: str) -> None:
    with pytest.raises(TrajgenError, match=words) as refused:
        record(RecordOptions(env=env))
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"policy": "rondom"}, "policy=random"),
        ({"policy": "numpy:sin"}, "actions of the environment"),
        ({"episodes": 0}, "or more"),
    ],
)
def test_mistakes_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        record(RecordOptions(**{"env": "Pendulum-v1", "max_episode_steps": 3, **change}))


class Reusing(gymnasium.Env):
    """Adds actions up in the array that it returns; goes wrong in one way at its second step."""

    observation_space = gymnasium.spaces.Dict({"arm": gymnasium.spaces.Box(-9, 9, (2,), np.float32)})
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, way: str = "none") -> None:
        self.state, self.way = {"arm": np.zeros(2, np.float32)}, way

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple:
        self.state["arm"][:], self.time = 0, 0
        return self.state, {}

    def step(self, action: np.ndarray) -> tuple:
        self.state["arm"] += action
        self.time += 1
        bad = {"shape": np.zeros(3), "nan": np.full(2, np.nan)}.get(self.way) if self.time == 2 else None
        observation = self.state if bad is None else {"arm": bad}
        return observation, np.nan if self.way == "reward" else 1.0, False, False, {}


class Buffered:
    """A policy that returns one array."""

    def __init__(self) -> None:
        self.action = np.zeros(2, np.float32)

    def act(self, observation: Any) -> np.ndarray:
        self.action[:] = np.random.uniform(-1, 1, 2)
        return self.action


gymnasium.register("Reusing-v0", f"{__name__}:Reusing", max_episode_steps=4)


def test_arrays_that_an_environment_and_a_policy_reuse_are_copied() -> None:
    (episode,) = recorded(record(RecordOptions(env="Reusing-v0", policy=f"{__name__}:Buffered", episodes=1)))
    assert len(np.unique(episode.actions, axis=0)) == 4
    np.testing.assert_allclose(np.diff(episode.observations["arm"], axis=0), episode.actions, atol=1e-6)


class Acting:
    """A policy that always gives the same."""

    action: Any = np.array([0.1, -0.1])  # of 64 bits

    def act(self, observation: Any) -> Any:
        return self.action


class Far(Acting):
    action = np.array([0.0, 1e300])


class Wide(Acting):
    action = np.zeros(3)


class Mute(Acting):
    action = None


class Seeded(Acting):
    def reset(self, seed: int) -> None: ...


def test_numbers_of_a_policy_have_the_precision_of_the_box() -> None:
    (episode,) = recorded(record(RecordOptions(env="Reusing-v0", policy=f"{__name__}:Acting", episodes=1)))
    assert (episode.actions == Acting.action.astype(np.float32)).all() and episode.actions.dtype == np.float32


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("Far", r"actions of the environment[\s\S]*1\.?e\+300"),
        ("Wide", "actions of the environment"),
        ("Mute", "NoneType None"),
        ("Seeded", r"called without arguments[\s\S]*reset\(seed"),
    ],
)
def test_what_a_policy_cannot_do_is_said(policy: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        record(RecordOptions(env="Reusing-v0", policy=f"{__name__}:{policy}", episodes=1))


class Gained(Buffered):
    """A policy whose class has parameters of its own."""

    def __init__(self, gain: float = 0.5, **rest: Any) -> None:
        self.gain = gain

    def act(self, observation: Any) -> np.ndarray:
        return np.full(2, self.gain, np.float32)


class Aware(Gained):
    def __init__(self, gain: float = 0.5, *, env: Any) -> None:
        super().__init__(gain * env.action_space.high[0])


@pytest.mark.parametrize("policy", ["Gained", "Aware"])
def test_a_policy_class_is_given_the_environment_alone(policy: str) -> None:
    (episode,) = recorded(record(RecordOptions(env="Reusing-v0", policy=f"{__name__}:{policy}", episodes=1)))
    assert (episode.actions == 0.5).all()


@pytest.mark.parametrize(
    ("entry_point", "options", "fits"),
    [(Reusing, {}, True), (lambda: Reusing(), {}, False), (Reusing, {"way": object()}, False)],
)
def test_an_environment_is_named_by_what_can_be_imported(
    entry_point: Any, options: dict[str, Any], fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    env_spec = EnvSpec("Class-v0", entry_point, max_episode_steps=2, kwargs=options)
    monkeypatch.setitem(gymnasium.registry, "Class-v0", env_spec)
    if fits:
        id = record(RecordOptions(env="Class-v0", episodes=1))
        assert make_eval_env(DataOptions(id=id, state_key="arm")).max_steps == 2
        return
    monkeypatch.setattr(recording, "_episode", None)
    with pytest.raises(DataError, match="by what can be imported"):
        record(RecordOptions(env="Class-v0"))


@pytest.mark.parametrize(
    ("way", "words"),
    [("shape", "step 2 .*seed 5.* arm has shape"), ("nan", "step 2 .* arm is not finite"), ("reward", "step 1 .*nan")],
)
def test_what_no_data_set_can_hold_is_refused(way: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        record(RecordOptions(env="Reusing-v0", env_options={"way": way}, episodes=1, seed=5))
    assert not store.local_sets()


def test_one_process_at_a_time_records_a_set(root: Path) -> None:
    options = RecordOptions(env="Pendulum-v1", episodes=1, max_episode_steps=3)
    with recording._folder(options, "") as folder, pytest.raises(TrainingError, match="held by process"):
        record(replace(options, seed=1))  # which would empty it
    assert (folder / "recording.json").exists()


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
