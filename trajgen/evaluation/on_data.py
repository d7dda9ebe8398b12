"""A policy's actions beside the recorded ones, where there is no environment to act in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from trajgen.core.errors import ConfigError, TrajgenError
from trajgen.evaluation.evaluate import Evaluation, EvaluationOptions, costs
from trajgen.evaluation.pool import LocalPool, environments
from trajgen.evaluation.rollout import Progress, rollout
from trajgen.evaluation.statistics import Array, summarize

if TYPE_CHECKING:
    from trajgen.core.planning import Policy
    from trajgen.envs.eval_env import EvalEnv
    from trajgen.envs.replay import Replay


def compare_with_data(
    policy: Policy,
    eval_env: EvalEnv,
    options: EvaluationOptions,
    deviations: Array | None,
    *,
    progress: Callable[[str], AbstractContextManager[Progress | None]] | None = None,
) -> Evaluation:
    """Has a policy act on recorded observations and rewards, and compares its actions with the recorded ones.

    Args:
        policy: acts at every step of the episodes; what it does changes nothing that it observes.
        eval_env: replays them (`trajgen.envs.replay.replay_env`).
        options: most episodes, and the first of them; they are counted round.
        deviations: standard deviations (A,) of the data's actions; None for discrete ones.
        progress: opened with the name of the player, policy.

    Returns:
        ``action_error``: the mean over episodes of the root mean square of the difference, in standard deviations of
        each entry of the actions, so that the mean action has about 1; of discrete ones the share that differ. And its
        ``ci95``, over episodes.

    Raises:
        ConfigError: for options that need an environment.
        TrajgenError: if an episode cannot be read.
    """
    require_no_env(options)
    count = min(options.episodes, eval_env.replayed_episodes)
    seeds = range(options.seed, options.seed + count)
    with environments(eval_env, min(options.batch, count)) as envs, LocalPool(eval_env, envs) as pool:
        with progress("policy") if progress else nullcontext() as show:
            replayed = rollout(policy, eval_env, seeds, batch=options.batch, pool=pool, progress=show)
        if replayed.errors:
            raise TrajgenError("An episode of the data cannot be replayed.", got=replayed.errors[0]["error"])
        replays: list[Replay] = [cast(Any, env.unwrapped) for env in envs]
    played = {seed: pair for replay in replays for seed, pair in replay.played.items()}
    errors = [_action_error(*played[seed], deviations) for seed in seeds]
    summary = summarize(errors)
    what = "share that differs" if deviations is None else "difference in standard deviations of each entry"
    figures = {
        "env": eval_env.name,
        "episodes": count,
        "seeds": [seeds[0], seeds[-1]],
        "protocol": f"actions on recorded observations, beside the recorded actions: {what}; no score",
        "action_error": {"mean": summary.mean, "ci95": summary.ci95, "n": summary.n},
        "episode_action_errors": errors,
        **costs(policy, eval_env, options, replayed),
    }
    return Evaluation(figures, replayed)


def require_no_env(options: EvaluationOptions) -> None:
    """Raises a `ConfigError` for options that do nothing where recorded episodes are replayed."""
    for name in ("protocol", "disturbance"):
        if (value := getattr(options, name)) != (usual := getattr(EvaluationOptions, name)):
            raise ConfigError(
                f"evaluation.{name} needs an environment, and the data name none.",
                got=f"evaluation.{name}={value}",
                fix=f"data.env_id=ID of an environment, or evaluation.{name}={usual}",
            )


def _action_error(actions: Sequence[Any], recorded: NDArray[Any], deviations: Array | None) -> float:
    """How far the actions of an episode are from the recorded ones."""
    difference = np.asarray(actions) - recorded[: len(actions)]
    if deviations is None:
        return float((difference != 0).mean())
    return float(np.sqrt(np.square(difference / deviations).mean()))
