"""Disturbances of evaluation episodes, the same for every policy: pushes, goals that move, noise in the observation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from trajgen.core.errors import ConfigError
from trajgen.core.observations import Key, entry, put
from trajgen.envs.eval_env import TRUE_OBSERVATION

PUSH_EVERY, PUSH_STEPS = 100, 10
"""Steps from the beginning of a push to that of the next one, and how many it lasts."""
GOAL_EVERY = 200
"""Steps after which the goal moves."""
GRAVITY = 9.81
FREE, SLIDE = 0, 2
"""MuJoCo's types of joint: one free joint, or two that slide, move a body as a whole along two axes."""


@dataclass(frozen=True)
class Kind:
    """One kind of disturbance: its usual size, what it does in words, and the steps from one event to the next."""

    size: float
    words: str
    period: int = 0
    duration: int = 0
    """Steps that an event lasts."""


KINDS = {
    "push": Kind(
        10.0,
        f"every {PUSH_EVERY} steps the body is pushed for {PUSH_STEPS} steps in a random direction, with {{size:g}} "
        "times its weight",
        PUSH_EVERY,
        PUSH_STEPS,
    ),
    "moving_goal": Kind(0.0, f"every {GOAL_EVERY} steps another goal is drawn", GOAL_EVERY),
    "noise": Kind(0.1, "the observed state has Gaussian noise of standard deviation {size:g}"),
}
"""By the name that ``evaluation.disturbance`` has."""


class Disturbed(gymnasium.Wrapper):
    """Disturbs an environment, by random numbers that follow from the seed of the reset alone.

    Args:
        env: of MuJoCo for pushes, a maze for goals that move.
        kind: one of `KINDS`.
        size: of pushes in units of the body's weight, of noise in those of the state.
        state_key: the entries of the observation that noise is added to.

    Raises:
        ConfigError: if the environment cannot be disturbed like this.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], kind: str, size: float, state_key: Key = None) -> None:
        super().__init__(env)
        self.kind, self.size, self.state_key = kind, size, state_key
        self._rng, self._steps = np.random.default_rng(0), 0
        base: Any = env.unwrapped
        self._body = next((part for name in ("point_env", "ant_env") if (part := getattr(base, name, None))), base)
        if kind == "push" and not _moves_freely(self._body):
            raise _refusal(kind, env, "a MuJoCo body that moves as a whole, as in the mazes and in locomotion")
        if kind == "moving_goal" and not hasattr(base, "generate_target_goal"):
            raise _refusal(kind, env, "a maze of gymnasium-robotics")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode, whose disturbances follow from the seed."""
        if self.kind == "push":
            self._body.data.qfrc_applied[:2] = 0
        observation, info = self.env.reset(seed=seed, options=options)
        self._rng, self._steps = np.random.default_rng([0 if seed is None else seed, 1]), 0
        return self._observed(observation), self._with_truth(info, observation)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Takes a step; reward and success are those of the true state."""
        if self._steps and self.kind == "push":
            self._push(self._steps % PUSH_EVERY)
        if self._steps and self.kind == "moving_goal" and self._steps % GOAL_EVERY == 0:
            self._move_goal()
        self._steps += 1
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._observed(observation), reward, terminated, truncated, self._with_truth(info, observation)

    def _push(self, steps: int) -> None:
        """Begins a push, or ends it, so many steps after its beginning."""
        if steps == 0:
            angle, weight = self._rng.uniform(0, 2 * np.pi), GRAVITY * float(np.sum(self._body.model.body_mass))
            self._body.data.qfrc_applied[:2] = self.size * weight * np.array([np.cos(angle), np.sin(angle)])
        elif steps == PUSH_STEPS:
            self._body.data.qfrc_applied[:2] = 0

    def _move_goal(self) -> None:
        maze: Any = self.env.unwrapped
        cells = maze.maze.unique_goal_locations
        reach = maze.position_noise_range * maze.maze.maze_size_scaling
        maze.goal = cells[self._rng.integers(len(cells))] + self._rng.uniform(-reach, reach, 2)
        maze.update_target_site_pos()

    def _with_truth(self, info: dict[str, Any], observation: Any) -> dict[str, Any]:
        return {**info, TRUE_OBSERVATION: observation} if self.kind == "noise" else info

    def _observed(self, observation: Any) -> Any:
        if self.kind != "noise":
            return observation
        values = np.asarray(entry(observation, self.state_key))
        noisy = values + self.size * self._rng.standard_normal(values.shape)
        return put(_copy(observation), self.state_key, noisy.astype(values.dtype))


def disturbed(
    make_env: Callable[[], gymnasium.Env[Any, Any]], kind: str, size: float | None, state_key: Key
) -> gymnasium.Env[Any, Any]:
    """An environment that is disturbed, of a size or of the usual one."""
    env = make_env()
    return Disturbed(env, kind, KINDS[kind].size if size is None else size, state_key)


def _copy(observation: Any) -> Any:
    """An observation whose entries can be replaced while the environment goes on with its own."""
    return {k: _copy(v) for k, v in observation.items()} if isinstance(observation, Mapping) else observation


def _moves_freely(body: Any) -> bool:
    joints = list(getattr(getattr(body, "model", None), "jnt_type", ()))
    return hasattr(body, "data") and (joints[:1] == [FREE] or joints[:2] == [SLIDE, SLIDE])


def _refusal(kind: str, env: Any, expected: str) -> ConfigError:
    return ConfigError(
        f"The environment cannot be disturbed by evaluation.disturbance={kind}.",
        expected=expected,
        got=str(env.spec.id if env.spec else type(env.unwrapped).__name__),
        fix="evaluation.disturbance=noise, or none",
    )
