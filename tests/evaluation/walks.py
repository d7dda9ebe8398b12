"""Small environments without physics, for tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from trajgen.envs.eval_env import EvalEnv


class Walk(gymnasium.Env):
    """A point on a line: start, goal and length are drawn from the seed; the reward is the action.

    An episode of seed s lasts 3 + s % 5 steps. With ``fails_at`` it raises at the second step of that seed.
    """

    def __init__(self, fails_at: int | None = None, fails_on_reset: bool = False) -> None:
        plain = Box(-10, 10, (2,), np.float32)
        self.observation_space = Dict({"observation": plain, "desired_goal": Box(-10, 10, (1,), np.float32)})
        self.action_space = Box(-1, 1, (1,), np.float32)
        self.fails_at, self.fails_on_reset, self.closed = fails_at, fails_on_reset, False
        self.seeds: list[int | None] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.seed, self.time = seed or 0, 0
        if self.fails_on_reset and seed == self.fails_at:
            raise RuntimeError("no start")
        self.position, self.goal = self.np_random.uniform(-1, 1, 2)
        return self._see(), {"success": False}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        if self.time >= self.length:
            raise AssertionError("stepped after its end")
        self.time += 1
        if self.seed == self.fails_at and self.time == 2:
            raise RuntimeError("the simulation diverged")
        self.position += float(action[0])
        won = self.seed % 2 == 0 and self.time == 2
        return self._see(), float(action[0]), self.time >= self.length, False, {"success": won}

    @property
    def length(self) -> int:
        return 3 + self.seed % 5

    def _see(self) -> dict[str, np.ndarray]:
        state = np.array([self.position, self.time], dtype=np.float32)
        return {"observation": state, "desired_goal": np.array([self.goal], dtype=np.float32)}

    def close(self) -> None:
        self.closed = True


class Silent(Walk):
    """A walk that does not report success."""

    def reset(self, **keywords: Any) -> tuple:
        return super().reset(**keywords)[0], {}

    def step(self, action: np.ndarray) -> tuple:
        return (*super().step(action)[:4], {})


class Constant:
    """A policy that always takes the same action, and keeps what it observes."""

    def __init__(self, value: float) -> None:
        self.value, self.batch, self.outcomes, self.observations = value, 0, [], []

    def reset(self, *, batch: int | None = None, ids: Any = None) -> None:
        self.batch = batch or 0

    def act(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        self.observations.append({name: value.copy() for name, value in observation.items()})
        return np.full((self.batch, 1), self.value, dtype=np.float32)

    def observe(self, reward: Any, done: Any) -> None:
        self.outcomes.append((reward, done))


@dataclass(frozen=True)
class WalkEnv(EvalEnv):
    """Keeps the environments it made."""

    envs: list[Any] = field(default_factory=list)


def walk_env(make_env: Any = Walk, **changes: Any) -> WalkEnv:
    """Walks with a controller that always takes the action 1."""
    envs: list[Any] = []

    def make() -> gymnasium.Env:
        envs.append(make_env())
        return envs[-1]

    settings: dict[str, Any] = {
        "name": "walk",
        "make_env": make,
        "max_steps": 100,
        "bounds": {"two to six": (2.0, 6.0)},
        "controller": lambda: Constant(1.0),
        "goal_key": "desired_goal",
        "envs": envs,
    }
    return WalkEnv(**settings | changes)
