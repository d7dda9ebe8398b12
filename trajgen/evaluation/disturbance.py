"""Evaluation under disturbances: the environment of an evaluation, disturbed, and how soon a policy recovers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from trajgen.core.errors import ConfigError
from trajgen.evaluation.statistics import bootstrap_interval, mean

if TYPE_CHECKING:
    from trajgen.envs.eval_env import EvalEnv
    from trajgen.evaluation.evaluate import EvaluationOptions
    from trajgen.evaluation.rollout import Rollouts


def disturb(eval_env: EvalEnv, options: EvaluationOptions) -> EvalEnv:
    """The evaluation environment with the disturbance that the options name, if any.

    Raises:
        ConfigError: if goals are to move and there are none. An environment that cannot be disturbed is refused when it
            is made.
    """
    if options.disturbance == "none":
        return eval_env
    from trajgen.envs.disturbances import disturbed

    if options.disturbance == "moving_goal" and eval_env.goal_key is None:
        raise ConfigError(
            "Goals move in environments that have goals.",
            got=f"evaluation.disturbance=moving_goal in {eval_env.name}",
            fix="evaluation.disturbance=push",
        )
    make = partial(disturbed, eval_env.make_env, options.disturbance, options.disturbance_size, eval_env.state_key)
    return replace(eval_env, make_env=make)


def describe_disturbance(options: EvaluationOptions) -> str | None:
    """What disturbs the episodes, in words; None if nothing does."""
    if options.disturbance == "none":
        return None
    from trajgen.envs.disturbances import KINDS

    kind = KINDS[options.disturbance]
    return kind.words.format(size=kind.size if options.disturbance_size is None else options.disturbance_size)


def recovery(rollouts: Rollouts, options: EvaluationOptions) -> dict[str, Any] | None:
    """How soon rewards come again after each event of a disturbance.

    Of pushes those count that begin where there was a reward at the step before, as at a goal. An event after which no
    reward comes before the next one, or before the episode's end, counts with all steps until then.

    Args:
        rollouts: of episodes with rewards at the goal alone.
        options: of the evaluation.

    Returns:
        ``events``, the fraction ``recovered`` and the mean ``steps`` from an event's end to the next reward, with its
        interval over episodes; None where there are no events.
    """
    if options.disturbance == "none":
        return None
    from trajgen.envs.disturbances import KINDS

    kind = KINDS[options.disturbance]
    if not kind.period:
        return None
    waits: list[list[int]] = []
    recovered = []
    for rewards, is_completed in zip(rollouts.rewards, rollouts.completed, strict=True):
        if not is_completed:
            continue
        is_good, of_episode = np.asarray(rewards) > 0, []
        for event in range(kind.period, len(is_good) - kind.duration, kind.period):
            if options.disturbance == "push" and not is_good[event - 1]:
                continue
            after = is_good[event + kind.duration : event + kind.period]
            recovered.append(bool(after.any()))
            of_episode.append(int(after.argmax()) if recovered[-1] else len(after))
        waits.append(of_episode)
    per_episode = np.array([np.mean(of_episode) for of_episode in waits if of_episode])
    if not per_episode.size:
        return None
    return {
        "events": len(recovered),
        "recovered": float(np.mean(recovered)),
        "steps": float(per_episode.mean()),
        "steps_ci95": bootstrap_interval(mean, per_episode),
    }
