"""The environments of a rollout: several at once, in this process or in others, each with an episode of its own."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import gymnasium

    from trajgen.core.planning import Observation
    from trajgen.envs.eval_env import EvalEnv

PATIENCE = 60.0
"""Seconds after which a step that has not returned hangs."""


@dataclass(frozen=True)
class Moment:
    """What an environment gave when it was reset or took a step, or the error that it raised."""

    observation: Observation = None
    reward: float = 0.0
    done: bool = False
    success: bool | None = None  # None if the environment does not report it
    error: str | None = None
    is_reported: bool = False  # whether the environment's info says so, not the distance to the goal


class Pool(Protocol):
    """Environments that are reset and stepped together."""

    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]

    def reset(self, seeds: Sequence[int]) -> list[Moment]:
        """Starts an episode of each seed, in as many of the environments."""
        ...

    def step(self, actions: Sequence[Any]) -> list[Moment | None]:
        """Takes a step in each environment whose action is not None."""
        ...


def reset(eval_env: EvalEnv, env: gymnasium.Env, seed: int) -> Moment:
    """The start of the episode of a seed; an error that the environment raises is part of it."""
    return _moment(eval_env, env, lambda: _started(*eval_env.reset(env, seed)))


def step(eval_env: EvalEnv, env: gymnasium.Env, action: Any) -> Moment:
    """A step; an error that the environment raises is part of it."""
    return _moment(eval_env, env, lambda: env.step(action))


def _started(observation: Observation, info: dict[str, Any]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
    return observation, 0.0, False, False, info


def _moment(eval_env: EvalEnv, env: gymnasium.Env, call: Callable[[], tuple[Any, ...]]) -> Moment:
    try:
        observation, reward, terminated, truncated, info = call()
        reward = as_reward(reward)
        check_observation(observation, env.observation_space)
        success = eval_env.success(observation, {"reward": reward, **info})
        done = bool(terminated or truncated)
        is_reported = eval_env.rule.info in {"reward", *info}
        return Moment(observation, reward, done, None if success is None else bool(success), is_reported=is_reported)
    except Exception as error:  # an environment may raise anything; its episode fails, the others go on
        return Moment(error=f"{type(error).__name__}: {error}")


def as_reward(reward: Any) -> float:
    """The reward of a step; raises a ValueError unless it is one finite number."""
    rewards = np.asarray(reward, dtype=np.float64)
    if rewards.size != 1:
        raise ValueError(f"the reward is one number, and has shape {rewards.shape}")
    if not np.isfinite(rewards).all():
        raise ValueError(f"the reward is {reward}")
    return rewards.item()


def check_observation(observation: Any, space: Any, name: str = "") -> None:
    """Raises a ValueError for an observation, or its entry ``name``, that would spoil the batch it is put into."""
    if hasattr(space, "spaces"):
        for key, part in space.spaces.items():
            if key not in observation:
                raise ValueError(f"the observation has no entry {name}{key}")
            check_observation(observation[key], part, f"{name}{key}/")
        return
    value, name = np.asarray(observation), f" {name[:-1]}" if name else ""
    if space.shape is not None and value.shape != space.shape:
        raise ValueError(f"the observation{name} has shape {value.shape}, not {space.shape}")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise ValueError(f"the observation{name} is not finite")


@contextmanager
def environments(eval_env: EvalEnv, count: int) -> Iterator[list[gymnasium.Env]]:
    """Makes ``count`` environments in this process, and closes them in the end."""
    envs: list[gymnasium.Env] = []
    try:
        envs.extend(eval_env.make_env() for _ in range(count))
        yield envs
    finally:
        for env in envs:
            close(env)


def close(env: gymnasium.Env) -> None:
    """Closes an environment, whatever it raises."""
    with suppress(Exception):  # an environment that raises when it is closed must not cost the episodes
        env.close()


@contextmanager
def env_pool(eval_env: EvalEnv, count: int, workers: int = 0) -> Iterator[Pool]:
    """``count`` environments, to be used by several rollouts: in this process, or in as many others as ``workers``."""
    if workers:
        from trajgen.evaluation.workers import WorkerPool

        with WorkerPool(eval_env, count, workers) as pool:
            yield pool
    else:
        with environments(eval_env, count) as envs, LocalPool(eval_env, envs) as local:
            yield local


class LocalPool:
    """Environments of this process, one after the other.

    Args:
        eval_env: what they are.
        envs: the environments; one that raised is replaced before its next episode.
    """

    def __init__(self, eval_env: EvalEnv, envs: list[gymnasium.Env]) -> None:
        self._eval_env, self._envs = eval_env, envs
        self.observation_space, self.action_space = envs[0].observation_space, envs[0].action_space
        self._seeds: list[int] = []
        self._steps: list[int] = []
        self._broken: set[int] = set()
        self._watchdog = Watchdog(PATIENCE)

    def __enter__(self) -> LocalPool:
        self._watchdog.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.stop()

    def reset(self, seeds: Sequence[int]) -> list[Moment]:
        for index in sorted(self._broken):  # an environment that raised may be in any state
            broken = self._envs[index]
            self._envs[index] = self._eval_env.make_env()
            close(broken)
        self._broken.clear()
        self._seeds, self._steps = list(seeds), [0] * len(seeds)
        return [self._watched(index, reset, seed) for index, seed in enumerate(seeds)]

    def step(self, actions: Sequence[Any]) -> list[Moment | None]:
        return [None if action is None else self._watched(index, step, action) for index, action in enumerate(actions)]

    def _watched(self, index: int, take: Callable[[EvalEnv, gymnasium.Env, Any], Moment], value: Any) -> Moment:
        self._watchdog.call = f"step {self._steps[index]} of the episode of seed {self._seeds[index]}", monotonic()
        moment = take(self._eval_env, self._envs[index], value)
        self._watchdog.call = None
        self._steps[index] += 1
        if moment.error is not None:
            self._broken.add(index)
        return moment


class Watchdog:
    """Reports on standard error when an environment's step hangs; nothing within a process can end such a step.

    Args:
        patience: seconds that a step may take.
    """

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.call: tuple[str, float] | None = None
        """The step that is being taken, and when it began."""
        self._stop = threading.Event()

    def start(self) -> None:
        """Watches from now on."""
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        """Ends the watch."""
        self._stop.set()

    def _run(self) -> None:
        reported = None
        while not self._stop.wait(self.patience / 4):
            call = self.call
            if call is not None and call is not reported and monotonic() - call[1] > self.patience:
                reported = call
                text = f"The environment hangs: {call[0]} has not returned for {self.patience:.0f} s; "
                text += "Ctrl-C ends the evaluation, and evaluation.workers=1 ends such steps."
                print(text, file=sys.stderr, flush=True)
