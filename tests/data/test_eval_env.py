"""Environments as a data set and its options describe them: success, goals, resets, entries of observations."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import small_sets
from gymnasium.spaces import Box, Dict
from small_sets import episode

from trajgen.core.errors import ConfigError, DataError
from trajgen.core.observations import entry, put
from trajgen.core.types import Space
from trajgen.data import minari
from trajgen.data.options import DataOptions, SuccessRule
from trajgen.envs.eval_env import EnvRecord, EvalEnv, make_eval_env, record_env
from trajgen.envs.gym import spec
from trajgen.evaluation.rollout import rollout

POSITION, STANCE = Box(-9, 9, (2,), np.float64), Box(-9, 9, (3,), np.float64)
ROOMS = Dict(
    {"observation": STANCE, "achieved_goal": POSITION, "desired_goal": POSITION, "deep": Dict({"place": POSITION})}
)
ACTIONS = Box(-1.0, 1.0, (2,), np.float32)
KEYS: dict[str, Any] = {
    "state_key": ("achieved_goal", "observation"),
    "goal_key": "desired_goal",
    "achieved_key": "achieved_goal",
    "goals": "hindsight",
    "goal_radius": 0.5,
    "goal_state": (0, 1),
}
ID = "tests/rooms-v0"


def observed(rows: int) -> dict[str, Any]:
    along = np.arange(rows, dtype=float)[:, None]
    return {
        "observation": np.repeat(along, 3, 1),
        "achieved_goal": np.concatenate([along, -along], 1) / 4,
        "desired_goal": np.full((rows, 2), 2.0),
        "deep": {"place": np.repeat(along, 2, 1) + 100},
    }


def save(lengths: list[int]) -> None:
    episodes = [
        episode(observed(n + 1), np.full((n, 2), 0.2 if n % 2 else -0.1, np.float32), terminated=True) for n in lengths
    ]
    small_sets.save(ID, episodes, ROOMS, ACTIONS)


class Tasks(gymnasium.Env):
    """An episode of six steps, whose information is that of a benchmark's environment."""

    observation_space, action_space = Box(-9, 9, (1,), np.float64), ACTIONS

    def __init__(self, key: str) -> None:
        self.key, self.reset_options = key, []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        self.reset_options.append(options)
        self.time, self.done = 0, []
        return np.zeros(1), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        if self.time in (2, 3, 5):
            self.done.append(f"task {self.time}")
        value: Any = {"success": self.time in (2, 3, 5), "tasks": self.done, "nothing": 0}[self.key]
        return np.zeros(1), 1.0, False, self.time == 6, {self.key: value}


class Still:
    """A policy that does nothing."""

    def reset(self, *, batch: int | None = None, ids: Any = None) -> None:
        self.batch = batch or 1

    def act(self, observation: Any) -> np.ndarray:
        return np.zeros((self.batch, 2), np.float32)

    def observe(self, reward: Any, done: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("key", "rule", "expected"),
    [
        ("success", SuccessRule(), True),
        ("success", SuccessRule(steps=3), True),  # more than two good steps, as Adroit counts
        ("success", SuccessRule(steps=4), False),
        ("tasks", SuccessRule(info="tasks", at_least=3), True),  # a list counts by its length, as the kitchen's does
        ("tasks", SuccessRule(info="tasks", at_least=4), False),
        ("tasks", SuccessRule(info="tasks", at_least=2, steps=4), True),  # at the steps 3, 4, 5 and 6
        ("tasks", SuccessRule(info="tasks", at_least=2, steps=5), False),
        ("nothing", SuccessRule(), None),
        ("nothing", SuccessRule(info="reward", steps=6), True),
        ("nothing", SuccessRule(info="reward", at_least=1.5), False),
    ],
)
def test_an_episode_succeeds_by_its_environments_rule(key: str, rule: SuccessRule, expected: bool | None) -> None:
    played = rollout(Still(), EvalEnv("tasks", lambda: Tasks(key), 6, rule=rule), [0, 1])
    assert expected is None if played.success is None else played.success.tolist() == [expected] * 2


def test_the_first_good_step_is_kept_and_counts_until_the_longest_end() -> None:
    played = rollout(Still(), EvalEnv("tasks", lambda: Tasks("success"), 6), [0])
    assert played.hits.tolist() == [2]
    assert played.from_first_hit(6).tolist() == [5.0] and played.from_first_hit(10).tolist() == [9.0]
    never = rollout(
        Still(), EvalEnv("tasks", lambda: Tasks("tasks"), 6, rule=SuccessRule(info="tasks", at_least=9)), [0]
    )
    assert never.hits.tolist() == [-1] and never.from_first_hit(6).tolist() == [0.0]


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("at_least", -1.0), ("at_least", float("nan"))])
def test_a_rule_that_all_or_none_would_meet_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"data.success.{name}"):
        SuccessRule(**{name: value})


def test_episodes_are_reset_with_the_options_in_turn() -> None:
    env = Tasks("success")
    eval_env = EvalEnv("tasks", lambda: env, 6, resets=({"task_id": 1}, {"task_id": 2}))
    rollout(Still(), eval_env, [4, 5, 6], batch=1)
    assert env.reset_options == [{"task_id": 1}, {"task_id": 2}, {"task_id": 1}]
    rollout(Still(), EvalEnv("tasks", lambda: env, 6), [4])
    assert env.reset_options[-1] is None


def test_entries_are_read_joined_and_from_within() -> None:
    observations = observed(3)
    np.testing.assert_array_equal(entry(observations, ("achieved_goal", "observation"))[2], [0.5, -0.5, 2, 2, 2])
    np.testing.assert_array_equal(entry(observations, "deep/place")[1], [101, 101])
    assert entry(observations, None) is observations
    one = {"a": np.zeros(2), "b": {"c": np.zeros(3)}}
    put(one, ("a", "b/c"), np.arange(5.0))
    np.testing.assert_array_equal(entry(one, ("a", "b/c")), np.arange(5.0))


def test_a_state_of_several_entries_is_loaded_and_shown_to_the_policy() -> None:
    save([4, 3])
    episodes = minari.load(ID, DataOptions(id=ID, **KEYS))
    assert episodes.space.state_dim == 5 and episodes.space.goal_dim == 2
    np.testing.assert_allclose(episodes.states[:5], entry(observed(5), KEYS["state_key"]))
    assert minari.load(ID, DataOptions(id=ID, state_key="deep/place")).states[0].tolist() == [100, 100]
    with pytest.raises(ConfigError, match="deep/place"):
        minari.load(ID, DataOptions(id=ID, state_key=("observation", "deep/plac")))


def test_actions_are_clipped_where_those_of_the_data_end() -> None:
    save([4, 3])
    of_space, of_data = (
        minari.load(ID, DataOptions(id=ID, action_limits=which, **KEYS)).space for which in ("space", "data")
    )
    assert (of_space.action_low, of_space.action_high) == ((-1.0, -1.0), (1.0, 1.0))
    np.testing.assert_allclose([of_data.action_low, of_data.action_high], [[-0.1] * 2, [0.2] * 2])


def test_flags_of_the_environment_and_bounds_of_the_task_come_first() -> None:
    save([3])
    options = DataOptions(id=ID, env_id="PointMaze_UMaze-v3", env_options={"continuing_task": False},
                          bounds={"mine": (0.0, 2.0)}, resets=({"goal_cell": (3, 1)},), **KEYS)  # fmt: skip
    eval_env = make_eval_env(options)
    assert next(iter(eval_env.bounds)) == "mine" and eval_env.walls
    env = eval_env.make_env()
    goals = {tuple(eval_env.reset(env, seed)[0]["desired_goal"].round(2)) for seed in range(3)}
    assert len(goals) == 3 and all(abs(x + 1) <= 0.25 and abs(y + 1) <= 0.25 for x, y in goals)  # jittered in the cell
    assert not env.unwrapped.continuing_task
    env.close()


def test_published_bounds_of_a_maze_come_before_those_of_its_data() -> None:
    """By which published scores are normalized; the hub's sets of the mazes may have others."""
    options = DataOptions(id="nobody/here-v0", env_id="PointMaze_UMaze-v3", max_episode_steps=300)
    recorded = EnvRecord("PointMaze_UMaze-v3", bounds=[0.0, 50.0])
    assert list(make_eval_env(options, recorded).bounds) == ["d4rl maze2d-umaze", "minari"]


def test_an_ant_in_a_maze_ends_on_arrival_and_has_a_map() -> None:
    save([3])
    options = DataOptions(id=ID, env_id="AntMaze_UMaze-v4", env_options={"continuing_task": False}, **KEYS)
    eval_env = make_eval_env(options)
    assert eval_env.max_steps == 700 and eval_env.walls and eval_env.controller is None and not eval_env.one_goal
    env = eval_env.make_env()
    observation, info = eval_env.reset(env, 0)
    assert eval_env.state(observation).shape == (29,)
    assert not eval_env.success(observation, info)
    inner: Any = env.unwrapped
    inner.goal = observation["achieved_goal"].copy()
    _, reward, terminated, _, info = env.step(np.zeros(8, np.float32))
    assert reward == 1 and terminated and eval_env.success(observation, info)
    env.close()


def test_an_environment_that_does_not_fit_the_data_is_refused() -> None:
    eval_env = EvalEnv("tasks", lambda: Tasks("success"), 6)
    low, high = (-1.0, -1.0), (1.0, 1.0)
    env = eval_env.make_env()
    eval_env.require_fits(env, Space(1, 2, action_low=low, action_high=high))
    for space, message in (
        (Space(3, 2, action_low=low, action_high=high), "other observations"),
        (Space(1, 3, action_low=low * 2, action_high=high * 2), "other actions"),
        (Space(1, 2, action_low=low, action_high=(1.0, 3.0)), "outside of the environment's box"),
        (Space(1, 2, 2, "observation", "desired_goal"), "other observations"),
    ):
        with pytest.raises(DataError, match=message):
            eval_env.require_fits(env, space)
    env.observation_space = ROOMS
    joined = Space(5, 2, state_key=KEYS["state_key"], action_low=low, action_high=high)
    eval_env.require_fits(env, joined)
    eval_env.require_fits(env, replace(joined, state_dim=2, state_key="deep/place"))
    for changes in ({"state_dim": 4}, {"state_key": ("observation", "gripper")}, {"state_key": "deep/place"},
                    {"goal_dim": 3, "goal_key": "desired_goal"}, {"state_key": ("observation", "deep")}):  # fmt: skip
        with pytest.raises(DataError, match="other observations"):
            eval_env.require_fits(env, replace(joined, **changes))
    save([3])
    options = DataOptions(id=ID, env_id="PointMaze_UMaze-v3", env_options={"no_such_maze": True}, **KEYS)
    with pytest.raises(DataError, match=r"cannot be made: .*no_such_maze"):
        make_eval_env(options)


def test_a_run_folder_keeps_no_environment_without_its_wrapper() -> None:
    env = gymnasium.wrappers.RescaleAction(gymnasium.make("Pendulum-v1"), -1.0, 1.0)
    rows = np.zeros((4, 3), np.float32)
    small_sets.save(ID, [episode(rows, np.zeros((3, 1), np.float32))], env.observation_space, env.action_space,
                    eval_env_spec=env.spec)  # fmt: skip
    assert make_eval_env(DataOptions(id=ID)).make_env().action_space.high == 1
    assert record_env(DataOptions(id=ID)) is None


def test_another_maze_than_the_recorded_one_is_warned_of() -> None:
    rows, walls = observed(4), [[1] * 5, [1, 0, 0, "r", 1], [1, 0, 1, 1, 1], [1, 0, 0, "g", 1], [1] * 5]
    mirrored = [row[::-1] for row in walls]
    for evaluated, count in ((walls, 0), (mirrored, 1)):
        specs = [spec("PointMaze_UMaze-v3", maze_map=maze) for maze in (walls, evaluated)]
        small_sets.save(ID, [episode(rows, np.zeros((3, 2), np.float32))], ROOMS, ACTIONS, force=True,
                        env_spec=specs[0], eval_env_spec=specs[1])  # fmt: skip
        with warnings.catch_warnings(record=True) as caught:
            make_eval_env(DataOptions(id=ID, **KEYS))
        assert sum("another maze" in str(each.message) for each in caught) == count
