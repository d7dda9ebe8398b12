"""The protocol of an evaluation: what an episode's return is, which goals there are, and what success is."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from trajgen.core.choices import choices_of, numbers_of
from trajgen.core.errors import ConfigError, DataError
from trajgen.core.options import entry
from trajgen.data.options import SuccessRule
from trajgen.evaluation.disturbance import describe_disturbance, disturb
from trajgen.evaluation.pool import LocalPool, environments, reset, step

if TYPE_CHECKING:
    from trajgen.core.types import Space
    from trajgen.envs.eval_env import EvalEnv
    from trajgen.evaluation.evaluate import EvaluationOptions
    from trajgen.evaluation.rollout import Rollouts

RETURNS = {
    "return": "return protocol: undiscounted sum of rewards",
    "first_hit": "first-hit protocol: the steps from the first at the goal on, whatever follows,",
}
GOAL_OPTIONS = {"goal_cell", "task_id"}
"""Options of a reset that name its goal: in mazes, and in OGBench."""


def goal_kind(eval_env: EvalEnv) -> str | None:
    """Whether goals are "fixed" or drawn at "random" from the seed; None where there are none."""
    if eval_env.goal_key is None:
        return None
    names_goal = [bool(GOAL_OPTIONS & {*options}) for options in eval_env.resets]
    return "fixed" if eval_env.one_goal or (names_goal and all(names_goal)) else "random"


def success_by_reset(eval_env: EvalEnv, rollouts: Rollouts) -> list[float | None] | None:
    """The share of successes under each of several resets."""
    if rollouts.success is None or len(eval_env.resets) < 2:
        return None
    reset = rollouts.seeds % len(eval_env.resets)
    groups = [rollouts.success[rollouts.completed & (reset == k)] for k in range(len(eval_env.resets))]
    return [float(group.mean()) if group.size else None for group in groups]


def require_actions(space: Any) -> None:
    """Raises a ConfigError if actions are neither vectors of real numbers nor discrete."""
    if not hasattr(space, "low") and not choices_of(space):
        fix = "data.env_id=ID of an environment with such actions"
        raise ConfigError("A policy's actions are a box of real numbers, or discrete.", got=space, fix=fix)


def require_playable(eval_env: EvalEnv, options: EvaluationOptions, space: Space) -> None:
    """Makes the environment and takes a step after each reset: what cannot be evaluated is refused before a training.

    Args:
        eval_env: whose environment is made.
        options: of the evaluation.
        space: of the data.

    Raises:
        DataError: if the environment does not fit the data, or its step raises or gives what no episode can hold.
        ConfigError: if it does not fit the options of the evaluation.
    """
    eval_env = disturb(eval_env, options)
    with environments(eval_env, 1) as envs, LocalPool(eval_env, envs) as pool:
        eval_env.require_fits(envs[0], space)
        box: Any = envs[0].action_space
        if options.reference and not choices_of(box):
            require_bounds(box.low, box.high)
        for seed in range(options.seed, options.seed + max(1, len(eval_env.resets))):
            (start,) = pool.reset([seed])
            first = start if start.error else pool.step([middle(pool.action_space)])[0]
            if first is not None and first.error:
                reset = f" with {dict(eval_env.resets[seed % len(eval_env.resets)])}" if eval_env.resets else ""
                raise DataError(
                    f"The environment {eval_env.name} cannot be played.",
                    got=f"{f'reset{reset}' if start.error else 'step'}: {first.error}",
                    fix="mend the environment, or name another one: data.env_id=ID"
                    + "; or data.resets=[…]" * bool(reset),
                )
        if eval_env.rule.info not in (SuccessRule.info, "reward"):
            _, infos = eval_env.reset(envs[0], options.seed)
            infos = infos | envs[0].step(middle(pool.action_space))[-1]
            if eval_env.rule.info not in infos:
                warnings.warn(
                    f"Neither the start nor the first step in {eval_env.name} has the entry of data.success.info="
                    f"{eval_env.rule.info} among its info: {', '.join(map(str, infos)) or 'nothing'}.",
                    stacklevel=2,
                )
    if options.protocol == "first_hit":
        require_goal(eval_env)


def require_bounds(low: Any, high: Any) -> None:
    """Raises a ConfigError if random actions cannot be drawn from the box (low, high), each (A,)."""
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        got = f"low {low}, high {high}"
        raise ConfigError("Random actions need a bounded action box.", got=got, fix="evaluation.reference=false")


def middle(space: Any) -> Any:
    """An action within a box: the middle of its sides, 0 where they are not finite; of discrete ones the first."""
    if choices := choices_of(space):
        return numbers_of(np.zeros((1, sum(choices))), choices)[0]
    sides = np.nan_to_num(space.low, neginf=0.0), np.nan_to_num(space.high, posinf=0.0)
    return np.clip((sides[0] + sides[1]) / 2, space.low, space.high).astype(space.dtype)


def require_goal(eval_env: EvalEnv) -> None:
    """Raises a ConfigError if the environment reports of no step whether it is at the goal."""
    with environments(eval_env, 1) as (env,):
        moment = reset(eval_env, env, 0)
        if moment.error is None and moment.success is None:
            moment = step(eval_env, env, env.action_space.sample())
    if moment.error is None and moment.success is None:  # an error is that of its episode
        raise ConfigError(
            "The first-hit protocol needs an environment that reports when the goal is reached.",
            got=f"evaluation.protocol=first_hit in {eval_env.name}",
            fix="evaluation.protocol=return",
        )


def describe(eval_env: EvalEnv, options: EvaluationOptions, played: Rollouts) -> str:
    """The protocol in words: what is counted, on which episodes, what success is, and what it is compared with."""
    if resets := eval_env.resets:
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in resets[0].items()}
        first = ", ".join(f"{name} {value}" for name, value in values.items())
        starts = (
            f"reset with {first}" if len(resets) == 1 else f"reset by {len(resets)} options in turn, the first {first}"
        )
    else:
        starts = "start and goal are" if eval_env.goal_key else "starts are"
        starts += " drawn by the environment from the seed" + ", the goal always in one cell" * eval_env.one_goal
    text = (
        f"{RETURNS[options.protocol]} of one episode for each seed {options.seed} to "
        f"{options.seed + options.episodes - 1}, at most {eval_env.max_steps} steps; {starts}"
    )
    if disturbance := describe_disturbance(options):
        text += f"; {disturbance}"
    if success := _describe_success(eval_env, played):
        text += f"; {success}"
    references = "the controller and random actions" if eval_env.controller is not None else "random actions"
    return f"{text}; {references} on the same episodes" if options.reference else text


def _describe_success(eval_env: EvalEnv, played: Rollouts) -> str:
    """By which rule the episodes succeeded, in words; empty where the usual one says nothing."""
    rule = eval_env.rule
    if played.success is None:
        return "" if rule.info == SuccessRule.info else f"no success, as the environment reports no {rule.info}"
    if played.by_distance:
        return f"success: within {eval_env.goal_radius:g} of the goal {rule.times}"
    return f"success: {rule.words}"


def episode_options(data: Mapping[str, Any], named_env: Mapping[str, Any]) -> dict[str, Any]:
    """The options, besides environment and seed, without which an episode is another one.

    Args:
        data: the options of a run's data, as plain values.
        named_env: the environment that its data set names, as data.json has it.
    """
    spec = named_env if data.get("env_id") is None else {}
    options = [each for each in (spec.get("options"), data.get("env_options")) if isinstance(each, Mapping)]
    return {
        "max_episode_steps": data.get("max_episode_steps") or spec.get("max_episode_steps"),
        "env_options": {name: value for each in options for name, value in each.items()},
        "resets": data.get("resets") or None,
        "blocked": entry(data, ("shift", "blocked")) or None,
    }
