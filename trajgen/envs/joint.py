"""Several agents as one: a PettingZoo environment as a Gymnasium one, with observations and actions side by side."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from trajgen.core.errors import ConfigError, DataError

ENV_ID = "trajgen/Parallel-v0"
PACKAGES = {"mpe2": "trajgen[multi]"}
"""What brings the package of a module, where pip knows it by another name."""


class JointEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """A team of PettingZoo's parallel API as a Gymnasium environment, so that all that acts and records can use it.

    An observation (n S) is those of the n agents side by side, in the order of ``possible_agents``, an action (n A) is
    theirs. Narrower ones are padded to the widest: observations with zeros, actions with numbers that are not used. A
    reward is the mean over agents, which is the team's own where it is shared. An episode ends when it ends for all.

    Args:
        env: module with a ``parallel_env``, such as mpe2.simple_spread_v3.
        render_mode: of ``parallel_env``.
        options: its other arguments.

    Raises:
        ConfigError: if the module is missing or has no ``parallel_env``, or its observations or actions are no vectors.
    """

    def __init__(self, env: str, render_mode: str | None = None, **options: Any) -> None:
        self.env = _parallel_env(env, {**options, "render_mode": render_mode})
        self.render_mode = render_mode
        self.metadata = {"render_fps": 10, **self.env.metadata}
        self.agents: tuple[str, ...] = tuple(self.env.possible_agents)
        observations = [_box(env, "observation", self.env.observation_space(agent)) for agent in self.agents]
        actions = [_box(env, "action", self.env.action_space(agent)) for agent in self.agents]
        self.observation_space, self.action_space = _side_by_side(observations), _side_by_side(actions)
        self.team: list[dict[str, Any]] = [
            {"agent": agent, "observation": len(observation.low), "action": len(action.low)}
            for agent, observation, action in zip(self.agents, observations, actions, strict=True)
        ]
        """For each agent its name, and the widths of its observation and action before they are padded."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode."""
        super().reset(seed=seed)
        observations, _ = self.env.reset(seed=seed, options=options)
        return self._joint(observations), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Takes a step of all agents.

        Returns:
            Observation, reward, whether all were terminated, whether the others were truncated, and the agents' infos.

        Raises:
            DataError: if the episode ends for some of the agents alone.
        """
        rows = np.asarray(action, self.action_space.dtype).reshape(len(self.agents), -1)
        actions = {each["agent"]: row[: each["action"]] for each, row in zip(self.team, rows, strict=True)}
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        ends = [terminations[agent] or truncations[agent] for agent in self.agents if agent in terminations]
        if len(ends) < len(self.agents) or any(ends) != all(ends):
            raise DataError(
                "Agents came or went in the middle of an episode, which plans of a whole team cannot follow.",
                got=f"{sum(ends) + len(self.agents) - len(ends)} of {len(self.agents)} agents are out",
                fix="an environment, or options of it, in which the episode ends for all agents at once",
            )
        joint, reward = self._joint(observations), float(np.mean([rewards[agent] for agent in self.agents]))
        is_terminated = all(terminations[agent] for agent in self.agents)
        return joint, reward, is_terminated, all(ends) and not is_terminated, self._info(joint, infos)

    def render(self) -> Any:
        """A picture, as the team's environment draws it."""
        return self.env.render()

    def close(self) -> None:
        """Closes the team's environment."""
        self.env.close()

    def _info(self, observation: np.ndarray, infos: dict[str, Any]) -> dict[str, Any]:
        return {
            "agents": {agent: dict(info) for agent, info in infos.items()}
        }  # some environments use one info for ever

    def _joint(self, observations: dict[str, np.ndarray]) -> np.ndarray:
        width = max(each["observation"] for each in self.team)
        rows = np.zeros((len(self.agents), width), self.observation_space.dtype)
        for row, each in zip(rows, self.team, strict=True):
            row[: each["observation"]] = observations[each["agent"]]
        return rows.reshape(-1)


gymnasium.register(ENV_ID, f"{__name__}:{JointEnv.__name__}")


def _parallel_env(name: str, options: dict[str, Any]) -> Any:
    try:
        module = import_module(name)
    except ImportError as error:
        package = PACKAGES.get(name.partition(".")[0], name.partition(".")[0])
        raise ConfigError(f"{error}: `pip install '{package}'`", fix=f"pip install '{package}'") from error
    make = getattr(module, "parallel_env", None)
    if make is None:
        turns = ", only an env whose agents act in turn" if hasattr(module, "env") else ""
        raise ConfigError(
            "A team acts at once: an environment of PettingZoo's parallel API.",
            expected="a module with parallel_env",
            got=f"{name} has none{turns}",
            fix="another environment, or a module of your own with parallel_env, by PettingZoo's aec_to_parallel",
        )
    return make(**options)


def _box(name: str, what: str, space: Any) -> Box:
    if not isinstance(space, Box) or len(space.shape) != 1:
        raise ConfigError(
            f"Agents of a team have vectors as observations and actions; an {what} here is none.",
            got=f"{space} in {name}",
            fix=f"'env_options={{env: {name}, continuous_actions: true}}', if it has that, or another environment",
        )
    return space


def _side_by_side(boxes: list[Box]) -> Box:
    """The box (n W) of n boxes of width W or less; what they are padded with is 0 in it."""
    width = max(box.shape[0] for box in boxes)

    def padded(bounds: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.pad(each, (0, width - len(each))) for each in bounds])

    low, high = padded([box.low for box in boxes]), padded([box.high for box in boxes])
    return Box(low, high, dtype=np.result_type(*[box.dtype for box in boxes]).type)
