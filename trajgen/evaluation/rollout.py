"""Rollouts: one episode for every seed, many at a time, the same episodes for every policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trajgen.core.errors import TrajgenError, is_out_of_memory
from trajgen.core.observations import entry
from trajgen.evaluation.pool import LocalPool, Moment, Pool, env_pool, environments

LONGEST_MS = 10_000.0
"""Of the repeats of one decision together, after which there are no more."""

if TYPE_CHECKING:
    import gymnasium

    from trajgen.core.planning import Observation, Policy
    from trajgen.envs.eval_env import EvalEnv

Progress = Callable[[int, int], None]
"""Called after every step with the steps done, and the ended episodes; all steps of an ended episode count as done."""


class Episode:
    """One seed's episode; once it has ended, its observation stays and its reward is 0."""

    def __init__(self, eval_env: EvalEnv, seed: int, record: bool, start: Moment) -> None:
        self.eval_env, self.seed, self.record = eval_env, seed, record
        self.done = False
        self.rewards: list[float] = []
        self.successes: int | None = None  # steps at which the environment reported success, if it reports it
        self.first_success: int | None = None
        self.is_reported = False
        self.error: str | None = None
        self.states: list[NDArray[Any]] = []
        self.goal: NDArray[Any] | None = None
        self.observation: Observation = None
        self._receive(start)
        if eval_env.goal_key is not None and self.error is None:
            self.goal = np.array(entry(self.observation, eval_env.goal_key))

    def step(self, moment: Moment | None) -> float:
        """Takes in what a step gave, None if there was none; returns its reward."""
        if moment is None:
            return 0.0
        if moment.error is None:
            self.rewards.append(moment.reward)
            self.done = moment.done or self.steps >= self.eval_env.max_steps
        self._receive(moment)
        return moment.reward

    @property
    def steps(self) -> int:
        """Steps taken."""
        return len(self.rewards)

    def _receive(self, moment: Moment) -> None:
        if moment.error is not None:
            self.error, self.done = moment.error, True
            return
        self.observation = moment.observation
        self.is_reported |= moment.is_reported
        if moment.success is not None:
            self.successes = (self.successes or 0) + moment.success
            if moment.success and self.first_success is None:
                self.first_success = self.steps
        state = self.eval_env.state(moment.observation) if self.record else None
        if state is not None:
            self.states.append(np.array(state))

    @property
    def success(self) -> bool | None:
        """Whether it has succeeded so far; None if the environment does not report it."""
        return None if self.successes is None else self.successes >= self.eval_env.rule.steps


@dataclass(frozen=True)
class Rollouts:
    """What n episodes gave, in the order of their seeds.

    A failed episode has return NaN and an entry in ``errors``; ``completed`` leaves it out.
    """

    seeds: NDArray[np.int64]  # (n,)
    returns: NDArray[np.float64]  # (n,) undiscounted sums of rewards
    lengths: NDArray[np.int64]  # (n,) steps
    success: NDArray[np.bool_] | None  # (n,) or None if the environment does not report it
    hits: NDArray[np.int64]  # (n,) first step at which it reported success, 0 at the start; -1 if it never did
    states: list[NDArray[Any]] = field(repr=False)  # n arrays (steps + 1, S), or empty ones
    goals: list[NDArray[Any] | None] = field(repr=False)  # n arrays (G,), at the episode's start
    rewards: list[NDArray[np.float64]] = field(repr=False)  # n arrays (steps,)
    errors: list[dict[str, Any]]  # seed, step and message of each failed episode
    decisions: int  # actions that an environment took
    act_seconds: NDArray[np.float64] = field(repr=False)  # (calls,) wall time of each call of act
    by_distance: bool = False  # whether success is that of the distance to the goal, as the environment reports none

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


def first_observations(eval_env: EvalEnv, seeds: Sequence[int]) -> dict[int, Any]:
    """The first observations of the episodes of these seeds, by seed, of those that the environment can start."""
    with environments(eval_env, 1) as envs, LocalPool(eval_env, envs) as pool:
        # copied, since the same environment is reset again, and may reuse its arrays
        starts = {seed: deepcopy(pool.reset([seed])[0]) for seed in seeds}
    return {seed: start.observation for seed, start in starts.items() if start.error is None}


def require_first_observations(eval_env: EvalEnv, seeds: Sequence[int]) -> list[Any]:
    """The same in order; raises a `TrajgenError` if the environment can start none."""
    observations = [*first_observations(eval_env, seeds).values()]
    if not observations:
        raise TrajgenError("The environment can start none of the episodes.", fix="seed=N of other episodes")
    return observations


def rollout(
    policy: Policy,
    eval_env: EvalEnv,
    seeds: Sequence[int],
    *,
    record: bool = True,
    batch: int = 64,
    pool: Pool | None = None,
    progress: Progress | None = None,
) -> Rollouts:
    """Rolls out one episode for every seed.

    An episode's environment is reset with its seed, so two policies rolled out with the same seeds meet
    the same starts and goals. Nothing is reset by itself: an ended episode's slot is kept in the batch,
    its observation unchanged and its reward 0, until all are done.

    Args:
        record: whether to keep the visited states.
        batch: the most episodes played at once.
        pool: environments to use instead of new ones, at least min(batch, len(seeds)).
        progress: called after every step, see `Progress`.
    """
    if not len(seeds) or batch < 1:
        raise TrajgenError(
            "A rollout needs at least one episode.", got=f"{len(seeds)} seeds, batch {batch}", fix="at least 1 of both"
        )
    if pool is None:
        with env_pool(eval_env, min(batch, len(seeds))) as new_pool:
            return rollout(policy, eval_env, seeds, record=record, batch=batch, pool=new_pool, progress=progress)
    episodes: list[Episode] = []
    seconds: list[float] = []
    for first in range(0, len(seeds), batch):
        some = [int(seed) for seed in seeds[first : first + batch]]
        starts = pool.reset(some)
        slots = [Episode(eval_env, seed, record, start) for seed, start in zip(some, starts, strict=True)]
        for duration in _play(policy, slots, pool, first):
            seconds.append(duration)
            if progress:
                steps = sum(eval_env.max_steps if slot.done else slot.steps for slot in slots)
                progress(first * eval_env.max_steps + steps, first + sum(slot.done for slot in slots))
        episodes += slots
    return _collect(episodes, seconds)


def _play(policy: Policy, slots: list[Episode], pool: Pool, first: int) -> Iterator[float]:
    """Plays all slots to their end; gives the seconds of each decision once its step is taken.

    Args:
        first: how many episodes were played before these.
    """
    from trajgen.core.planning import SeedsNoise  # imports torch

    filler = next((slot.observation for slot in slots if slot.observation is not None), None)
    if filler is None:
        return
    for slot in slots:
        slot.observation = filler if slot.observation is None else slot.observation
    policy.reset(batch=len(slots))
    if isinstance(policy, SeedsNoise):  # else each group of episodes would draw the same noise
        policy.seed_noise(first)
    while not all(slot.done for slot in slots):
        observation = stack(pool.observation_space, [slot.observation for slot in slots])
        start = perf_counter()
        try:
            actions = np.asarray(policy.act(observation))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise TrajgenError(
                f"Decisions for {len(slots)} episodes at once do not fit into the memory of the device.",
                got=str(error).splitlines()[0],
                fix=f"evaluation.batch={max(1, len(slots) // 2)}, or device=cpu",
            ) from error
        duration = perf_counter() - start
        if actions.shape[:1] != (len(slots),):
            raise TrajgenError(
                "A policy returns one action for every observation of the batch.",
                expected=f"actions of shape ({len(slots)}, A)",
                got=actions.shape,
            )
        before = np.array([slot.done for slot in slots])
        moments = pool.step([None if slot.done else action for slot, action in zip(slots, actions, strict=True)])
        rewards = [slot.step(moment) for slot, moment in zip(slots, moments, strict=True)]
        # An end is reported once: a policy would plan anew at every step after it.
        policy.observe(np.array(rewards), np.array([slot.done for slot in slots]) & ~before)
        yield duration


def stack(space: gymnasium.Space, observations: list[Observation]) -> Observation:
    """Batches observations along a new first axis, as a vector environment does."""
    from gymnasium.vector.utils import concatenate, create_empty_array

    batch: Any = create_empty_array(space, len(observations))
    return concatenate(space, observations, batch)


def _collect(episodes: list[Episode], seconds: list[float]) -> Rollouts:
    success = [episode.success for episode in episodes]
    return Rollouts(
        seeds=np.array([e.seed for e in episodes]),
        returns=np.array([np.nan if e.error else sum(e.rewards) for e in episodes]),
        lengths=np.array([e.steps for e in episodes]),
        success=None if all(s is None for s in success) else np.array([bool(s) for s in success]),
        hits=np.array([-1 if e.first_success is None else e.first_success for e in episodes]),
        states=[np.stack(e.states) if e.states else np.empty((0, 0), np.float32) for e in episodes],
        goals=[e.goal for e in episodes],
        rewards=[np.array(e.rewards) for e in episodes],
        errors=[{"seed": e.seed, "step": e.steps, "error": e.error} for e in episodes if e.error],
        decisions=sum(e.steps for e in episodes),
        act_seconds=np.array(seconds),
        by_distance=any(s is not None for s in success) and not any(e.is_reported for e in episodes),
    )


def decision_ms(
    policy: Policy, eval_env: EvalEnv, batch: int, *, repeats: int = 10, warm_up: int = 2
) -> dict[str, float]:
    """Milliseconds of a decision that plans, ``batch`` environments at once: median and 95th percentile.

    Each repeat starts new episodes, since the first decision of an episode always plans; slow ones are repeated less
    often. NaN where no episode can be started, or so many decisions do not fit into the memory of the device.
    """
    observations = [*first_observations(eval_env, range(batch)).values()]
    if not observations:
        return {"median": np.nan, "p95": np.nan}
    with environments(eval_env, 1) as (env,):
        observation = stack(env.observation_space, (observations * batch)[:batch])
    times = []
    try:
        for _ in range(warm_up + repeats):
            policy.reset(batch=batch)
            start = perf_counter()
            policy.act(observation)
            times.append(1000 * (perf_counter() - start))
            if len(times) > warm_up and sum(times) > LONGEST_MS:
                break
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return {"median": np.nan, "p95": np.nan}
    return {"median": float(np.median(times[warm_up:])), "p95": float(np.percentile(times[warm_up:], 95))}
