"""The protocol of an evaluation: what an episode's return is, which goals there are, and what success is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trajgen.core.errors import ConfigError

if TYPE_CHECKING:
    from trajgen.envs.eval_env import EvalEnv
    from trajgen.evaluation.evaluate import EvaluationOptions
    from trajgen.evaluation.rollout import Rollouts

RETURNS = {
    "return": "return protocol: undiscounted sum of rewards",
    "first_hit": "first-hit protocol: the steps from the first at the goal on, whatever follows,",
}


def goal_kind(eval_env: EvalEnv) -> str | None:
    """Whether goals are "fixed" or drawn at "random" from the seed; None where there are none."""
    return None if eval_env.goal_key is None else "fixed" if eval_env.resets or eval_env.one_goal else "random"


def success_by_reset(eval_env: EvalEnv, rollouts: Rollouts) -> list[float | None] | None:
    """The share of successes under each of several resets."""
    if rollouts.success is None or len(eval_env.resets) < 2:
        return None
    reset = rollouts.seeds % len(eval_env.resets)
    groups = [rollouts.success[rollouts.completed & (reset == k)] for k in range(len(eval_env.resets))]
    return [float(group.mean()) if group.size else None for group in groups]


def require_goal(eval_env: EvalEnv, env: Any) -> None:
    """Raises a ConfigError if the environment reports of no step whether it is at the goal."""
    observation, info = eval_env.reset(env, 0)
    success = eval_env.success(observation, info)
    observation, _, _, _, info = env.step(env.action_space.sample())
    if success is None and eval_env.success(observation, info) is None:
        raise ConfigError(
            "The first-hit protocol needs an environment that reports when the goal is reached.",
            got=f"evaluation.protocol=first_hit in {eval_env.name}",
            fix="evaluation.protocol=return",
        )


def describe(eval_env: EvalEnv, options: EvaluationOptions, *, reports_success: bool) -> str:
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
    if reports_success:
        text += f"; success: {eval_env.rule.words}"
    references = "the controller and random actions" if eval_env.controller is not None else "random actions"
    return f"{text}; {references} on the same episodes" if options.reference else text
