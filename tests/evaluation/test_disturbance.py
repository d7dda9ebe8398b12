"""Disturbances of evaluations: the same for every policy, and what is reported of them by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from walks import Constant, Silent, walk_env

from trajgen.core.errors import ConfigError
from trajgen.envs.disturbances import GOAL_EVERY, PUSH_EVERY, PUSH_STEPS, Disturbed
from trajgen.envs.eval_env import EvalEnv
from trajgen.envs.pointmaze import MAZES, maze_spec
from trajgen.evaluation.disturbance import recovery
from trajgen.evaluation.evaluate import EvaluationOptions, RandomPolicy, evaluate
from trajgen.evaluation.rollout import Rollouts

STEPS = 205


def maze(kind: str, size: float = 1.0) -> Disturbed:
    return Disturbed(gymnasium.make(maze_spec(MAZES["umaze"], 300)), kind, size, "observation")


def played(env: Disturbed, action: float, seed: int = 3) -> list[tuple[Any, ...]]:
    """Steps with the same action: the forces, the state and goal that are observed, the position itself."""
    base: Any = env.unwrapped
    env.reset(seed=seed)
    record = []
    for _ in range(STEPS):
        observation, *_ = env.step(np.full(2, action, np.float32))
        force, state = base.point_env.data.qfrc_applied.copy(), np.array(observation["observation"])
        record.append((force, state, np.array(observation["desired_goal"]), np.array(base.point_env.data.qpos)))
    return record


def test_pushes_come_at_the_same_steps_with_the_same_force_for_every_policy() -> None:
    env: Any = maze("push", 2.0)
    first, other, elsewhere = played(env, 0.0), played(env, 0.5), played(env, 0.0, seed=4)
    forces = np.array([force for force, *_ in first])
    pushed = [step for step in range(STEPS) if forces[step].any()]
    expected = range(PUSH_EVERY, PUSH_EVERY + PUSH_STEPS)
    assert pushed == [*expected, *(step for step in range(2 * PUSH_EVERY, STEPS))]
    weight = 9.81 * env.unwrapped.point_env.model.body_mass.sum()
    np.testing.assert_allclose(np.linalg.norm(forces[PUSH_EVERY]), 2 * weight)
    np.testing.assert_array_equal(forces, [force for force, *_ in other])
    assert not np.allclose(forces[PUSH_EVERY], elsewhere[PUSH_EVERY][0])
    assert np.linalg.norm(first[PUSH_EVERY + 9][3] - first[PUSH_EVERY - 1][3]) > 0.05
    env.reset(seed=3)
    assert not env.unwrapped.point_env.data.qfrc_applied.any()


def test_goals_move_alike_for_every_policy() -> None:
    goals, others = ([goal for _, _, goal, _ in played(maze("moving_goal"), action)] for action in (0.0, 0.5))
    np.testing.assert_array_equal(goals, others)
    moves = [step for step in range(1, STEPS) if (goals[step] != goals[step - 1]).any()]
    assert moves == [GOAL_EVERY]


def test_noise_is_in_what_is_observed_alone() -> None:
    noise = np.array([state[:2] - position for _, state, _, position in played(maze("noise", 0.3), 0.0)])
    assert abs(noise.std() - 0.3) < 0.05 and abs(noise.mean()) < 0.05


def test_success_is_that_of_the_true_state_where_the_noise_is_in_what_is_compared_with_the_goal() -> None:
    """A walk whose position and time are within 100 of a goal at all steps, and far from it with the noise."""
    walk = EvalEnv("walk", Silent, 10, goal_radius=100.0, goal_key="desired_goal", achieved_key="observation")
    options = EvaluationOptions(episodes=2, latency=False, disturbance="noise", disturbance_size=1e6)
    assert evaluate(Constant(0.0), walk, options).figures["success"] == 1.0


def test_what_cannot_be_disturbed_is_refused() -> None:
    options = EvaluationOptions(episodes=1, latency=False, disturbance="push")
    with pytest.raises(ConfigError, match=r"cannot be disturbed[\s\S]*evaluation.disturbance=noise"):
        evaluate(Constant(1.0), walk_env(), options)
    with pytest.raises(ConfigError, match="moves as a whole"):  # the cart slides, and the pole turns
        Disturbed(gymnasium.make("InvertedPendulum-v5"), "push", 1.0)
    with pytest.raises(ConfigError, match=r"that have goals[\s\S]*evaluation.disturbance=push"):
        evaluate(Constant(1.0), replace(walk_env(), goal_key=None), replace(options, disturbance="moving_goal"))
    with pytest.raises(ConfigError, match="above 0"):
        EvaluationOptions(disturbance_size=0.0)
    kinds: list[Any] = ["none", "moving_goal"]
    for kind in kinds:
        with pytest.raises(ConfigError, match=r"pushes or noise[\s\S]*evaluation\.disturbance_size=null"):
            EvaluationOptions(disturbance=kind, disturbance_size=2.0)


def test_recovery_is_that_of_goals() -> None:
    cheetah = EvalEnv("cheetah", partial(gymnasium.make, "HalfCheetah-v5"), 115)
    options = EvaluationOptions(episodes=4, latency=False, reference=False, disturbance="push")
    figures = evaluate(RandomPolicy(Box(-1, 1, (6,), np.float32)), cheetah, options).figures
    assert figures["disturbance"] and figures["recovery"] is None


def rollouts(*rewards: np.ndarray) -> Rollouts:
    n = len(rewards)
    empty = np.zeros(n)
    lengths = np.array([len(each) for each in rewards])
    return Rollouts(np.arange(n), empty, lengths, None, lengths, [], [], [*rewards], [], 0, empty)


def test_recovery_by_hand() -> None:
    """Two pushes at the goal, of which one is recovered from after 7 steps and one never, and one away from it."""
    rewards = np.zeros(350)
    rewards[:PUSH_EVERY], rewards[PUSH_EVERY + PUSH_STEPS + 7 : 2 * PUSH_EVERY] = 1, 1
    figures = recovery(rollouts(rewards), EvaluationOptions(disturbance="push"))
    assert figures is not None and figures["events"] == 2 and figures["recovered"] == 0.5
    assert figures["steps"] == (7 + 90) / 2  # ninety steps from the end of the push to the next one
    moved = recovery(rollouts(rewards), EvaluationOptions(disturbance="moving_goal"))
    assert moved is not None and moved["events"] == 1 and moved["steps"] == 150
    failed = rollouts(rewards, rewards[:150])
    failed.returns[1] = np.nan
    assert recovery(failed, EvaluationOptions(disturbance="push")) == figures
    assert recovery(rollouts(rewards), EvaluationOptions()) is None
    assert recovery(rollouts(np.ones(50)), EvaluationOptions(disturbance="push")) is None
