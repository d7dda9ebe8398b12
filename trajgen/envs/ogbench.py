"""OGBench's worlds (arXiv 2410.20092): known to Gymnasium once its package is imported, goals told at a reset."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from trajgen.core.errors import ConfigError
from trajgen.envs.gym import OGBENCH


def register(env_id: str) -> str:
    """Makes OGBench's worlds known to Gymnasium; returns the id without the prefix that it has here.

    Raises:
        ConfigError: if its package is not installed.
    """
    try:
        importlib.import_module("ogbench")
    except ImportError as error:
        raise ConfigError(
            "The worlds of OGBench come with its package.",
            expected="the package ogbench",
            got=f"data.env_id={env_id}: {error}",
            fix="pip install 'trajgen[ogbench]'",
        ) from error
    return env_id.removeprefix(OGBENCH)


class GoalShown(gymnasium.Wrapper):
    """Shows goals in the observation, as other goal-conditioned worlds do; OGBench tells them in a reset's information.

    An observation is then a dictionary with the entries observation, achieved_goal and desired_goal.

    Args:
        env: a world of OGBench, which is reset with ``options={"task_id": 1}`` (to 5) for one of its test goals.
        goal_state: which numbers of the observation a goal speaks of.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], goal_state: Sequence[int]) -> None:
        super().__init__(env)
        self.goal_state = list(goal_state)
        whole: Any = env.observation_space
        self._type = whole.dtype
        part = Box(whole.low[self.goal_state], whole.high[self.goal_state], dtype=whole.dtype)
        self.observation_space = Dict({"observation": whole, "achieved_goal": part, "desired_goal": part})
        self._goal = np.zeros(len(self.goal_state))
        self._draws = np.random.RandomState().get_state()
        self._teleports = env.spec is not None and "teleport" in env.spec.id

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode; its start and goal follow from the seed, or from what was drawn before."""
        if seed is not None:
            self._draws = np.random.RandomState(seed % 2**32).get_state()
            self.env.unwrapped.action_space.seed(seed)  # the world draws from it and does not seed it
        with self._own_draws():
            observation, info = self.env.reset(seed=seed, options=options)
        self._goal = np.asarray(info["goal"])[self.goal_state]
        return self._shown(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Takes a step; reward and success are the world's."""
        with self._own_draws() if self._teleports else nullcontext():  # no other step draws, and most are quick
            observation, reward, terminated, truncated, info = self.env.step(action)
        return self._shown(observation), reward, terminated, truncated, info

    @contextmanager
    def _own_draws(self) -> Iterator[None]:
        """Has the world, which draws from numpy's global state, draw from a state of its own."""
        before = np.random.get_state()
        np.random.set_state(self._draws)
        try:
            yield
        finally:
            self._draws = np.random.get_state()
            np.random.set_state(before)

    def _shown(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        place, goal = observation[self.goal_state].astype(self._type), self._goal.astype(self._type)
        return {"observation": observation, "achieved_goal": place, "desired_goal": goal}
