"""Tasks in which agents must agree on one of several equally good ways: landmarks to be shared out, a gait in step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium
import numpy as np

from trajgen.envs.gym import spec
from trajgen.envs.joint import ENV_ID, JointEnv

SPREAD_ID = "trajgen/Spread-v0"
COVERED, TOUCHING = 0.1, 0.3
"""Distances: of an agent on a landmark, and of two agents that collide."""
FREQUENCY = 0.768
"""Of the gait, in radians a step of 0.05 s."""
AMPLITUDES = np.array([[0.42, 1.15, 0.75], [0.61, 0.22, 0.45]])
PHASES = np.array([[2.09, 3.29, 1.17], [4.44, 5.35, 3.35]])
"""Of the torques of thigh, shin and foot, of the back leg and of the front leg; found by the cross-entropy method."""


class SpreadEnv(JointEnv):
    """``simple_spread`` of the particle environments, with ``covered`` landmarks and ``collisions`` in its info."""

    def _info(self, observation: np.ndarray, infos: dict[str, Any]) -> dict[str, Any]:
        _, positions, landmarks = spread_parts(observation, len(self.agents))
        distances = np.linalg.norm(landmarks, axis=-1)
        apart = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
        return {
            **super()._info(observation, infos),
            "covered": int((distances.min(0) < COVERED).sum()),
            "collisions": int(np.triu(apart < TOUCHING, 1).sum()),
        }


gymnasium.register(SPREAD_ID, f"{__name__}:{SpreadEnv.__name__}")


def spread_parts(observation: np.ndarray, agents: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Velocities and positions (n, 2), and the way to each landmark (n, n, 2), in a joint observation of n agents."""
    rows = observation.reshape(agents, -1)
    return rows[:, :2], rows[:, 2:4], rows[:, 4 : 4 + 2 * agents].reshape(agents, agents, 2)


class Spreading:
    """Each agent goes to a landmark of its own, by a controller of position; who goes where is drawn at random.

    Args:
        agents: n.
        random: of the draw.
        agree: false has each agent draw a landmark alone.
    """

    def __init__(self, agents: int, random: np.random.Generator, agree: bool = True) -> None:
        self.agents = agents
        self.landmarks = random.permutation(agents) if agree else random.integers(agents, size=agents)

    def controls(self, observation: np.ndarray) -> np.ndarray:
        """The forces (n, 2) of all agents."""
        velocities, _, ways = spread_parts(observation, self.agents)
        return 5.0 * ways[np.arange(self.agents), self.landmarks] - velocities

    def action(self, forces: np.ndarray) -> np.ndarray:
        """Forces (n, 2) as the joint action: nothing, left, right, down, up, each from 0 to 1."""
        forces = forces.clip(-1.0, 1.0)
        still, x, y = np.zeros(len(forces)), forces[:, 0], forces[:, 1]
        return np.stack([still, -x, x, -y, y], axis=1).clip(0.0, 1.0).reshape(-1)


class Running:
    """Each leg of a half cheetah swings in a rhythm, whatever it observes; its phase is drawn at random.

    Args:
        agents: 2, the legs.
        random: of the draw.
        agree: false has each leg draw a phase alone.
    """

    def __init__(self, agents: int, random: np.random.Generator, agree: bool = True) -> None:
        self.phases = np.full((agents, 1), random.uniform(0, 2 * np.pi))
        if not agree:
            self.phases = random.uniform(0, 2 * np.pi, (agents, 1))
        self.steps = 0

    def controls(self, observation: np.ndarray) -> np.ndarray:
        """The torques (2, 3) of both legs."""
        torques = AMPLITUDES * np.sin(FREQUENCY * self.steps + self.phases + PHASES)
        self.steps += 1
        return np.asarray(torques)

    def action(self, torques: np.ndarray) -> np.ndarray:
        """Torques (2, 3) as the joint action."""
        return torques.clip(-1.0, 1.0).reshape(-1)


@dataclass(frozen=True)
class Team:
    """A task of several agents, and the controller that is recorded in it.

    Args:
        words: what it is.
        env_id: of a `JointEnv`.
        agents: n.
        episode_steps: steps of an episode.
        steps: of a data set.
        noise: standard deviation of what is added to recorded forces or torques.
        controller: of one episode; from n, random numbers and whether the agents agree.
        options: of the environment.
    """

    words: str
    env_id: str
    agents: int
    episode_steps: int
    steps: int
    noise: float
    controller: Callable[[int, np.random.Generator, bool], Spreading | Running]
    options: dict[str, Any] = field(default_factory=dict)

    def spec(self) -> Any:
        """Its Gymnasium spec."""
        return spec(self.env_id, max_episode_steps=self.episode_steps, **self.options)


CHEETAH = Team(
    words="half cheetah whose two legs are agents that do not see each other, in a gait of random phase",
    env_id=ENV_ID,
    agents=2,
    episode_steps=200,
    steps=60_000,
    noise=0.02,
    controller=Running,
    options={
        "env": "gymnasium_robotics.envs.multiagent_mujoco.mamujoco_v1",
        "scenario": "HalfCheetah",
        "agent_conf": "2x3",
        "agent_obsk": 0,
    },
)

TEAMS = {
    "spread": Team(
        words="two agents and two landmarks, shared out at random",
        env_id=SPREAD_ID,
        agents=2,
        episode_steps=25,
        steps=50_000,
        noise=0.1,
        controller=Spreading,
        options={"env": "mpe2.simple_spread_v3", "N": 2, "max_cycles": 25, "continuous_actions": True},
    ),
    "cheetah": CHEETAH,
    "cheetah-blind": replace(
        CHEETAH,
        words="half cheetah whose two legs are agents that feel themselves alone, in a gait of random phase",
        options={**CHEETAH.options, "global_categories": []},
    ),
}
"""The teams, by name."""


def record(team: Team, steps: int, seed: int, agree: bool = True) -> Iterator[dict[str, Any]]:
    """Records episodes of a team's controller with noise, as entries of Minari's EpisodeBuffer.

    Args:
        team: that is recorded.
        steps: how many in all; the last episode is cut to fit.
        seed: of the set; each episode follows from it and from the episode's number.
        agree: false has the agents draw alone what they do.
    """
    with gymnasium.make(team.spec()) as env:
        for number, first in enumerate(range(0, steps, team.episode_steps)):
            length = min(team.episode_steps, steps - first)
            random = np.random.default_rng([seed, number])
            controller = team.controller(team.agents, random, agree)
            observation, _ = env.reset(seed=int(random.integers(2**31)))
            observations, actions, rewards = [observation], [], np.empty(length)
            for step in range(length):
                controls = controller.controls(observation)
                action = controller.action(controls + random.normal(0.0, team.noise, controls.shape))
                actions.append(action.astype(env.action_space.dtype))
                observation, reward, *_ = env.step(actions[-1])
                observations.append(observation)
                rewards[step] = reward
            yield {
                "seed": None,
                "observations": np.stack(observations),
                "actions": np.stack(actions),
                "rewards": rewards,
                "terminations": np.zeros(length, bool),
                "truncations": np.arange(length) == length - 1,
            }
