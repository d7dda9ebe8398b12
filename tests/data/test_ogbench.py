"""OGBench's worlds as its package gives them: made up here, since the package is optional."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from trajgen.core.errors import ConfigError
from trajgen.data import minari
from trajgen.data.options import DataOptions
from trajgen.data.worlds import world_for

ID = "tests/maze-v0"


class Maze(gymnasium.Env):
    """Tells its goal at a reset, draws from numpy's global state, and succeeds at the third step."""

    observation_space, action_space = Box(-9, 9, (4,), np.float64), Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.time, self.task = 0, (options or {}).get("task_id")
        start = np.random.uniform(-1, 1, 4)
        self.action_space.sample()
        return start, {"goal": np.arange(4.0) + (self.task or 0)}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        done = self.time == 3
        return np.full(4, self.time / 3), float(done), done, False, {"success": float(done)}


@pytest.fixture
def _package(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "ogbench", ModuleType("ogbench"))
    gymnasium.register("made-up-maze-v0", entry_point=Maze, max_episode_steps=9)
    yield
    del gymnasium.registry["made-up-maze-v0"]


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataOptions:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    spec = gymnasium.spec("Pendulum-v1")
    episode = {
        "observations": np.zeros((3, 4)),
        "actions": np.zeros((2, 2), np.float32),
        "rewards": np.zeros(2),
        "terminations": np.zeros(2, bool),
        "truncations": np.array([False, True]),
    }
    minari.save(ID, [episode], env_spec=spec, eval_env_spec=spec, observation_space=Maze.observation_space,
                action_space=Maze.action_space, description="a maze", algorithm="none")  # fmt: skip
    return DataOptions(
        id=ID,
        env_id="ogbench/made-up-maze-v0",
        state_key="observation",
        goal_key="desired_goal",
        achieved_key="achieved_goal",
        goals="hindsight",
        goal_state=(0, 1),
        resets=tuple({"task_id": k} for k in range(1, 6)),
    )


@pytest.mark.usefixtures("_package")
def test_goals_are_shown_and_success_is_the_worlds(options: DataOptions) -> None:
    world = world_for(options)
    env = world.make_env()
    for seed in (0, 3):
        observation, _ = world.reset(env, seed)
        assert env.unwrapped.task == seed + 1
        assert observation["desired_goal"].tolist() == [seed + 1, seed + 2]
        np.testing.assert_array_equal(observation["achieved_goal"], observation["observation"][:2])
        assert env.observation_space.contains(observation)
    for _ in range(3):
        observation, reward, terminated, _, info = env.step(np.zeros(2, np.float32))
    assert terminated and reward == 1 and world.success(observation, info)


@pytest.mark.usefixtures("_package")
def test_a_seed_decides_the_start_and_leaves_numpys_own_state_alone(options: DataOptions) -> None:
    world = world_for(options)
    env, other = world.make_env(), world.make_env()
    np.random.seed(7)
    starts = [world.reset(each, 5)[0]["observation"] for each in (env, other, env)]
    after = np.random.uniform()
    np.random.seed(7)
    assert after == np.random.uniform()
    assert (starts[0] == starts[1]).all() and (starts[0] == starts[2]).all()
    assert (world.reset(env, 6)[0]["observation"] != starts[0]).any()


def test_without_the_package_it_is_said_how_to_get_it(options: DataOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ogbench", None)
    with pytest.raises(ConfigError, match=r"trajgen\[ogbench\]"):
        world_for(options)
