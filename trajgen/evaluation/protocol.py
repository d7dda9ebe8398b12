"""The protocol of an evaluation: what an episode's return is, which goals there are, and what success is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trajgen.core.errors import ConfigError
from trajgen.data.options import SuccessRule

if TYPE_CHECKING:
    from trajgen.envs.eval_env import EvalEnv
    from trajgen.evaluation.evaluate import EvaluationOptions
    from trajgen.evaluation.rollout import Rollouts

COUNTED = {
    "return": "return protocol: undiscounted sum of rewards",
    "first_hit": "first-hit protocol: the steps from the first at the goal on, whatever follows,",
}


def goals_of(eval_env: EvalEnv) -> str | None:
    """Whether goals are "fixed" or drawn at "random" from the seed; None where there are none."""
    return None if eval_env.goal_key is None else "fixed" if eval_env.resets or eval_env.one_goal else "random"


def by_reset(eval_env: EvalEnv, own: Rollouts) -> list[float | None] | None:
    """The share of successes under each of several resets."""
    if own.success is None or len(eval_env.resets) < 2:
        return None
    each = [own.success[own.completed & (own.seeds % len(eval_env.resets) == k)] for k in range(len(eval_env.resets))]
    return [float(found.mean()) if found.size else None for found in each]


def require_goal(eval_env: EvalEnv, environment: Any) -> None:
    """Raises a ConfigError if the world says of no step whether it is at the goal."""
    observation, information = eval_env.reset(environment, 0)
    told = [eval_env.success(observation, information)]
    observation, _, _, _, information = environment.step(environment.action_space.sample())
    told.append(eval_env.success(observation, information))
    if all(said is None for said in told):
        raise ConfigError(
            "The first-hit protocol counts the steps from the first at the goal on.",
            expected="a world that says when the goal is reached",
            got=f"evaluation.protocol=first_hit in {eval_env.name}",
            fix="evaluation.protocol=return",
        )


def in_words(eval_env: EvalEnv, options: EvaluationOptions, *, said: bool) -> str:
    """An evaluation's protocol in words: what is counted, on which episodes, and what success is if it is reported."""
    last = options.seed + options.episodes - 1
    count = len(eval_env.resets)
    drawn = (
        "start and goal are drawn by the world from the seed" if eval_env.goal_key else "starts are drawn from the seed"
    )
    if eval_env.one_goal:
        drawn = "start and goal are drawn by the world from the seed, the goal always in the same cell"
    if count:
        resets = ", ".join(f"{name} {_short(value)}" for name, value in eval_env.resets[0].items())
        drawn = f"reset with {resets}" if count == 1 else f"reset by {count} options in turn, the first {resets}"
    words = (
        f"{COUNTED[options.protocol]} of one episode for each seed {options.seed} to {last}, "
        f"at most {eval_env.max_steps} steps; {drawn}"
    )
    if said and eval_env.rule != SuccessRule():
        words += f"; success: {eval_env.rule.words}"
    references = ["the controller"] * (eval_env.controller is not None) + ["random actions"]
    return words + (f"; {' and '.join(references)} on the same episodes" if options.reference else "")


def _short(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
