"""Shifted environments: their physics by hand, blocked corridors, and data sets that name them."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest

from trajgen.cli import main
from trajgen.core.errors import ConfigError
from trajgen.core.options import structure
from trajgen.data import minari
from trajgen.data.options import DataOptions, EnvShift
from trajgen.envs.eval_env import EnvRecord, EvalEnv, make_eval_env, record_env
from trajgen.envs.gym import make_env, spec
from trajgen.envs.makers import make
from trajgen.envs.physics import ShiftedEnv
from trajgen.envs.shift import shifted
from trajgen.envs.waypoints import Grid

MAZE = "PointMaze_Medium-v3"
KEYS: dict[str, Any] = {"state_key": "observation", "goal_key": "desired_goal", "achieved_key": "achieved_goal"}
SLIDER = """
<mujoco>
  <option timestep="0.001"/>
  <default><geom friction="0.4 0.005 0.0001"/></default>
  <worldbody>
    <geom type="plane" size="50 50 1"/>
    <body pos="0 0 0.1"><freejoint/><geom type="box" size="0.1 0.1 0.1" mass="1"/></body>
  </worldbody>
</mujoco>
"""


class Slider(gymnasium.Env[Any, Any]):
    """A box on a plane."""

    def __init__(self) -> None:
        self.model: Any = mujoco.MjModel.from_xml_string(SLIDER)


def test_a_point_mass_by_hand() -> None:
    env = make_env(shifted(spec(MAZE), EnvShift(mass=2.0, damping=3.0, gear=0.5)))
    env.reset(seed=0)
    observation = env.step(np.array([1.0, -0.5]))[0]["observation"]
    mass = 2 * 1000 * 4 / 3 * math.pi * 0.1**3  # a sphere of 0.1 m, 1000 kg/m³
    speed = 0.01 * 0.5 * 100 / (mass + 0.01 * 3)  # after 0.01 s from rest; MuJoCo damps implicitly, by 1 kg/s
    np.testing.assert_allclose(observation[2:], [speed, -0.5 * speed], rtol=1e-9)
    env.reset(seed=1)
    np.testing.assert_allclose(env.step(np.array([1.0, 0.0]))[0]["observation"][2], speed, rtol=1e-9)


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_a_sliding_box_by_hand(factor: float) -> None:
    model = ShiftedEnv(Slider(), friction=factor).unwrapped.model
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data, 200)
    data.qvel[0] = 3.0
    mujoco.mj_step(model, data, 300)
    lost = 3.0 - data.qvel[0]  # by Coulomb: friction times gravity times 0.3 s
    np.testing.assert_allclose(lost, factor * 0.4 * 9.81 * 0.3, rtol=0.03)


@pytest.mark.parametrize("env_id", ["Hopper-v5", "AntMaze_UMaze-v5"])
def test_masses_and_what_follows_from_them(env_id: str) -> None:
    before, after = (make_env(shifted(spec(env_id), EnvShift(mass=mass))).unwrapped.model for mass in (1.0, 1.5))
    np.testing.assert_allclose(after.body_subtreemass, 1.5 * before.body_subtreemass)
    np.testing.assert_allclose(after.body_inertia, 1.5 * before.body_inertia)
    np.testing.assert_array_equal(after.actuator_gear, before.actuator_gear)
    np.testing.assert_array_equal(after.geom_friction, before.geom_friction)


def test_no_shift_changes_nothing() -> None:
    assert shifted(spec(MAZE), EnvShift()) == spec(MAZE)


def test_a_blocked_corridor_is_a_wall() -> None:
    env_spec = shifted(spec(MAZE), EnvShift(blocked=((3, 3),)))
    cells, before = env_spec.kwargs["maze_map"], spec(MAZE).kwargs["maze_map"]
    assert [(i, j) for i in range(8) for j in range(8) if cells[i][j] != before[i][j]] == [(3, 3)] and cells[3][3] == 1
    with make_env(env_spec) as env:
        inner: Any = env.unwrapped
        assert not Grid(inner.maze.maze_map).free[3, 3]


def test_an_ant_in_a_shifted_maze(capsys: pytest.CaptureFixture[str]) -> None:
    """Half the torque for the same action, a wall where the corridor was, and a data set that names both."""
    words = ["env=AntMaze_Medium-v5", "shift={gear: 0.5, blocked: [[3, 3]]}", "max_episode_steps=2", "episodes=1"]
    main(["data", "record", *words, "id=own/ant-v0"])
    shifted_env: Any = make_eval_env(DataOptions(id="own/ant-v0", **KEYS)).make_env()
    with shifted_env, make_env(spec("AntMaze_Medium-v5")) as usual:
        torques = []
        for env in (shifted_env, usual):
            env.reset(seed=0)
            env.step(np.linspace(-0.5, 0.5, 8))
            torques.append(env.unwrapped.ant_env.data.qfrc_actuator[6:].copy())
        np.testing.assert_allclose(torques[0], 0.5 * torques[1])
        assert np.abs(torques[1]).min() > 1
        models = shifted_env.unwrapped.model, usual.unwrapped.model
        blocks = [{model.geom(n).name for n in range(model.ngeom)} for model in models]
        assert blocks[0] - blocks[1] == {"block_3_3"}
        maze = shifted_env.unwrapped.maze
        np.testing.assert_allclose(models[0].geom("block_3_3").pos[:2], maze.cell_rowcol_to_xy(np.array([3, 3])))


@pytest.mark.parametrize(
    ("shift", "env_id", "message"),
    [
        (EnvShift(blocked=((3, 2),)), MAZE, "stays connected"),
        (EnvShift(blocked=((0, 2),)), MAZE, "is a free one"),
        (EnvShift(blocked=((1, 1),)), "Hopper-v5", "is a free one"),
    ],
)
def test_what_cannot_be_blocked_is_refused(shift: EnvShift, env_id: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shifted(spec(env_id), shift)


def test_what_cannot_be_shifted_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"shift\.gear"):
        EnvShift(gear=0.0)
    with pytest.raises(ConfigError, match="MuJoCo"):
        ShiftedEnv(gymnasium.make("CartPole-v1"), mass=2.0)


def gear(eval_env: EvalEnv) -> float:
    env: Any = eval_env.make_env()
    with env:
        return float(env.unwrapped.model.actuator_gear[0, 0])


def test_a_shifted_data_set_names_its_environment() -> None:
    id = make("pointmaze/umaze", steps=120, quiet=True, shift=EnvShift(gear=0.2), id="own/weak-v0")
    again = make("pointmaze/umaze", steps=120, quiet=True, shift=EnvShift(gear=0.2), id="own/again-v0")
    unshifted = make("pointmaze/umaze", steps=120, quiet=True)
    assert (id, unshifted) == ("own/weak-v0", "trajgen/pointmaze/umaze-v0")
    weak, same, usual = (next(iter(minari.open_dataset(each).iterate_episodes())) for each in (id, again, unshifted))
    np.testing.assert_array_equal(weak.observations["observation"], same.observations["observation"])
    first = [episode.observations["observation"][1, 2:] for episode in (weak, usual)]
    np.testing.assert_allclose(first[0], 0.2 * first[1], rtol=1e-6)  # of the same first action, from rest

    eval_env = make_eval_env(DataOptions(id=id, **KEYS))
    assert (gear(eval_env), eval_env.name) == (20.0, "PointMaze_UMaze-v3 (gear × 0.2)")
    assert eval_env.max_steps == 300
    on_top = make_eval_env(DataOptions(id=id, shift=EnvShift(gear=0.5, mass=2.0), **KEYS))
    assert (gear(on_top), on_top.name) == (10.0, "PointMaze_UMaze-v3 (gear × 0.2, mass × 2, gear × 0.5)")
    assert gear(make_eval_env(DataOptions(id=unshifted, **KEYS))) == 100.0
    blocked = make_eval_env(DataOptions(id="not/here-v0", shift=EnvShift(blocked=((3, 3),)), **KEYS), EnvRecord(MAZE))
    assert blocked.name == f"{MAZE} (cell [3, 3] blocked)"

    recorded = structure(EnvRecord, asdict(record_env(DataOptions(id=id))), "env")  # as a run folder has it
    elsewhere = make_eval_env(DataOptions(id="not/here-v0", **KEYS), recorded)
    assert (gear(elsewhere), elsewhere.name) == (20.0, eval_env.name)


def test_a_policy_is_recorded_in_a_shifted_environment(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["env=Hopper-v5", "shift={mass: 2, friction: 0.5}", "max_episode_steps=3", "episodes=1", "id=own/hop-v0"]
    main(["data", "record", *words])
    assert minari.describe("own/hop-v0")["description"].count("mass × 2, friction × 0.5") == 1
    env: Any = make_eval_env(DataOptions(id="own/hop-v0")).make_env()
    usual = gymnasium.make("Hopper-v5").unwrapped.model
    np.testing.assert_allclose(env.unwrapped.model.body_mass, 2 * usual.body_mass)
    np.testing.assert_allclose(env.unwrapped.model.geom_friction[:, 0], 0.5 * usual.geom_friction[:, 0])
