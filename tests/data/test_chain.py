"""The chain of masses: its dynamics, its optimum, and data recorded in it."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from trajgen.core.errors import ConfigError
from trajgen.data import minari
from trajgen.data.options import DataOptions
from trajgen.envs import chain
from trajgen.envs.chain import EPISODE_STEPS, Chain, ChainEnv, OptimalController
from trajgen.envs.eval_env import make_eval_env
from trajgen.envs.makers import MAKERS, make

STILL = np.zeros((2, 2))


def played(env: Any, policy: Any, seed: int) -> tuple[np.ndarray, float, np.ndarray]:
    """The first state of an episode, its return, and its actions."""
    observation, _ = env.reset(seed=seed)
    start, total, actions, ended = env.unwrapped.state.copy(), 0.0, [], False
    while not ended:
        actions.append(policy.act(observation))
        observation, reward, terminated, ended, _ = env.step(actions[-1])
        assert not terminated
        total += float(reward)
    return start, total, np.array(actions)


def test_one_mass_by_hand() -> None:
    """A damped oscillator: link and place have 2 N/m, so that x(t) is known; a step costs x² + v² + 0.3 f²."""
    one = Chain(1)
    decay, frequency, t = 0.25, np.sqrt(2 - 0.25**2), 0.2
    position = np.exp(-decay * t) * (np.cos(frequency * t) + decay / frequency * np.sin(frequency * t))
    after, reward = one.step(np.array([1.0, 0.0]), np.array([0.0]))
    assert after[0] == pytest.approx(position, abs=1e-12) and reward == pytest.approx(-1.0)
    held, reward = one.step(np.zeros(2), np.array([1.0]))
    assert held[0] == pytest.approx(one.force * (1 - position) / 2, abs=1e-12)  # at rest it would be f / 2
    assert reward == pytest.approx(-0.3 * one.force**2)


def test_a_link_drives_its_two_masses_apart() -> None:
    after, _ = Chain(3).step(np.zeros(6), np.array([0.0, 1.0, 0.0]))
    velocities = after[3:]
    assert velocities[0] < 0 < velocities[1] and abs(velocities[2]) < 0.1 * velocities[1]
    assert (Chain(3).step(np.zeros(6), np.zeros(3))[0] == 0).all()


@pytest.mark.parametrize("masses", [1, 2, 8, 64])
def test_the_optimum_solves_the_riccati_equation(masses: int) -> None:
    c = chain.chain(masses)
    ahead = c.B.T @ c.P
    assert np.allclose(c.P, c.Q + c.A.T @ c.P @ (c.A + c.B @ c.K), rtol=0, atol=1e-12)
    assert np.allclose(c.K, -np.linalg.solve(c.R + ahead @ c.B, ahead @ c.A), rtol=0, atol=1e-12)
    assert (np.linalg.eigvalsh(c.P) > 0).all() and np.abs(np.linalg.eigvals(c.A + c.B @ c.K)).max() < 0.96


@pytest.mark.parametrize("masses", [2, 8, 64])
def test_the_optimum_earns_its_cost_to_go_and_is_never_cut_off(masses: int) -> None:
    c = chain.chain(masses)
    env = gymnasium.make(f"{chain.__name__}:{chain.ENV_ID}", masses=masses)
    for seed in range(3):
        start, total, actions = played(env, OptimalController(c), seed)
        assert len(actions) == EPISODE_STEPS
        assert total == pytest.approx(-start @ c.P @ start, rel=1e-5)
        assert np.abs(actions).max() < 1
    worst, ahead = 0.0, c.K
    for _ in range(EPISODE_STEPS):
        worst = max(worst, float(np.abs(ahead).sum(1).max()))
        ahead = ahead @ (c.A + c.B @ c.K)
    assert worst == pytest.approx(1.0)  # the worst start needs the whole force, and none needs more


def test_no_other_gain_is_better_and_the_bounds_are_the_means_of_episodes() -> None:
    c = Chain(2)
    optimum = c.mean_return(c.K, STILL)
    assert optimum == pytest.approx(-np.trace(c.P) / 3, rel=1e-6)
    shifts = np.random.default_rng(0).normal(0.0, 0.02, (20, *c.K.shape))
    assert all(c.mean_return(c.K + shift, STILL) < optimum for shift in shifts)
    assert c.bounds["idle / optimum"] == (c.mean_return(0 * c.K, STILL), optimum)
    random = np.random.default_rng(1)
    states = np.stack([c.start(random) for _ in range(4000)])
    totals = np.zeros(len(states))
    for _ in range(EPISODE_STEPS):
        states, rewards = c.step(states, random.uniform(-1, 1, (len(states), 2)))
        totals += rewards
    assert c.bounds["random / optimum"][0] == pytest.approx(totals.mean(), rel=0.03)
    assert c.bounds["random / optimum"][1] == optimum


def test_a_batch_of_environments_is_as_many_single_ones() -> None:
    envs = gymnasium.make_vec(f"{chain.__name__}:{chain.ENV_ID}", num_envs=3, masses=4, vectorization_mode="sync")
    alone = [ChainEnv(4) for _ in range(3)]
    observations, _ = envs.reset(seed=7)
    assert (observations == np.stack([env.reset(seed=7 + i)[0] for i, env in enumerate(alone)])).all()
    system, states = alone[0].chain, np.stack([env.state for env in alone])
    for actions in np.random.default_rng(0).uniform(-1.5, 1.5, (5, 3, 4)).astype(np.float32):
        observations, rewards, *_ = envs.step(actions)
        single = [env.step(action) for env, action in zip(alone, actions, strict=True)]
        assert (observations == np.stack([each[0] for each in single])).all()
        assert (rewards == np.array([each[1] for each in single])).all()
        states, expected = system.step(states, actions.astype(np.float64).clip(-1, 1))
        assert np.allclose(observations, states, atol=1e-6) and np.allclose(rewards, expected)


def test_the_environment_keeps_gymnasiums_rules() -> None:
    from gymnasium.utils.env_checker import check_env

    check_env(ChainEnv(2), skip_render_check=True)
    with pytest.raises(ConfigError, match="1 to 512"):
        ChainEnv(0)


def recorded(name: str, steps: int, seed: int = 0) -> Any:
    make(name, steps=steps, seed=seed, force=True, quiet=True)
    return minari.load(MAKERS[name].id, DataOptions(id=MAKERS[name].id))


def test_data_are_of_the_environment_and_of_their_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "chain/masses-2"
    episodes = recorded(name, steps=650)
    assert episodes.lengths.tolist() == [100] * 6 + [50] and not episodes.terminated.any()
    same, other = recorded(name, steps=650), recorded(name, steps=650, seed=1)
    assert (same.states == episodes.states).all() and (same.actions == episodes.actions).all()
    monkeypatch.setattr(chain, "GROUP", 2)
    assert np.allclose(recorded(name, steps=650).states, episodes.states, atol=1e-5)
    assert (other.states != episodes.states).any()
    assert len(np.unique(episodes.states[episodes.starts], axis=0)) == 7
    env = ChainEnv(2)
    env.state = episodes.states[0].astype(np.float64)
    for step in range(100):
        observation, reward, *_ = env.step(episodes.actions[step])
        assert observation == pytest.approx(episodes.states[step + 1], abs=1e-5)
        assert reward == pytest.approx(float(episodes.rewards[step]), abs=1e-5)


def test_a_quarter_of_the_mixed_episodes_is_driven_by_the_optimum() -> None:
    def gains(name: str) -> np.ndarray:
        """Of each episode, the share of the optimum's gain, by least squares."""
        episodes = recorded(name, steps=8000)
        wanted = episodes.states @ chain.chain(2).K.T
        pairs = [(episodes.actions[a:b], wanted[a:b]) for a, b in zip(episodes.starts, episodes.ends, strict=True)]
        return np.array([(action * want).sum() / (want * want).sum() for action, want in pairs])

    expert, mixed = gains("chain/masses-2-expert"), gains("chain/masses-2")
    assert np.abs(expert - 1).max() < 0.3
    is_driven = np.abs(mixed - 1) < 0.3
    assert (is_driven | (np.abs(mixed) < 0.3)).all() and 0.1 < is_driven.mean() < 0.4


def test_the_evaluation_has_the_optimum_as_controller_and_as_bound() -> None:
    make("chain/masses-4", steps=200, quiet=True)
    options = DataOptions(id=MAKERS["chain/masses-4"].id, bounds={"mine": (-9.0, 0.0)})
    eval_env = make_eval_env(options)
    assert eval_env.max_steps == EPISODE_STEPS and eval_env.controller is not None
    assert list(eval_env.bounds) == ["mine", "idle / optimum", "random / optimum"]
    start, total, _ = played(eval_env.make_env(), eval_env.controller(), seed=3)
    assert total == pytest.approx(-start @ chain.chain(4).P @ start, rel=1e-5)
    longer = make_eval_env(DataOptions(id=options.id, max_episode_steps=300))
    assert not longer.bounds  # a return of 300 steps means something else
