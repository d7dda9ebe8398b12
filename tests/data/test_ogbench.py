"""OGBench's environments: made up here, since the package is optional, and its own where it is installed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from small_sets import episode, save

from trajgen.cli.data import catalogue
from trajgen.core.errors import ConfigError
from trajgen.data import minari
from trajgen.data.options import DataOptions
from trajgen.envs.eval_env import make_eval_env
from trajgen.envs.ogbench_oracles import Maze as MazeOracle
from trajgen.envs.ogbench_oracles import ShortMaze
from trajgen.experiments.options import RecordOptions
from trajgen.experiments.recording import record
from trajgen.importing import ImportOptions, from_path

ID = "tests/maze-v0"
PRESETS = {name: task.options for name, task in catalogue().items() if name.startswith("ogbench/")}


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


class Seen(gymnasium.Env):
    """A corridor of three cells of which an image is seen, with the methods of OGBench's mazes that its oracle uses."""

    action_space = Box(-1.0, 1.0, (2,), np.float32)
    observation_space = property(lambda self: Box(0, 255, (8, 8, 3), np.uint8))  # made anew each time, as OGBench's
    maze_map = np.array([[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]])

    def __init__(self, use_oracle_rep: bool = False, terminate_at_goal: bool = True) -> None:
        self.use_oracle_rep, self.terminate_at_goal = use_oracle_rep, terminate_at_goal

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.xy, self.cur_goal_xy = np.zeros(2), np.array([2.0, 0.0])
        return self._image(), {"goal": self.cur_goal_xy if self.use_oracle_rep else self._image()}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.xy = (self.xy + np.array([0.2 * action[0], 0])).clip(0, 2)
        success = self.compute_success()
        return self._image(), float(success), success and self.terminate_at_goal, False, {"success": float(success)}

    def _image(self) -> np.ndarray:
        return np.full((8, 8, 3), round(100 * self.xy[0]), np.uint8)

    def get_xy(self) -> np.ndarray:
        return self.xy

    def set_goal(self, goal_ij: tuple[int, int]) -> None:
        self.cur_goal_xy = np.array([goal_ij[1] - 1.0, 0.0])

    def compute_success(self) -> bool:
        return bool(abs(self.xy[0] - self.cur_goal_xy[0]) < 0.2)

    def get_oracle_subgoal(self, start: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, None]:
        return goal, None


@pytest.fixture
def _package(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "ogbench", ModuleType("ogbench"))
    gymnasium.register("made-up-maze-v0", entry_point=Maze, max_episode_steps=9)
    gymnasium.register("made-up-visual-v0", f"{__name__}:Seen", max_episode_steps=40)
    yield
    del gymnasium.registry["made-up-maze-v0"], gymnasium.registry["made-up-visual-v0"]


@pytest.fixture
def real() -> ModuleType:
    package: ModuleType = pytest.importorskip("ogbench", reason="OGBench's environments need trajgen[ogbench]")
    return package


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataOptions:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    save(ID, [episode(np.zeros((3, 4)), np.zeros((2, 2), np.float32))], Maze.observation_space, Maze.action_space)
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
def test_goals_are_shown_and_success_is_the_environments(options: DataOptions) -> None:
    eval_env = make_eval_env(options)
    env = eval_env.make_env()
    for seed in (0, 3):
        observation, _ = eval_env.reset(env, seed)
        assert env.unwrapped.task == seed + 1
        assert observation["desired_goal"].tolist() == [seed + 1, seed + 2]
        np.testing.assert_array_equal(observation["achieved_goal"], observation["observation"][:2])
        assert env.observation_space.contains(observation)
    for _ in range(3):
        observation, reward, terminated, _, info = env.step(np.zeros(2, np.float32))
    assert terminated and reward == 1 and eval_env.success(observation, info)


@pytest.mark.usefixtures("_package")
def test_a_maze_has_its_walls_as_a_map_where_states_start_with_the_position(
    options: DataOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make_eval_env(options).walls is None  # says nothing of cells
    monkeypatch.setattr(Maze, "maze_map", np.array([[1, 0, 1], [0, 0, 0]]), raising=False)
    monkeypatch.setattr(Maze, "ij_to_xy", lambda _, ij: (4.0 * ij[1] - 4, 4.0 * ij[0] + 1), raising=False)
    assert make_eval_env(options).walls == [(-6.0, -1.0, 4.0, 4.0), (2.0, -1.0, 4.0, 4.0)]
    assert make_eval_env(replace(options, goal_state=(2, 3))).walls is None


@pytest.mark.usefixtures("_package")
def test_a_seed_decides_the_start_and_leaves_numpys_own_state_alone(options: DataOptions) -> None:
    eval_env = make_eval_env(options)
    env, other = eval_env.make_env(), eval_env.make_env()
    np.random.seed(7)
    starts = [eval_env.reset(each, 5)[0]["observation"] for each in (env, other, env)]
    after = np.random.uniform()
    np.random.seed(7)
    assert after == np.random.uniform()
    assert (starts[0] == starts[1]).all() and (starts[0] == starts[2]).all()
    assert (eval_env.reset(env, 6)[0]["observation"] != starts[0]).any()


@pytest.mark.usefixtures("_package")
def test_without_a_seed_an_episode_goes_on_from_what_was_drawn(options: DataOptions) -> None:
    env = make_eval_env(options).make_env()

    def starts() -> np.ndarray:
        return np.array([env.reset(seed=seed)[0]["observation"] for seed in (5, None, None)])

    first = starts()
    assert len(np.unique(first, axis=0)) == 3
    np.testing.assert_array_equal(starts(), first)


@pytest.mark.usefixtures("_package")
def test_a_visual_environment_is_recorded_by_an_oracle_and_has_its_goals_as_positions(options: DataOptions) -> None:
    env_id = "ogbench/made-up-visual-v0"
    id = record(RecordOptions(env=env_id, policy="trajgen.envs.ogbench_oracles:Maze", episodes=3,
                              env_options={"terminate_at_goal": False}))  # fmt: skip
    preset = replace(options, id=id, env_id=env_id, state_key=(), image_key="observation", goal_state=())
    episodes = minari.load(id, preset)
    assert episodes.lengths.tolist() == [40] * 3 and episodes.images is not None and episodes.space.goal_dim == 2
    np.testing.assert_allclose(episodes.images[:, 0, 0, 0], 100 * episodes.achieved[:, 0], atol=0.6)
    turns = np.diff(np.sign(np.diff(episodes.achieved[:40, 0])))
    assert episodes.achieved[:, 0].max() > 1.5 and (turns != 0).any()  # it goes from goal to goal
    eval_env = make_eval_env(preset)
    env = eval_env.make_env()
    eval_env.require_fits(env, episodes.space)
    observation, _ = eval_env.reset(env, 1)
    assert observation["desired_goal"].tolist() == [2, 0] and observation["achieved_goal"].tolist() == [0, 0]


def test_the_oracle_starts_in_all_cells_and_goes_to_those_that_are_no_hallway() -> None:
    maze: Any = SimpleNamespace(maze_map=np.ones((5, 7), int), goals=[])
    maze.maze_map[1, 1:6] = maze.maze_map[1:4, 3] = 0  # a T
    maze.unwrapped = maze
    oracle = MazeOracle(maze)
    free = [(1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (2, 3), (3, 3)]
    corners = [(1, 1), (1, 3), (1, 5), (3, 3)]  # ends and the crossing
    pairs = [(task["init_ij"], task["goal_ij"]) for task in maze.task_infos]
    assert pairs == [(start, goal) for start in free for goal in corners] and maze.num_tasks == 28
    maze.cur_goal_xy, maze.set_goal = np.zeros(2), lambda goal_ij: maze.goals.append(goal_ij)
    maze.get_xy, maze.get_oracle_subgoal = lambda: np.zeros(2), lambda start, goal: (np.array([3.0, 4.0]), None)
    for arrives in (False, *[True] * 100):
        maze.compute_success = lambda arrives=arrives: arrives
        oracle.reset()
        oracle.act(None)
    assert len(maze.goals) == 100 and {*maze.goals} == {*corners}


def test_the_oracle_of_short_journeys_has_all_goals_that_are_four_cells_away_by_the_way() -> None:
    maze: Any = SimpleNamespace(maze_map=np.ones((5, 7), int), num_tasks=5, cur_goal_xy=np.zeros(2))
    maze.maze_map[1, 1:6] = maze.maze_map[1:4, 5] = maze.maze_map[3, 1:6] = 0  # a U on its side
    maze.unwrapped = maze
    oracle = ShortMaze(maze)
    pairs = {(task["init_ij"], task["goal_ij"]) for task in maze.task_infos}
    assert len(pairs) == len(maze.task_infos) == maze.num_tasks == 2 * (11 - 4)
    assert ((1, 1), (1, 5)) in pairs and ((1, 3), (3, 5)) in pairs and ((1, 3), (3, 3)) not in pairs
    maze.compute_success = lambda: True
    maze.get_xy, maze.get_oracle_subgoal = lambda: np.zeros(2), lambda start, goal: (np.array([3.0, 4.0]), None)
    goal, actions = maze.cur_goal_xy, []
    for _ in range(400):
        oracle.reset()
        actions.append(oracle.act(None))
    assert maze.cur_goal_xy is goal  # it stays at the goal of the episode
    np.testing.assert_allclose(np.mean(actions, axis=0), [0.55, 0.68], atol=0.1)  # clipped at 1


@pytest.mark.usefixtures("real")
def test_the_presets_of_visual_environments_are_what_the_package_draws(options: DataOptions) -> None:
    """Needs MuJoCo's renderer, as MUJOCO_GL=egl or osmesa."""
    for name in ("ogbench/visual-pointmaze-medium-navigate", "ogbench/visual-cube-single-play"):
        eval_env = make_eval_env(replace(PRESETS[name], id=options.id))
        env = eval_env.make_env()
        observation, _ = eval_env.reset(env, 1)
        assert observation["observation"].shape == (64, 64, 3) and observation["observation"].std() > 20
        inner: Any = env.unwrapped
        goal, position = observation["desired_goal"], observation["achieved_goal"]
        if "maze" in name:
            assert (goal == inner.cur_goal_xy).all() and (position == inner.get_xy()).all()
        else:
            assert goal.shape == (3,) and (position == inner.compute_oracle_observation()).all()


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("name", ["cube-single", "scene"])
def test_the_oracle_of_the_package_moves_what_lies_on_the_table(name: str, options: DataOptions) -> None:
    id = record(RecordOptions(env=f"ogbench/{name}-v0", policy="trajgen.envs.ogbench_oracles:Play", episodes=1,
                              max_episode_steps=600,
                              env_options={"mode": "data_collection", "terminate_at_goal": False}))  # fmt: skip
    preset = replace(PRESETS[f"ogbench/{name}-play"], id=id)
    episodes = minari.load(id, preset)
    assert episodes.lengths.tolist() == [600]
    np.testing.assert_allclose(episodes.states[:, preset.goal_state], episodes.achieved, atol=1e-5)
    assert (np.ptp(episodes.achieved, axis=0) > 0.4).sum() >= 2  # the cube to the side, or one thing after another


def test_without_the_package_it_is_said_how_to_get_it(options: DataOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ogbench", None)
    with pytest.raises(ConfigError, match=r"trajgen\[ogbench\]"):
        make_eval_env(options)


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("name", [n for n, each in PRESETS.items() if "maze" in str(each.env_id) and "visual" not in n])
def test_the_environments_of_the_package_are_as_the_presets_say(name: str, options: DataOptions) -> None:
    eval_env = make_eval_env(replace(PRESETS[name], id=options.id))
    env, other = eval_env.make_env(), eval_env.make_env()
    inner: Any = env.unwrapped
    assert eval_env.max_steps == gymnasium.spec(eval_env.name).max_episode_steps
    assert len(eval_env.resets) == inner.num_tasks
    walls = eval_env.walls or []
    for seed in (0, 1, 2, 3, 4, 9):
        np.random.seed(seed + 7)  # which must not matter
        (first, _), (again, info) = eval_env.reset(env, seed), eval_env.reset(other, seed)
        assert inner.cur_task_id == seed % 5 + 1
        assert env.observation_space.contains(first)
        for entry, value in first.items():
            np.testing.assert_array_equal(value, again[entry])
        np.testing.assert_array_equal(first["desired_goal"], inner.cur_goal_xy)
        np.testing.assert_array_equal(info["goal"][:2], inner.cur_goal_xy)
        x, y = first["achieved_goal"]
        assert not any(left < x < left + width and low < y < low + height for left, low, width, height in walls)
    assert len(walls) == (inner.maze_map == 1).sum()
    action = np.full(inner.action_space.shape, 0.5, np.float32)
    for (observation, _, _, _, info), (same, *_) in ((env.step(action), other.step(action)) for _ in range(20)):
        np.testing.assert_array_equal(observation["observation"], same["observation"])
        assert not eval_env.success(observation, info)
    inner.set_xy(np.array(inner.cur_goal_xy))
    observation, reward, terminated, _, info = env.step(0 * action)
    assert terminated and reward == 1 and eval_env.success(observation, info)
    assert inner._goal_tol == eval_env.goal_radius, "arrival in the data is not what it is in the environment"


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("name", ["ogbench/cube-single-play", "ogbench/scene-play"])
def test_the_goals_of_an_arm_are_what_its_success_reads(name: str, options: DataOptions) -> None:
    eval_env = make_eval_env(replace(PRESETS[name], id=options.id))
    env = eval_env.make_env()
    inner: Any = env.unwrapped
    assert eval_env.max_steps == gymnasium.spec(eval_env.name).max_episode_steps
    observation, info = eval_env.reset(env, 1)
    goal_state = PRESETS[name].goal_state
    np.testing.assert_allclose(observation["desired_goal"], info["goal"][list(goal_state)], rtol=1e-6)
    oracle = inner.compute_oracle_observation()
    np.testing.assert_allclose(observation["achieved_goal"], oracle, atol=1e-5)  # OGBench's own reading of a goal
    observation, _, _, _, info = env.step(np.zeros(inner.action_space.shape))
    assert not eval_env.success(observation, info)
    inner._data.joint("object_joint_0").qpos[:3] = inner._data.mocap_pos[inner._cube_target_mocap_ids[0]]
    if "scene" in name:
        inner._cur_button_states[:] = inner._target_button_states
        inner._data.joint("drawer_slide").qpos[0] = inner._target_drawer_pos
        inner._data.joint("window_slide").qpos[0] = inner._target_window_pos
    observation, reward, terminated, _, info = env.step(np.zeros(inner.action_space.shape))
    assert terminated and reward == 1 and eval_env.success(observation, info)


@pytest.mark.usefixtures("real")
def test_a_seed_decides_where_a_teleport_leads(options: DataOptions) -> None:
    eval_env = make_eval_env(replace(options, env_id="ogbench/pointmaze-teleport-v0"))
    env = eval_env.make_env()
    inner: Any = env.unwrapped

    def places(seed: int) -> np.ndarray:
        eval_env.reset(env, seed)
        positions = []
        for _ in range(8):
            inner.set_xy(np.array(inner._teleport_info["teleport_in_xys"][0]))
            env.step(np.zeros(2, np.float32))
            positions.append(inner.get_xy())
        return np.array(positions)

    first = places(3)
    assert len(np.unique(first, axis=0)) > 1
    np.random.seed(11)
    np.testing.assert_array_equal(places(3), first)


def test_a_file_as_the_package_writes_it_is_read_as_the_package_reads_it(
    real: ModuleType, options: DataOptions, tmp_path: Path
) -> None:
    env = gymnasium.make("pointmaze-medium-v0", terminate_at_goal=False, max_episode_steps=13)
    rows: dict[str, Any] = {"observations": [], "actions": [], "terminals": [], "qpos": [], "qvel": []}
    for task in (1, 2, 3):
        observation, done = env.reset(seed=task, options={"task_id": task})[0], False
        while not done:
            action = env.action_space.sample()
            after, _, terminated, truncated, info = env.step(action)
            done = terminated or truncated
            for name, value in zip(
                rows, (observation, action, done, info["prev_qpos"], info["prev_qvel"]), strict=True
            ):
                rows[name].append(value)
            observation = after
    path = tmp_path / "navigate.npz"
    for name, each in rows.items():  # in the types of the scripts that made OGBench's data
        rows[name] = np.array(each, bool if name == "terminals" else np.float32)
    np.savez_compressed(path, **rows)

    preset = replace(PRESETS["ogbench/pointmaze-medium-navigate"], id="mine/navigate-v0")
    imported = from_path(path, ImportOptions(id=preset.id, rewards="zero", achieved=(0, 1)))
    assert (imported.episodes, imported.steps, imported.terminated) == (3, 36, 0)
    episodes, theirs = minari.load(preset.id, preset), real.load_dataset(str(path))
    steps = np.delete(np.arange(len(episodes.states)), episodes.ends)
    np.testing.assert_array_equal(episodes.states[steps], theirs["observations"])
    np.testing.assert_array_equal(episodes.states[steps + 1], theirs["next_observations"])
    np.testing.assert_array_equal(episodes.actions[steps], theirs["actions"])
    assert np.flatnonzero(theirs["terminals"]).tolist() == [11, 23, 35]

    np.savez_compressed(path, **theirs)  # what the package has read is read as well, and its ends are timeouts
    from_path(path, ImportOptions(id=preset.id, rewards="zero", achieved=(0, 1), ends="timeout", force=True))
    again = minari.load(preset.id, preset)
    assert again.lengths.tolist() == episodes.lengths.tolist() and not again.terminated.any()
    np.testing.assert_array_equal(again.states, episodes.states)
