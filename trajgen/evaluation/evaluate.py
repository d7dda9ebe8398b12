"""A policy's scores in an environment, beside those of its controller and of random actions on the same episodes."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from trajgen.core.checks import check_range
from trajgen.core.choices import choices_of
from trajgen.core.errors import ConfigError, TrajgenError
from trajgen.evaluation.disturbance import describe_disturbance, disturb, recovery
from trajgen.evaluation.hardware import hardware
from trajgen.evaluation.pool import env_pool
from trajgen.evaluation.protocol import (
    describe,
    goal_kind,
    require_actions,
    require_bounds,
    require_goal,
    success_by_reset,
)
from trajgen.evaluation.rollout import Progress, Rollouts, decision_ms, rollout
from trajgen.evaluation.statistics import Array, bootstrap_interval, mean_ratio, normalized, summarize

if TYPE_CHECKING:
    from trajgen.core.planning import Observation, Policy
    from trajgen.envs.eval_env import EvalEnv

MEASURED = "measured random / controller"
LATENCY_BATCHES = (1, 64)


@dataclass(frozen=True)
class EvaluationOptions:
    """How a policy is evaluated.

    Args:
        episodes: how many; their seeds are seed, seed + 1, ...
        seed: of the first episode.
        batch: the most episodes played at once.
        protocol: the return of an episode: the sum of rewards, or the steps from the first at the goal on
            (CleanDiffuser's Maze2D, arXiv 2406.09509).
        workers: processes of the environments, 0 for this process; the scores are the same. In them a step that hangs
            is ended after a minute, and fails its episode.
        latency: whether decisions are timed.
        reference: whether the controller and random actions play the same episodes.
        disturbance: a force for 10 of every 100 steps, another goal every 200 steps, or noise in the observed state;
            the same for all policies.
        disturbance_size: of pushes in units of the body's weight, of noise in those of the state; null for 10 and 0.1.
    """

    episodes: int = 48
    seed: int = 0
    batch: int = 64
    protocol: Literal["return", "first_hit"] = "return"
    workers: int = 0
    latency: bool = True
    reference: bool = True
    disturbance: Literal["none", "push", "moving_goal", "noise"] = "none"
    disturbance_size: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("episodes", 1), ("batch", 1), ("seed", 0), ("workers", 0)):
            check_range(f"evaluation.{name}", getattr(self, name), least, usual=getattr(EvaluationOptions, name))
        if self.disturbance_size is not None and not 0 < self.disturbance_size < math.inf:
            raise ConfigError(
                "evaluation.disturbance_size is above 0, or null.",
                got=self.disturbance_size,
                fix="evaluation.disturbance_size=null",
            )
        if self.disturbance_size is not None and self.disturbance not in ("push", "noise"):
            raise ConfigError(
                "evaluation.disturbance_size is that of pushes or noise.",
                got=f"evaluation.disturbance={self.disturbance} evaluation.disturbance_size={self.disturbance_size:g}",
                fix="evaluation.disturbance=push, or evaluation.disturbance_size=null",
            )


class RandomPolicy:
    """Draws actions uniformly from a box (A,), or numbers of choices; seeded.

    Raises:
        ConfigError: if the box has no finite sides.
    """

    def __init__(self, space: Any, seed: int = 0) -> None:
        self.choices = choices_of(space)
        if not self.choices:
            require_bounds(space.low, space.high)
        self.space, self.rng = space, np.random.default_rng(seed)
        self.batch: tuple[int, ...] = ()

    def reset(self, *, batch: int | None = None, ids: Sequence[int] | None = None) -> None:
        """Starts ``batch`` episodes; the stream of actions goes on."""
        if ids is None:
            self.batch = () if batch is None else (batch,)

    def act(self, observation: Observation) -> np.ndarray:
        """Actions (B, A), or numbers (B,) or (B, parts); without B if not batched."""
        if not self.choices:
            low, high = self.space.low, self.space.high
            return self.rng.uniform(low, high, (*self.batch, *np.shape(low))).astype(np.float32)
        numbers = self.rng.integers(self.choices, size=(*self.batch, len(self.choices)))
        return numbers[..., 0] if len(self.choices) == 1 else numbers

    def observe(self, reward: Any, done: Any) -> None:
        """Uses nothing of it."""


@dataclass(frozen=True)
class Evaluation:
    """An evaluation's figures, as written to ``evaluation.json``, and the rollouts behind them."""

    figures: dict[str, Any]
    rollouts: Rollouts = field(repr=False)
    controller: Rollouts | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values: no arrays, and None where there is no finite number."""
        return plain(self.figures)


def evaluate(
    policy: Policy,
    eval_env: EvalEnv,
    options: EvaluationOptions | None = None,
    *,
    progress: Callable[[str], AbstractContextManager[Progress | None]] | None = None,
) -> Evaluation:
    """Rolls out a policy, the environment's controller and random actions on the same episodes.

    Args:
        progress: opened with the name of each player: policy, random, controller.

    Raises:
        ConfigError: if the actions are neither a box nor discrete, or the environment does not report the goal that
            the protocol needs.
        TrajgenError: if every episode failed.
    """
    options = options or EvaluationOptions()
    eval_env = disturb(eval_env, options)
    seeds = range(options.seed, options.seed + options.episodes)
    with env_pool(eval_env, min(options.batch, options.episodes), options.workers) as pool:
        space: Any = pool.action_space
        require_actions(space)
        if options.protocol == "first_hit":
            require_goal(eval_env)
        references: dict[str, Policy] = {}
        if options.reference:
            references["random"] = RandomPolicy(space, options.seed)
            if eval_env.controller is not None:
                references["controller"] = eval_env.controller()
        rollouts = {}
        for name, player in {"policy": policy, **references}.items():
            with progress(name) if progress else nullcontext() as show:
                record, batch = player is policy, options.batch
                rollouts[name] = rollout(player, eval_env, seeds, record=record, batch=batch, pool=pool, progress=show)
    if options.protocol == "first_hit":
        rollouts = {n: replace(r, returns=r.from_first_hit(eval_env.max_steps)) for n, r in rollouts.items()}
    played = rollouts["policy"]
    if not played.completed.any():
        raise TrajgenError("Every episode of the evaluation failed.", got=played.errors[0]["error"])
    figures: dict[str, Any] = {
        "env": eval_env.name,
        "episodes": options.episodes,
        "seeds": [seeds[0], seeds[-1]],
        "protocol": describe(eval_env, options, played),
        "protocol_name": options.protocol,
        "goals": goal_kind(eval_env),
        **_scores(eval_env, rollouts),
        "episode_returns": {name: each.returns for name, each in rollouts.items()},
        "success": None if played.success is None else played.success[played.completed].mean(),
        "success_by_reset": success_by_reset(eval_env, played),
        "disturbance": describe_disturbance(options),
        "recovery": None if eval_env.goal_key is None else recovery(played, options),
        **costs(policy, eval_env, options, played),
    }
    return Evaluation(figures, played, rollouts.get("controller"))


def costs(policy: Policy, eval_env: EvalEnv, options: EvaluationOptions, played: Rollouts) -> dict[str, Any]:
    """How long episodes and decisions took, on what and when, and which episodes failed."""
    sizes = LATENCY_BATCHES if options.latency else ()
    return {
        "steps_per_episode": played.lengths[played.completed].mean(),
        "decisions_per_second": played.decisions_per_second,
        "decision_ms": {f"batch_{size}": decision_ms(policy, eval_env, size) for size in sizes},
        "errors": played.errors,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": hardware(getattr(policy, "device", None)),
    }


def _scores(eval_env: EvalEnv, rollouts: Mapping[str, Rollouts]) -> dict[str, Any]:
    """The returns, normalized by named bounds, and over the controller's."""
    completed = {name: each.returns[each.completed] for name, each in rollouts.items()}
    summaries = {name: summarize(returns)._asdict() for name, returns in completed.items() if returns.size}
    bounds = dict(eval_env.bounds)
    if "controller" in summaries and "random" in summaries:
        bounds[MEASURED] = (summaries["random"]["mean"], summaries["controller"]["mean"])
    by_bounds = {name: _normalized(completed["policy"], pair) for name, pair in bounds.items() if pair[0] != pair[1]}
    first = next(iter(by_bounds), None)
    scores: dict[str, Any] = {
        "return": summaries["policy"],
        "controller": summaries.get("controller"),
        "random": summaries.get("random"),
        "normalized": by_bounds | ({"name": first, **by_bounds[first]} if first else {}),
        "normalized_to_controller": by_bounds.get(MEASURED),
        "ratio_to_controller": None,
        "ratio_to_controller_ci95": None,
    }
    if "controller" in summaries:
        both = rollouts["policy"].completed & rollouts["controller"].completed
        pair = rollouts["policy"].returns[both], rollouts["controller"].returns[both]
        if both.any() and pair[1].mean() > 0:
            scores["ratio_to_controller"] = mean_ratio(*pair)
            scores["ratio_to_controller_ci95"] = bootstrap_interval(mean_ratio, *pair)
    return scores


def _normalized(returns: Array, bounds: tuple[float, float]) -> dict[str, Any]:
    summary = summarize(normalized(returns, bounds))
    return {"mean": summary.mean, "iqm": summary.iqm, "ci95": summary.ci95, "bounds": bounds}


def plain(value: Any) -> Any:
    """``value`` as JSON holds it: plain containers and numbers; what is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
