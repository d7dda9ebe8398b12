"""One episode for every seed, paired, and failures that stay where they are."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from walks import Constant, Silent, Walk, walk_env

from trajgen.core.errors import TrajgenError
from trajgen.evaluation.pool import env_pool
from trajgen.evaluation.rollout import decision_ms, first_observations, rollout, stack


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_one_episode_for_every_seed(batch: int) -> None:
    eval_env, progress = walk_env(), []
    rollouts = rollout(Constant(0.5), eval_env, range(10), batch=batch, progress=lambda *n: progress.append(n))
    lengths = [3 + seed % 5 for seed in range(10)]
    assert rollouts.lengths.tolist() == lengths and rollouts.decisions == sum(lengths) and not rollouts.errors
    np.testing.assert_allclose(rollouts.returns, 0.5 * np.array(lengths))
    assert sorted(seed for env in eval_env.envs for seed in env.seeds) == list(range(10))
    assert len(eval_env.envs) == min(batch, 10) and all(env.closed for env in eval_env.envs)
    assert progress[-1] == (10 * eval_env.max_steps, 10) and progress == sorted(progress)


def test_nothing_is_rewarded_after_the_end() -> None:
    policy = Constant(1.0)
    rollout(policy, walk_env(), [0, 4])  # 3 and 7 steps
    rewards = np.array([reward for reward, _ in policy.outcomes])
    done = np.array([done for _, done in policy.outcomes])
    np.testing.assert_array_equal(rewards[:, 0], [1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(done[:, 0], [0, 0, 1, 0, 0, 0, 0])  # reported once
    np.testing.assert_array_equal(done[:, 1], [0, 0, 0, 0, 0, 0, 1])


def test_policies_meet_the_same_episodes() -> None:
    eval_env = walk_env()
    first = rollout(Constant(0.1), eval_env, range(5, 12), batch=4)
    second = rollout(Constant(-0.7), eval_env, range(5, 12), batch=7)
    for one, other in zip(first.states, second.states, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
    assert [goal.tolist() for goal in first.goals] == [goal.tolist() for goal in second.goals]
    assert len({float(states[0, 0]) for states in first.states}) == 7  # seeds differ from one another


def test_states_and_success_are_those_of_the_episode() -> None:
    (states,) = rollout(Constant(0.5), walk_env(), [1]).states
    assert states.dtype == np.float32
    np.testing.assert_array_equal(states[:, 1], [0, 1, 2, 3, 4])
    np.testing.assert_allclose(np.diff(states[:, 0]), 0.5, atol=1e-6)
    assert rollout(Constant(0.5), walk_env(), [1], record=False).states[0].size == 0
    assert rollout(Constant(0.0), walk_env(), [0, 1, 2]).success.tolist() == [True, False, True]
    assert rollout(Constant(0.0), walk_env(Silent), [0, 1]).success is None
    assert rollout(Constant(1.0), walk_env(max_steps=4), [4]).lengths.tolist() == [4]


@pytest.mark.parametrize("on_reset", [False, True])
def test_an_episode_that_raises_is_reported_and_the_rest_go_on(on_reset: bool) -> None:
    eval_env = walk_env(partial(Walk, fails_at=3, fails_on_reset=on_reset))
    rollouts = rollout(Constant(1.0), eval_env, range(8), batch=4)
    assert rollouts.completed.tolist() == [seed != 3 for seed in range(8)]
    message = "RuntimeError: no start" if on_reset else "RuntimeError: the simulation diverged"
    assert rollouts.errors == [{"seed": 3, "step": 0 if on_reset else 1, "error": message}]
    np.testing.assert_array_equal(np.delete(rollouts.returns, 3), np.delete(3 + np.arange(8) % 5, 3))
    assert len(eval_env.envs) == 5 and all(env.closed for env in eval_env.envs)  # the one that raised was replaced


def test_a_reward_that_is_not_finite_fails_its_episode() -> None:
    class Broken(Walk):
        def step(self, action: np.ndarray) -> tuple:
            observation, _, *rest = super().step(action)
            return observation, float("nan"), *rest

    assert "reward is nan" in rollout(Constant(1.0), walk_env(Broken), [0]).errors[0]["error"]


def test_environments_are_used_again_and_batched_as_gymnasium_does() -> None:
    eval_env = walk_env()
    with env_pool(eval_env, 3) as pool:
        first, second = (rollout(Constant(0.2), eval_env, range(3), pool=pool) for _ in range(2))
    np.testing.assert_array_equal(first.returns, second.returns)
    assert len(eval_env.envs) == 3
    vector = gymnasium.vector.SyncVectorEnv([Walk, Walk, Walk])
    expected, _ = vector.reset(seed=[7, 8, 9])
    batch = stack(vector.single_observation_space, [Walk().reset(seed=seed)[0] for seed in (7, 8, 9)])
    for name in expected:
        np.testing.assert_array_equal(batch[name], expected[name])


def test_a_policy_with_the_wrong_batch_is_named() -> None:
    policy = Constant(1.0)
    policy.reset = lambda **_: setattr(policy, "batch", 5)
    with pytest.raises(TrajgenError, match="one action for every observation"):
        rollout(policy, walk_env(), range(3))
    with pytest.raises(TrajgenError, match="at least one episode"):
        rollout(policy, walk_env(), [])


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_no_two_groups_of_episodes_draw_the_same_noise(batch: int) -> None:
    class Drawing(Constant):
        def __init__(self, value: float) -> None:
            super().__init__(value)
            self.noise: list[float] = []

        def reset(self, **how: Any) -> None:
            super().reset(**how)
            self.seed_noise(0)

        def seed_noise(self, offset: int) -> None:
            self.rng = np.random.default_rng(offset)

        def act(self, observation: Any) -> np.ndarray:
            self.noise += self.rng.random(self.batch).tolist()
            return super().act(observation)

    policy = Drawing(0.5)
    for _ in range(2):  # an evaluation is reproducible
        policy.noise, earlier = [], policy.noise
        rollout(policy, walk_env(), range(10), batch=batch)
        assert len({*policy.noise}) == len(policy.noise) > 0
    assert policy.noise == earlier
    as_before = np.random.default_rng(0).random(min(batch, 10)).tolist()
    assert policy.noise[: min(batch, 10)] == as_before


def test_decision_time_is_that_of_fresh_episodes() -> None:
    policy = Constant(1.0)
    times = decision_ms(policy, walk_env(), 4, repeats=3, warm_up=1)
    assert 0 < times["median"] <= times["p95"]
    assert len(policy.observations) == 4 and policy.observations[0]["observation"].shape == (4, 2)


def test_slow_decisions_are_repeated_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trajgen.evaluation.rollout.LONGEST_MS", 0.0)
    policy = Constant(1.0)
    assert decision_ms(policy, walk_env(), 4, repeats=9, warm_up=2)["median"] > 0
    assert len(policy.observations) == 3


def test_first_observations_differ_where_an_environment_reuses_its_array() -> None:
    class Reusing(Walk):
        def _see(self) -> dict[str, np.ndarray]:
            self.observation = getattr(self, "observation", super()._see())
            self.observation["observation"][:] = self.position
            return self.observation

    first = first_observations(walk_env(Reusing), range(2))
    assert first[0]["observation"][0] != first[1]["observation"][0]


def test_what_cannot_be_started_or_does_not_fit_is_left_out_of_decision_times() -> None:
    policy, no_start = Constant(1.0), partial(Walk, fails_at=0, fails_on_reset=True)
    assert [*first_observations(walk_env(no_start), range(3))] == [1, 2]
    decision_ms(policy, walk_env(no_start), 4, repeats=1)
    assert policy.observations[0]["observation"].shape == (4, 2)
    assert np.isnan(decision_ms(policy, walk_env(no_start), 1)["median"])

    class OutOfMemoryError(RuntimeError):
        """As torch's, which is recognized by its name."""

    def act(_: Any) -> Any:
        raise OutOfMemoryError("CUDA out of memory.")

    crowded: Any = Constant(1.0)
    crowded.act = act
    assert np.isnan(decision_ms(crowded, walk_env(), 64)["p95"])
