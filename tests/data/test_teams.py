"""Several agents as one environment, the tasks in which they must agree, and data recorded in them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import ModuleType
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from trajgen.cli.data import catalogue
from trajgen.core.errors import ConfigError, DataError
from trajgen.data import minari, store
from trajgen.data.options import DataOptions
from trajgen.envs import teams
from trajgen.envs.eval_env import make_eval_env
from trajgen.envs.gym import make_env, spec
from trajgen.envs.joint import ENV_ID, JointEnv
from trajgen.envs.makers import MAKERS, make
from trajgen.envs.teams import TEAMS


class Uneven:
    """Two agents with observations of 2 and 3 numbers and actions of 2 and 1, which receive what they do."""

    metadata: ClassVar[dict[str, Any]] = {}
    possible_agents = ("small", "tall")
    observations: ClassVar[dict[str, Any]] = {
        "small": Box(-9, 9, (2,), np.float32),
        "tall": Box(-1, 1, (3,), np.float32),
    }
    actions: ClassVar[dict[str, Any]] = {"small": Box(-1, 1, (2,), np.float32), "tall": Box(0, 1, (1,), np.float32)}

    def __init__(self, leaves_at: int = 99, render_mode: str | None = None) -> None:
        self.leaves_at, self.steps = leaves_at, 0
        self.received: list[dict[str, list[float]]] = []

    def observation_space(self, agent: str) -> Any:
        return self.observations[agent]

    def action_space(self, agent: str) -> Any:
        return self.actions[agent]

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        self.steps = 0
        return {"small": np.array([1, 2]), "tall": np.array([3, 4, 5])}, {}

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        self.steps += 1
        self.received.append({agent: action.tolist() for agent, action in actions.items()})
        ends = {"small": self.steps >= self.leaves_at, "tall": False}
        over = dict.fromkeys(ends, self.steps == 3)
        return {"small": [6, 7], "tall": [0, 0, 1]}, {"small": 1.0, "tall": 4.0}, over, ends, {"small": {}, "tall": {}}

    def close(self) -> None:
        pass


@pytest.fixture
def uneven(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("uneven_team")
    vars(module)["parallel_env"] = Uneven
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_observations_and_actions_lie_side_by_side_and_narrow_ones_are_padded(uneven: ModuleType) -> None:
    env = JointEnv("uneven_team")
    assert env.team == [
        {"agent": "small", "observation": 2, "action": 2},
        {"agent": "tall", "observation": 3, "action": 1},
    ]
    assert env.observation_space.low.tolist() == [-9, -9, 0, -1, -1, -1]
    assert env.action_space.low.tolist() == [-1, -1, 0, 0] and env.action_space.high.tolist() == [1, 1, 1, 0]
    assert env.reset()[0].tolist() == [1, 2, 0, 3, 4, 5]
    observation, reward, terminated, truncated, _ = env.step(np.array([0.5, -0.5, 0.25, 9.0]))
    assert env.env.received == [{"small": [0.5, -0.5], "tall": [0.25]}]
    assert observation.tolist() == [6, 7, 0, 0, 0, 1] and reward == 2.5 and not terminated and not truncated
    env.step(np.zeros(4))
    assert env.step(np.zeros(4))[2:4] == (True, False)


def test_agents_that_leave_alone_and_spaces_that_are_no_vectors_are_refused(uneven: ModuleType) -> None:
    env = JointEnv("uneven_team", leaves_at=2)
    env.reset()
    env.step(np.zeros(4))
    with pytest.raises(DataError, match="1 of 2 agents"):
        env.step(np.zeros(4))
    vars(uneven)["parallel_env"] = type(
        "Choosing", (Uneven,), {"actions": dict.fromkeys(("small", "tall"), Discrete(3))}
    )
    with pytest.raises(ConfigError, match="vectors as observations") as refusal:  # also where Gymnasium makes it
        make_env(spec(ENV_ID, env="uneven_team"))
    assert "'env_options={env: uneven_team, continuous_actions: true}'" in str(refusal.value.fix)


def test_what_is_no_team_is_refused_with_what_to_install() -> None:
    with pytest.raises(ConfigError, match="parallel_env"):
        JointEnv("json")
    for make_it in (lambda: JointEnv("no_such_team"), lambda: make_env(spec(ENV_ID, env="no_such_team"))):
        with pytest.raises(ConfigError) as caught:
            make_it()
        assert caught.value.fix == "pip install 'no_such_team'"


@pytest.mark.parametrize("name", TEAMS)
def test_a_joint_episode_is_that_of_the_team_stepped_by_hand(name: str) -> None:
    """The same seeds and actions, given to PettingZoo's environment agent by agent."""
    team = TEAMS[name]
    joint = gymnasium.make(team.spec())
    options = dict(team.options)
    by_hand = sys.modules[options["env"]].parallel_env(**{k: v for k, v in options.items() if k != "env"})
    observation, _ = joint.reset(seed=4)
    observations, _ = by_hand.reset(seed=4)
    agents = by_hand.possible_agents
    assert len(agents) == team.agents
    joint.action_space.seed(0)
    for _ in range(5):
        assert np.array_equal(observation, np.concatenate([observations[a] for a in agents]).astype(observation.dtype))
        action = joint.action_space.sample()
        observation, reward, *_ = joint.step(action)
        observations, rewards, *_ = by_hand.step(dict(zip(agents, np.split(action, len(agents)), strict=True)))
        assert reward == pytest.approx(np.mean([*rewards.values()]))


def earned(name: str, agree: bool, episodes: int) -> np.ndarray:
    team = TEAMS[name]
    recorded = teams.record(team, episodes * team.episode_steps, seed=10_000, agree=agree)
    return np.array([episode["rewards"].sum() for episode in recorded])


@pytest.mark.parametrize(
    ("name", "episodes", "deviations"), [("spread", 24, (7.0, 3.5)), ("cheetah", 8, (174.0, 120.0))]
)
def test_a_team_that_agrees_earns_more_than_agents_that_draw_alone(
    name: str, episodes: int, deviations: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bounds of the presets are what the controllers earn in either case; deviations are those of 500 episodes."""
    monkeypatch.setitem(TEAMS, name, replace(TEAMS[name], noise=0.0))
    together, alone = earned(name, True, episodes), earned(name, False, episodes)
    (bounds,) = catalogue()[f"agents/{name}"].options.bounds.values()
    for bound, returns, deviation in zip(bounds, (alone, together), deviations, strict=True):
        assert abs(bound - returns.mean()) < 3 * deviation / np.sqrt(episodes)
    assert together.mean() > alone.mean() + 2 * np.hypot(together.std(), alone.std()) / np.sqrt(episodes)


def test_a_leg_feels_the_trunk_or_itself_alone() -> None:
    """Three angles and three speeds of its own; those of the trunk, 2 and 3, are told to both legs or to none."""
    sees, blind = (gymnasium.make(TEAMS[name].spec()) for name in ("cheetah", "cheetah-blind"))
    observations = [env.reset(seed=0)[0].reshape(2, -1) for env in (sees, blind)]
    assert [rows.shape[1] for rows in observations] == [11, 6]
    np.testing.assert_array_equal(observations[0][:, :6], observations[1])
    np.testing.assert_array_equal(observations[0][0, 6:], observations[0][1, 6:])


def test_landmarks_that_are_covered_and_collisions_are_counted() -> None:
    env = gymnasium.make(TEAMS["spread"].spec())
    env.reset(seed=0)
    inner: Any = env.unwrapped
    world = inner.env.unwrapped.world
    for agent, place in zip(world.agents, ((0.5, 0.0), (0.5, 0.2)), strict=True):
        agent.state.p_pos = np.array(place)
    for landmark, place in zip(world.landmarks, ((0.55, 0.0), (0.0, 0.9)), strict=True):
        landmark.state.p_pos = np.array(place)
    observation = np.concatenate([inner.env.aec_env.observe(agent) for agent in inner.agents])
    info = inner._info(observation, {})
    assert info["covered"] == 1 and info["collisions"] == 1


def test_a_set_says_how_many_agents_it_has_and_is_evaluated_in_its_team() -> None:
    make("agents/spread", steps=60, quiet=True)
    id = MAKERS["agents/spread"].id
    options = DataOptions(id=id)
    episodes = minari.load(id, options)
    assert episodes.space.agents == 2 and episodes.lengths.tolist() == [25, 25, 10]
    eval_env = make_eval_env(options)
    assert eval_env.max_steps == 25
    with eval_env.make_env() as env:
        eval_env.require_fits(env, episodes.space)
    assert '"agent_1"' in minari.describe(id)["agents"]


def test_agents_that_do_not_share_out_the_numbers_of_a_set_are_damage() -> None:
    make("agents/spread", steps=30, quiet=True)
    id = MAKERS["agents/spread"].id
    path = store.folder(id) / "data" / "metadata.json"
    about = json.loads(path.read_text(encoding="utf-8"))
    for listed in ("[1, 2, 3]", "[]", "{"):
        path.write_text(json.dumps({**about, "agents": listed}), encoding="utf-8")
        with pytest.raises(DataError, match="agents"):
            minari.load(id, DataOptions(id=id))
