"""A policy's scores in a world, beside those of its controller and of random actions on the same episodes."""

from __future__ import annotations

import datetime
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from trajgen.core.errors import ConfigError, TrajgenError
from trajgen.core.files import write_json
from trajgen.evaluation.protocol import by_reset, goals_of, in_words, require_goal
from trajgen.evaluation.rollout import Progress, Rollouts, decision_ms, environments, rollout
from trajgen.evaluation.statistics import Array, bootstrap_interval, mean_ratio, normalized, summarize

if TYPE_CHECKING:
    from trajgen.core.protocols import Observation, Policy
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
        protocol: what an episode's return is: "return", the sum of its rewards, or "first_hit", the steps from the
            first at the goal on, as if it stayed there (so CleanDiffuser scores Maze2D, arXiv 2406.09509).
        latency: whether the time of a decision is measured too.
        reference: whether the world's controller and random actions play the same episodes.
    """

    episodes: int = 48
    seed: int = 0
    batch: int = 64
    protocol: Literal["return", "first_hit"] = "return"
    latency: bool = True
    reference: bool = True

    def __post_init__(self) -> None:
        for name in ("episodes", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"An evaluation's {name} must be at least 1.",
                    expected=f"evaluation.{name} >= 1",
                    got=getattr(self, name),
                    fix=f"evaluation.{name}={getattr(EvaluationOptions, name)}",
                )
        if self.seed < 0:
            raise ConfigError(
                "An evaluation's seed must not be negative.",
                expected="evaluation.seed >= 0",
                got=self.seed,
                fix="evaluation.seed=0",
            )


class RandomPolicy:
    """Draws actions uniformly from the box (low, high), each of shape (A,); seeded.

    Raises:
        ConfigError: if the box has no finite sides.
    """

    def __init__(self, low: Array, high: Array, seed: int = 0) -> None:
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ConfigError(
                "Random actions need a bounded action box.",
                expected="finite bounds",
                got=f"low {low}, high {high}",
                fix="evaluation.reference=false",
            )
        self.low, self.high, self.seed = low, high, seed
        self.generator = np.random.default_rng(seed)
        self.batch: int | None = None

    def reset(self, *, batch: int | None = None, ids: Sequence[int] | None = None) -> None:
        """Starts ``batch`` episodes; the stream of actions goes on."""
        if ids is None:
            self.batch = batch

    def act(self, observation: Observation) -> np.ndarray:
        """Actions (B, A), or (A,) if not batched."""
        shape = np.shape(self.low) if self.batch is None else (self.batch, *np.shape(self.low))
        return self.generator.uniform(self.low, self.high, shape).astype(np.float32)

    def observe(self, reward: Any, done: Any) -> None:
        """Learns nothing."""


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
    extra: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Rolls out a policy, the world's controller and random actions on the same episodes.

    Args:
        extra: further figures to be written with these, such as ``condition_error``.
        progress: told after every step of ``policy`` how many episodes have ended.

    Raises:
        ConfigError: if the actions are not a box, or the protocol asks for a goal that the world does not speak of.
        TrajgenError: if every episode failed.
    """
    options = options or EvaluationOptions()
    seeds = range(options.seed, options.seed + options.episodes)
    with environments(eval_env, min(options.batch, options.episodes)) as opened:
        space: Any = opened[0].action_space
        if not hasattr(space, "low"):
            raise ConfigError(
                "A policy's actions are a box of real numbers.",
                expected="a Box",
                got=space,
                fix="data.env_id=ID of a world with such actions",
            )
        if options.protocol == "first_hit":
            require_goal(eval_env, opened[0])
        policies: dict[str, Policy] = {"policy": policy}
        if options.reference:
            policies["random"] = RandomPolicy(space.low, space.high, options.seed)
            if eval_env.controller is not None:
                policies["controller"] = eval_env.controller()
        played = {
            name: rollout(
                player,
                eval_env,
                seeds,
                record=name == "policy",
                batch=options.batch,
                opened=opened,
                progress=progress if name == "policy" else None,
            )
            for name, player in policies.items()
        }
    if options.protocol == "first_hit":
        played = {n: replace(r, returns=r.from_first_hit(eval_env.max_steps)) for n, r in played.items()}
    own, controller = played["policy"], played.get("controller")
    if not own.completed.any():
        raise TrajgenError(
            "Every episode of the evaluation failed.",
            expected=f"{options.episodes} episodes of {eval_env.name}",
            got=own.errors[0]["error"],
        )
    figures: dict[str, Any] = {
        "env": eval_env.name,
        "episodes": options.episodes,
        "seeds": [seeds[0], seeds[-1]],
        "protocol": in_words(eval_env, options, said=own.success is not None),
        "protocol_name": options.protocol,
        "goals": goals_of(eval_env),
        **_scores(eval_env, played),
        "episode_returns": {name: rollouts.returns for name, rollouts in played.items()},
        "success": None if own.success is None else own.success[own.completed].mean(),
        "success_by_reset": by_reset(eval_env, own),
        "steps_per_episode": own.lengths[own.completed].mean(),
        "decisions_per_second": own.decisions_per_second,
        "decision_ms": {
            f"batch_{size}": decision_ms(policy, eval_env, size) for size in LATENCY_BATCHES if options.latency
        },
        "errors": own.errors,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": hardware(),
    }
    return Evaluation(figures | dict(extra or {}), own, controller)


def _scores(eval_env: EvalEnv, played: Mapping[str, Rollouts]) -> dict[str, Any]:
    """The returns and what they are worth: against named bounds, and against the controller."""
    own = played["policy"].returns[played["policy"].completed]
    scores: dict[str, Any] = {"return": summarize(own).to_dict()}
    bounds = dict(eval_env.bounds)
    for name in ("controller", "random"):
        other = played.get(name)
        done = other is not None and other.completed.any()
        scores[name] = summarize(other.returns[other.completed]).to_dict() if other and done else None
    if scores["controller"] and scores["random"]:
        bounds[MEASURED] = (scores["random"]["mean"], scores["controller"]["mean"])
    named = {name: _normalized(own, pair) for name, pair in bounds.items() if pair[0] != pair[1]}
    first = next(iter(named), None)
    scores["normalized"] = named | ({"name": first, **named[first]} if first else {})
    scores["normalized_to_controller"] = named.get(MEASURED)
    scores["ratio_to_controller"] = scores["ratio_to_controller_ci95"] = None
    if scores["controller"]:
        both = played["policy"].completed & played["controller"].completed
        pair = played["policy"].returns[both], played["controller"].returns[both]
        if both.any() and pair[1].mean() > 0:
            scores["ratio_to_controller"] = mean_ratio(*pair)
            scores["ratio_to_controller_ci95"] = bootstrap_interval(mean_ratio, *pair)
    return scores


def _normalized(returns: Array, bounds: tuple[float, float]) -> dict[str, Any]:
    summary = summarize(normalized(returns, bounds))
    return {"mean": summary.mean, "iqm": summary.iqm, "ci95": summary.ci95, "bounds": bounds}


def hardware() -> dict[str, Any]:
    """What the figures were measured on: processor, threads, and the CUDA device if there is one."""
    import torch

    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "cuda": cuda}


def plain(value: Any) -> Any:
    """``value`` as JSON holds it: plain containers and numbers; what is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_evaluation(path: str | Path, figures: Mapping[str, Any]) -> None:
    """Writes figures as JSON, atomically."""
    write_json(Path(path), plain(figures))
