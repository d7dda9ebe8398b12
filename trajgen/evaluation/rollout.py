"""Rollouts: one episode for every seed, many at a time, the same episodes for every policy."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trajgen.core.errors import TrajgenError
from trajgen.core.observations import entry

if TYPE_CHECKING:
    import gymnasium

    from trajgen.core.protocols import Observation, Policy
    from trajgen.envs.eval_env import EvalEnv

Progress = Callable[[int, int], None]
"""Called after every step with the number of ended episodes and of all episodes."""
PATIENCE = 60.0
"""Seconds after which a step that has not returned is said to hang."""


class Episode:
    """One seed's episode in one environment; stands still, and pays nothing, once it has ended."""

    def __init__(self, eval_env: EvalEnv, environment: gymnasium.Env, seed: int, record: bool, watch: Watch) -> None:
        self.watch = watch
        self.eval_env, self.environment, self.seed, self.record = eval_env, environment, seed, record
        self.reward, self.total, self.steps, self.done = 0.0, 0.0, 0, False
        self.good: int | None = None  # steps at which the world said success, if it says
        self.hit: int | None = None  # the first of them
        self.error: str | None = None
        self.states: list[NDArray[np.float32]] = []
        self.goal: NDArray[np.float32] | None = None
        self.observation: Observation = None
        self._guarded(self._start)

    def step(self, action: Any) -> float:
        """Takes one step; returns its reward."""
        self.reward = 0.0
        if not self.done:
            self._guarded(lambda: self._step(action))
        return self.reward

    def _start(self) -> None:
        self._arrive(*self.eval_env.reset(self.environment, self.seed))
        if self.eval_env.goal_key is not None:
            self.goal = np.array(entry(self.observation, self.eval_env.goal_key), dtype=np.float32)

    def _step(self, action: Any) -> None:
        observation, reward, terminated, truncated, info = self.environment.step(action)
        if not math.isfinite(reward):
            raise ValueError(f"the reward is {reward}")
        self.reward = float(reward)
        self.total += self.reward
        self.steps += 1
        self.done = bool(terminated or truncated or self.steps >= self.eval_env.max_steps)
        self._arrive(observation, info)

    def _arrive(self, observation: Observation, info: dict[str, Any]) -> None:
        _require_usable(observation, self.environment.observation_space)
        self.observation = observation
        reached = self.eval_env.success(observation, info)
        if reached is not None:
            self.good = (self.good or 0) + bool(reached)
            if reached and self.hit is None:
                self.hit = self.steps
        state = self.eval_env.state(observation) if self.record else None
        if state is not None:
            self.states.append(np.array(state, dtype=np.float32))

    @property
    def success(self) -> bool | None:
        """Whether it has succeeded so far; None if the world does not say."""
        return None if self.good is None else self.good >= self.eval_env.rule.steps

    def _guarded(self, change: Callable[[], None]) -> None:
        self.watch.begin(f"step {self.steps + 1} of the episode of seed {self.seed}")
        try:
            change()
        except Exception as error:  # a world may raise anything; its episode fails, the others go on
            self.error, self.done = f"{type(error).__name__}: {error}", True
        finally:
            self.watch.end()


def _require_usable(observation: Any, space: Any) -> None:
    """Raises a ValueError for an observation that would spoil the batch it is put into."""
    for name, own in getattr(space, "spaces", {"": space}).items():
        value = np.asarray(observation[name] if name else observation)
        if own.shape is not None and value.shape != own.shape:
            raise ValueError(f"the observation {name} has shape {value.shape}, not {own.shape}")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ValueError(f"the observation {name} is not finite")


class Watch:
    """Says on the standard error when an environment's step hangs; nothing within a process can end such a step.

    Args:
        patience: seconds that a step may take.
    """

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self._now: tuple[str, float] | None = None
        self._over = threading.Event()

    def begin(self, what: str) -> None:
        """A step begins."""
        self._now = what, monotonic()

    def end(self) -> None:
        """It has returned."""
        self._now = None

    def __enter__(self) -> Watch:
        threading.Thread(target=self._look, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _look(self) -> None:
        said = None
        while not self._over.wait(self.patience / 4):
            now = self._now
            if now is not None and now is not said and monotonic() - now[1] > self.patience:
                said = now
                took = f"has not returned for {self.patience:.0f} s"
                print(
                    f"The environment hangs: {now[0]} {took}; Ctrl-C ends the evaluation.", file=sys.stderr, flush=True
                )


@dataclass(frozen=True)
class Rollouts:
    """What n episodes gave, in the order of their seeds.

    A failed episode has return NaN and an entry in ``errors``; ``completed`` leaves it out.
    """

    seeds: NDArray[np.int64]  # (n,)
    returns: NDArray[np.float64]  # (n,) undiscounted sums of rewards
    lengths: NDArray[np.int64]  # (n,) steps
    success: NDArray[np.bool_] | None  # (n,) or None if the world does not report it
    hits: NDArray[np.int64]  # (n,) first step at which it reported success, 0 at the start; -1 if it never did
    states: list[NDArray[np.float32]] = field(repr=False)  # n arrays (steps + 1, S), or empty ones
    goals: list[NDArray[np.float32] | None] = field(repr=False)  # n arrays (G,), at the episode's start
    errors: list[dict[str, Any]]  # seed, step and message of each failed episode
    decisions: int  # actions that an environment took
    act_seconds: NDArray[np.float64] = field(repr=False)  # (calls,) wall time of each call of act

    @property
    def completed(self) -> NDArray[np.bool_]:
        """Which episodes (n,) came to their end."""
        return np.isfinite(self.returns)

    def from_first_hit(self, max_steps: int) -> NDArray[np.float64]:
        """Returns (n,) by the first-hit protocol: the steps from the first at the goal to an episode's longest end."""
        counted = np.where(self.hits < 0, 0, max_steps + 1 - self.hits.clip(min=1)).astype(np.float64)
        return np.where(self.completed, counted, np.nan)

    @property
    def decisions_per_second(self) -> float:
        """Actions taken per second that the policy spent on them."""
        return self.decisions / max(float(self.act_seconds.sum()), 1e-9)


@contextmanager
def environments(eval_env: EvalEnv, count: int) -> Iterator[list[gymnasium.Env]]:
    """Opens ``count`` environments of a world, to be used by several rollouts, and closes them in the end."""
    opened: list[gymnasium.Env] = []
    try:
        opened.extend(eval_env.make_env() for _ in range(count))
        yield opened
    finally:
        for environment in opened:
            _close(environment)


def _close(environment: gymnasium.Env) -> None:
    with suppress(Exception):  # what an environment does when it is closed must not cost what it was played for
        environment.close()


def rollout(
    policy: Policy,
    eval_env: EvalEnv,
    seeds: Sequence[int],
    *,
    record: bool = True,
    batch: int = 64,
    opened: list[gymnasium.Env] | None = None,
    progress: Progress | None = None,
) -> Rollouts:
    """Rolls out one episode for every seed.

    An episode's environment is reset with its seed, so two policies rolled out with the same seeds meet
    the same starts and goals. Nothing is reset by itself: an ended episode's slot is kept in the batch,
    its observation unchanged and its reward 0, until all are done.

    Args:
        record: whether to keep the visited states.
        batch: the most episodes played at once.
        opened: environments to use instead of new ones, at least min(batch, len(seeds)).
        progress: told after every step how many episodes have ended.
    """
    if not len(seeds) or batch < 1:
        raise TrajgenError(
            "A rollout needs at least one episode.",
            expected="episodes >= 1 and batch >= 1",
            got=f"{len(seeds)} seeds, batch {batch}",
            fix="evaluation.episodes=48",
        )
    if opened is None:
        with environments(eval_env, min(batch, len(seeds))) as opened:
            return rollout(policy, eval_env, seeds, record=record, batch=batch, opened=opened, progress=progress)
    episodes: list[Episode] = []
    seconds: list[float] = []
    for first in range(0, len(seeds), batch):
        chunk = seeds[first : first + batch]
        with Watch(PATIENCE) as watch:
            pairs = zip(opened, chunk, strict=False)
            slots = [Episode(eval_env, environment, int(seed), record, watch) for environment, seed in pairs]
            episodes += slots
            for taken in _play(policy, slots):
                seconds.append(taken)
                if progress:
                    progress(first + sum(slot.done for slot in slots), len(seeds))
        for index, slot in enumerate(slots):
            if slot.error:  # what raised once may be in any state
                opened[index] = eval_env.make_env()
                _close(slot.environment)
    return _collect(episodes, seconds)


def _play(policy: Policy, slots: list[Episode]) -> Iterator[float]:
    """Plays all slots to their end; gives the seconds of each decision once its step is taken."""
    space = slots[0].environment.observation_space
    known = next((slot.observation for slot in slots if slot.observation is not None), None)
    if known is None:
        return
    for slot in slots:
        slot.observation = known if slot.observation is None else slot.observation
    policy.reset(batch=len(slots))
    while not all(slot.done for slot in slots):
        observation = stack(space, [slot.observation for slot in slots])
        start = perf_counter()
        try:
            actions = np.asarray(policy.act(observation))
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported for its name
                raise
            raise TrajgenError(
                "Decisions for all episodes of a batch must fit into the memory of the device.",
                expected=f"room for {len(slots)} episodes at once",
                got=str(error).splitlines()[0],
                fix=f"evaluation.batch={max(1, len(slots) // 2)}, or device=cpu",
            ) from error
        taken = perf_counter() - start
        if actions.shape[:1] != (len(slots),):
            raise TrajgenError(
                "A policy returns one action for every observation of the batch.",
                expected=f"actions of shape ({len(slots)}, A)",
                got=actions.shape,
            )
        before = np.array([slot.done for slot in slots])
        rewards = [slot.step(action) for slot, action in zip(slots, actions, strict=True)]
        # An end is said once: a policy that heard it again at every step would plan anew at every step.
        policy.observe(np.array(rewards), np.array([slot.done for slot in slots]) & ~before)
        yield taken


def stack(space: gymnasium.Space, observations: list[Observation]) -> Observation:
    """Batches observations along a new first axis, as a vector environment does."""
    from gymnasium.vector.utils import concatenate, create_empty_array

    batch: Any = create_empty_array(space, len(observations))
    return concatenate(space, observations, batch)


def _collect(episodes: list[Episode], seconds: list[float]) -> Rollouts:
    reported = [episode.success for episode in episodes]
    return Rollouts(
        seeds=np.array([episode.seed for episode in episodes]),
        returns=np.array([np.nan if episode.error else episode.total for episode in episodes]),
        lengths=np.array([episode.steps for episode in episodes]),
        success=np.array([bool(s) for s in reported]) if any(s is not None for s in reported) else None,
        hits=np.array([-1 if episode.hit is None else episode.hit for episode in episodes]),
        states=[np.stack(e.states) if e.states else np.empty((0, 0), np.float32) for e in episodes],
        goals=[episode.goal for episode in episodes],
        errors=[{"seed": e.seed, "step": e.steps, "error": e.error} for e in episodes if e.error],
        decisions=sum(episode.steps for episode in episodes),
        act_seconds=np.array(seconds),
    )


def decision_ms(
    policy: Policy, eval_env: EvalEnv, batch: int, *, repeats: int = 10, warm_up: int = 2
) -> dict[str, float]:
    """Milliseconds of a decision that plans, ``batch`` environments at once: median and 95th percentile.

    Each repeat starts new episodes, since the first decision of an episode always plans.
    """
    with environments(eval_env, 1) as (environment,):
        seen = [eval_env.reset(environment, seed)[0] for seed in range(batch)]
        observation = stack(environment.observation_space, seen)
    seconds = []
    for _ in range(warm_up + repeats):
        policy.reset(batch=batch)
        start = perf_counter()
        policy.act(observation)
        seconds.append(perf_counter() - start)
    timed = 1000 * np.array(seconds[warm_up:])
    return {"median": float(np.median(timed)), "p95": float(np.percentile(timed, 95))}
