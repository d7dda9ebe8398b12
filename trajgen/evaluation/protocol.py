"""The protocol of an evaluation: what an episode's return is, which goals there are, and what success is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trajgen.core.errors import ConfigError
from trajgen.data.success import SuccessRule

if TYPE_CHECKING:
    from trajgen.envs.eval_env import World
    from trajgen.evaluation.evaluate import EvaluationOptions
    from trajgen.evaluation.rollout import Rollouts

COUNTED = {
    "return": "return protocol: undiscounted sum of rewards",
    "first_hit": "first-hit protocol: the steps from the first at the goal on, whatever follows,",
}


def goals_of(world: World) -> str | None:
    """Whether goals are "fixed" or drawn at "random" from the seed; None where there are none."""
    return None if world.goal_key is None else "fixed" if world.resets or world.one_goal else "random"


def by_reset(world: World, own: Rollouts) -> list[float | None] | None:
    """The share of successes under each of several resets."""
    if own.success is None or len(world.resets) < 2:
        return None
    each = [own.success[own.completed & (own.seeds % len(world.resets) == k)] for k in range(len(world.resets))]
    return [float(found.mean()) if found.size else None for found in each]


def require_goal(world: World, environment: Any) -> None:
    """Raises a ConfigError if the world says of no step whether it is at the goal."""
    observation, information = world.reset(environment, 0)
    told = [world.success(observation, information)]
    observation, _, _, _, information = environment.step(environment.action_space.sample())
    told.append(world.success(observation, information))
    if all(said is None for said in told):
        raise ConfigError(
            "The first-hit protocol counts the steps from the first at the goal on.",
            expected="a world that says when the goal is reached",
            got=f"evaluation.protocol=first_hit in {world.name}",
            fix="evaluation.protocol=return",
        )


def in_words(world: World, options: EvaluationOptions, *, said: bool) -> str:
    """An evaluation's protocol in words: what is counted, on which episodes, and what success is if it is reported."""
    last = options.seed + options.episodes - 1
    count = len(world.resets)
    drawn = (
        "start and goal are drawn by the world from the seed" if world.goal_key else "starts are drawn from the seed"
    )
    if world.one_goal:
        drawn = "start and goal are drawn by the world from the seed, the goal always in the same cell"
    if count:
        resets = ", ".join(f"{name} {_short(value)}" for name, value in world.resets[0].items())
        drawn = f"reset with {resets}" if count == 1 else f"reset by {count} options in turn, the first {resets}"
    words = (
        f"{COUNTED[options.protocol]} of one episode for each seed {options.seed} to {last}, "
        f"at most {world.max_steps} steps; {drawn}"
    )
    if said and world.rule != SuccessRule():
        words += f"; success: {world.rule.words}"
    references = ["the controller"] * (world.controller is not None) + ["random actions"]
    return words + (f"; {' and '.join(references)} on the same episodes" if options.reference else "")


def _short(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
