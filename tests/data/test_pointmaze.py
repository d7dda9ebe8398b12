"""Point mazes: the controller, the recorded data, the evaluation environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trajgen.core.errors import ConfigError, DataError
from trajgen.core.planning import Policy
from trajgen.data import minari
from trajgen.data.options import DataOptions
from trajgen.envs import pointmaze
from trajgen.envs.eval_env import EvalEnv, make_eval_env
from trajgen.envs.makers import MAKERS, make
from trajgen.envs.waypoints import Grid, WaypointController

KEYS: dict[str, Any] = {"state_key": "observation", "goal_key": "desired_goal", "achieved_key": "achieved_goal"}

CORNER = [[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 0, 1], [1, 1, 1, 1]]


def options(name: str, **changes: Any) -> DataOptions:
    return DataOptions(id=MAKERS[name].id, goals="hindsight", goal_radius=0.45, **KEYS, **changes)


def test_cells_and_paths_by_hand() -> None:
    grid = Grid(CORNER)
    start, turn, goal = (-0.5, 0.5), (0.5, 0.5), (0.5, -0.5)
    cells = grid.cell(np.array([start, turn, goal]))
    assert cells.tolist() == [5, 6, 10]
    assert grid.centers[cells].tolist() == [list(start), list(turn), list(goal)]
    assert grid.towards[5, 10] == 6 and grid.towards[6, 10] == 10 and grid.towards[10, 10] == 10
    assert grid.towards[10, 5] == 6
    assert len(grid.walls()) == 13 and (-2.0, 1.0, 1.0, 1.0) in grid.walls()


def test_the_controller_steers_to_the_next_cell_then_to_the_goal() -> None:
    controller = WaypointController(Grid(CORNER), stiffness=1.0, damping=0.5)
    states = np.array([[-0.6, 0.5, 0.0, 0.0], [0.5, -0.4, 0.2, -0.2]])
    goals = np.array([[0.5, -0.5], [0.7, -0.7]])
    actions = controller.act({"observation": states, "desired_goal": goals})
    assert actions == pytest.approx(np.array([[1.0, 0.0], [0.2 - 0.1, -0.3 + 0.1]]))  # the first is clipped
    single = controller.act({"observation": states[1], "desired_goal": goals[1]})
    assert single.shape == (2,) and single == pytest.approx(actions[1])
    assert isinstance(controller, Policy)


def score(eval_env: EvalEnv, episodes: int) -> tuple[float, np.ndarray]:
    assert eval_env.controller is not None
    env, policy = eval_env.make_env(), eval_env.controller()
    returns, reached = np.zeros(episodes), np.zeros(episodes, bool)
    for seed in range(episodes):
        observation, _ = env.reset(seed=seed)
        ended = False
        while not ended:
            observation, reward, terminated, truncated, info = env.step(policy.act(observation))
            returns[seed] += float(reward)
            reached[seed] |= bool(eval_env.success(observation, info))
            ended = terminated or truncated
    env.close()
    return float(returns.mean()), reached


@pytest.mark.parametrize(("maze", "at_least"), [("umaze", 140), ("medium", 150), ("large", 180)])
def test_the_controller_reaches_every_goal_and_stays(maze: str, at_least: float) -> None:
    name = f"pointmaze/{maze}"
    make(name, steps=20, quiet=True)
    eval_env = make_eval_env(options(name))
    assert eval_env.max_steps == pointmaze.MAZES[maze].max_steps
    low, high = eval_env.bounds[f"d4rl maze2d-{maze}"]
    mean, reached = score(eval_env, 4)
    assert reached.all()
    assert 100 * (mean - low) / (high - low) > at_least


@pytest.mark.parametrize("name", ["pointmaze/umaze", "pointmaze/umaze-dwell"])
def test_rewards_and_goals_are_those_of_the_action(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pointmaze, "EPISODE_STEPS", 600)
    make(name, steps=1500, seed=3, quiet=True)
    episodes = minari.load(MAKERS[name].id, options(name))
    assert episodes.lengths.tolist() == [600, 600, 300] and not episodes.terminated.any()
    goals, achieved = episodes.goals, episodes.achieved
    assert goals is not None and achieved is not None
    stays: list[int] = []
    for first, last in zip(episodes.starts, episodes.ends, strict=True):
        near = np.linalg.norm(achieved[first + 1 : last + 1] - goals[first:last], axis=1) <= 0.45
        assert (near == episodes.rewards[first:last]).all()
        goal_changes = np.flatnonzero((np.diff(goals[first : last + 1], axis=0) != 0).any(1))  # goal of row t+1 is new
        for begin, end in zip([-1, *goal_changes[:-1]], goal_changes, strict=True):
            stays.append(int(end - (begin + 1) - np.argmax(near[begin + 1 : end + 1])))
            assert near[begin + 1 : end + 1].any()
        assert np.linalg.norm(goals[first + goal_changes + 1] - achieved[first + goal_changes + 1], axis=1).min() > 0.5
        assert (goals[last] == goals[last - 1]).all()
    low, high = (60, 180) if "dwell" in name else (0, 0)
    assert len(stays) >= 4 and min(stays) >= low and max(stays) <= high


def test_the_recorded_steps_are_those_of_the_environment() -> None:
    import gymnasium

    maze = pointmaze.MAZES["umaze"]
    episode = next(pointmaze.record(maze, (0, 0), 200, seed=1))
    env = gymnasium.make(pointmaze.maze_spec(maze, 300))
    observation, _ = env.reset(seed=episode["seed"])
    recorded = episode["observations"]
    assert (observation["desired_goal"] == recorded["desired_goal"][0]).all()
    for step, action in enumerate(episode["actions"]):
        assert (observation["observation"] == recorded["observation"][step]).all()
        observation, *_ = env.step(action)
    env.close()


def test_the_final_observation_keeps_the_goal_that_was_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    maze = pointmaze.MAZES["umaze"]
    episode = next(pointmaze.record(maze, (0, 0), 300, seed=1))
    arrival = int(np.flatnonzero(episode["rewards"])[0])
    goals = episode["observations"]["desired_goal"]
    assert (goals[arrival] != goals[arrival + 1]).any()
    cut = next(pointmaze.record(maze, (0, 0), arrival + 1, seed=1))
    assert cut["rewards"][-1] == 1
    assert (cut["observations"]["desired_goal"] == goals[arrival]).all()


def test_the_same_seed_makes_the_same_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pointmaze, "EPISODE_STEPS", 50)
    monkeypatch.setattr(pointmaze, "LANES", 2)  # three groups of episodes
    sets = []
    for seed in (0, 0, 1):
        make("pointmaze/umaze-dwell", steps=220, seed=seed, force=True, quiet=True)
        sets.append(minari.load(MAKERS["pointmaze/umaze-dwell"].id, options("pointmaze/umaze-dwell")))
    assert sets[0].lengths.tolist() == [50, 50, 50, 50, 20]
    assert (sets[0].states == sets[1].states).all() and (sets[0].actions == sets[1].actions).all()
    assert (sets[0].states != sets[2].states).any()
    first = sets[0].states[sets[0].starts]
    assert len(np.unique(first, axis=0)) == 5  # no episode is a copy of another


def test_progress_fits_on_60_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"COLUMNS": "60", "FORCE_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    make("pointmaze/medium-blocked", steps=1_000, id="mine/medium-blocked-v0")
    shown = capsys.readouterr().out
    assert "1000/1000" in shown and "…" not in shown


def test_makers_refuse_what_they_cannot_do() -> None:
    with pytest.raises(ConfigError, match="pointmaze/umaze-dwell"):
        make("pointmaze/umaze-dwel", quiet=True)
    with pytest.raises(ConfigError, match="steps=0"):
        make("pointmaze/umaze", steps=0, quiet=True)
    make("pointmaze/umaze", steps=10, quiet=True)
    with pytest.raises(DataError, match="force=true"):
        make("pointmaze/umaze", steps=10, quiet=True)
    assert make("pointmaze/umaze", steps=10, quiet=True, id="mine/maze-v0") == "mine/maze-v0"
    with pytest.raises(DataError, match="two or more"):
        make("pointmaze/umaze", steps=10, quiet=True, id="m/maze-v0")


def test_an_environment_is_recovered_from_metadata_alone(root: Path) -> None:
    make("pointmaze/umaze", steps=10, quiet=True)
    (root / MAKERS["pointmaze/umaze"].id / "data" / "main_data.hdf5").unlink()
    eval_env = make_eval_env(options("pointmaze/umaze", bounds={"mine": (0.0, 1.0)}))
    assert eval_env.bounds == {"d4rl maze2d-umaze": (23.85, 161.86), "mine": (0.0, 1.0)}
    assert eval_env.walls is not None and len(eval_env.walls) == 25 - 7
    longer = make_eval_env(options("pointmaze/umaze", max_episode_steps=500))
    assert longer.max_steps == 500 and longer.bounds == {}  # D4RL's bounds are for 300 steps


def test_success_is_read_from_the_information_or_the_distance() -> None:
    eval_env = EvalEnv("w", lambda: None, 1, goal_radius=1.0, goal_key="g", achieved_key="a")
    observation = {"a": np.zeros((2, 2)), "g": np.array([[0.5, 0.5], [3.0, 0.0]])}
    assert eval_env.success(observation, {}).tolist() == [True, False]
    assert eval_env.success(observation, {"success": np.array([False, True])}).tolist() == [False, True]
    assert EvalEnv("w", lambda: None, 1).success(np.zeros(2), {}) is None


def test_a_set_without_an_environment_needs_one(root: Path) -> None:
    make("pointmaze/umaze", steps=10, quiet=True)
    path = root / MAKERS["pointmaze/umaze"].id / "data" / "metadata.json"
    text = path.read_text().replace("env_spec", "nothing")
    path.write_text(text)
    with pytest.raises(DataError, match=r"data\.env_id"):
        make_eval_env(options("pointmaze/umaze"))
    assert make_eval_env(options("pointmaze/umaze", env_id="PointMaze_Medium-v3")).max_steps == 600
    with pytest.raises(DataError, match="PointMaze_Medium-v3"):
        make_eval_env(options("pointmaze/umaze", env_id="PointMaze_Medum-v3"))
