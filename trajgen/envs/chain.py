"""A chain of masses driven at its links: linear dynamics and quadratic costs, so that the optimum is known exactly."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from trajgen.core.errors import ConfigError
from trajgen.envs.gym import spec

if TYPE_CHECKING:
    from trajgen.core.planning import Observation

ENV_ID = "trajgen/Chain-v0"
SIZES = (2, 4, 8, 16, 32, 64, 128)
"""Numbers of masses of the data sets that can be made."""
MOST_MASSES = 512
EPISODE_STEPS = 100
"""Steps of an episode, after which the optimum has brought the chain to rest."""
STEPS = 200_000
"""Steps of a data set."""

MASS, LINK, ANCHOR, DAMPING = 1.0, 1.0, 1.0, 0.5
"""Of a mass: kg; the stiffness of its link and of the spring to its place at rest, N/m; friction, N·s/m."""
TIME_STEP = 0.2
"""Seconds for which a force is constant."""
EFFORT = 0.3
"""Cost of a squared force, in N², beside 1 for a squared displacement (m²) and a squared velocity (m²/s²)."""
START = 1.0
"""Displacements and velocities at the start are uniform between -START and START."""

NOISE = 0.02
"""Standard deviation of the noise on recorded actions, before they are clipped to [-1, 1]."""
OPTIMAL_SHARE = 0.25
"""Share of the episodes of the mixed data that the optimum drives; the others are driven by the noise alone."""
GROUP = 50
"""Episodes recorded side by side."""


class Chain:
    """The dynamics x' = A x + B a of n masses, the cost x'Qx + a'Ra of a step, and its optimum.

    A state x (2n) is n displacements and n velocities. Link i pulls mass i and mass i - 1 apart, or together; link 1
    holds on to a wall. An action a (n) is each link's force as a share of ``force``, which the optimum never exceeds.

    Args:
        masses: n.

    Raises:
        ConfigError: for a number of masses out of range.
    """

    def __init__(self, masses: int) -> None:
        if not isinstance(masses, int) or not 1 <= masses <= MOST_MASSES:
            expected = f"a whole number from 1 to {MOST_MASSES}"
            raise ConfigError(
                "A chain cannot have so many masses.", expected=expected, got=f"masses={masses!r:.40}", fix="masses=8"
            )
        from scipy.linalg import expm

        n = self.masses = masses
        stretch = np.eye(n) - np.eye(n, k=-1)  # from displacements to the stretch of each link
        stiffness = LINK * stretch.T @ stretch + ANCHOR * np.eye(n)
        drift = np.block([[np.zeros((n, n)), np.eye(n)], [-stiffness / MASS, -DAMPING / MASS * np.eye(n)]])
        drive = np.vstack([np.zeros((n, n)), stretch.T / MASS])
        both = np.block([[drift, drive], [np.zeros((n, 3 * n))]])  # the force is held through a step
        self.A, per_force = np.split(expm(TIME_STEP * both)[: 2 * n], [2 * n], axis=1)
        self.Q = np.eye(2 * n) / n  # the mean over masses, so that costs of all sizes are alike
        self.P = _riccati(self.A, per_force, self.Q, EFFORT * np.eye(n) / n)
        in_newton = _gain(self.A, per_force, self.P, EFFORT * np.eye(n) / n)
        self.force = _largest(in_newton, self.A + per_force @ in_newton)
        self.B, self.R = per_force * self.force, EFFORT * self.force**2 * np.eye(n) / n
        self.K = in_newton / self.force

    def step(self, states: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The states (…, 2n) after a step, and its rewards (…), from states and actions (…, n) in [-1, 1]."""
        costs = np.einsum("...i,ij,...j", states, self.Q, states) + np.einsum("...i,ij,...j", actions, self.R, actions)
        return states @ self.A.T + actions @ self.B.T, -costs

    def start(self, random: np.random.Generator) -> np.ndarray:
        """A state (2n) from which an episode starts."""
        return random.uniform(-START, START, 2 * self.masses)

    @cached_property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """The returns that count as 0 and 100, by name: exact means over all starts."""
        still, uniform = np.zeros((self.masses, self.masses)), np.eye(self.masses) / 3
        optimum = self.mean_return(self.K, still)
        idle = self.mean_return(0 * self.K, still)
        return {"idle / optimum": (idle, optimum), "random / optimum": (self.mean_return(0 * self.K, uniform), optimum)}

    def mean_return(self, gain: np.ndarray, noise: np.ndarray) -> float:
        """The mean return over all starts of actions a = gain x + noise, from the covariance (n, n) of the noise."""
        states = START**2 / 3 * np.eye(2 * self.masses)
        closed, costs = self.A + self.B @ gain, 0.0
        for _ in range(EPISODE_STEPS):
            costs += np.trace(self.Q @ states) + np.trace(self.R @ (gain @ states @ gain.T + noise))
            states = closed @ states @ closed.T + self.B @ noise @ self.B.T
        return -float(costs)


@cache
def chain(masses: int) -> Chain:
    """The chain of so many masses; its optimum is computed once."""
    return Chain(masses)


class ChainEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Bring a chain of masses to rest: a linear-quadratic regulator in any number of dimensions.

    An observation (2n) is the displacements and velocities, an action (n) the forces of the links in [-1, 1], a reward
    the negative cost of a step; see `Chain`. Without noise, nothing ends an episode but its limit of 100 steps.

    Args:
        masses: n.

    Raises:
        ConfigError: for a number of masses out of range.
    """

    def __init__(self, masses: int = 8) -> None:
        self.chain = chain(masses)
        self.observation_space = Box(-np.inf, np.inf, (2 * masses,), np.float32)
        self.action_space = Box(-1.0, 1.0, (masses,), np.float32)
        self.state = np.zeros(2 * masses)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode in a random state."""
        super().reset(seed=seed)
        self.state = self.chain.start(self.np_random)
        return self.state.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Takes a step; what of an action lies outside of [-1, 1] is cut off."""
        self.state, reward = self.chain.step(self.state, np.clip(np.asarray(action, np.float64), -1.0, 1.0))
        return self.state.astype(np.float32), float(reward), False, False, {}


gymnasium.register(ENV_ID, f"{__name__}:{ChainEnv.__name__}", max_episode_steps=EPISODE_STEPS, kwargs={"masses": 8})


class OptimalController:
    """The optimal policy a = K x of a chain, the linear-quadratic regulator, for observations (B, 2n) or (2n)."""

    def __init__(self, chain: Chain) -> None:
        self.gain = chain.K

    def reset(self, *, batch: int | None = None, ids: Any = None) -> None:
        """Has no memory."""

    def act(self, observation: Observation) -> np.ndarray:
        """Actions (B, n), or (n) if not batched."""
        return np.asarray((np.asarray(observation, np.float64) @ self.gain.T).astype(np.float32))

    def observe(self, reward: Any, done: Any) -> None:
        """Uses nothing of it."""


def chain_spec(masses: int) -> Any:
    """Gymnasium spec of a chain of so many masses."""
    return spec(ENV_ID, masses=masses)


def record(masses: int, optimal_share: float, steps: int, seed: int) -> Iterator[dict[str, Any]]:
    """Records episodes of the optimum with noise, and of noise alone, as entries of Minari's EpisodeBuffer.

    Args:
        masses: n.
        optimal_share: of the episodes, that the optimum drives.
        steps: how many in all; the last episode is cut to fit.
        seed: of the set; each episode follows from it and from the episode's number.
    """
    lengths = [min(EPISODE_STEPS, steps - done) for done in range(0, steps, EPISODE_STEPS)]
    system = chain(masses)
    for first in range(0, len(lengths), GROUP):
        group = lengths[first : first + GROUP]
        streams = [np.random.default_rng([seed, first + number]) for number in range(len(group))]
        states = np.empty((EPISODE_STEPS + 1, len(group), 2 * masses))
        actions = np.empty((EPISODE_STEPS, len(group), masses), np.float32)
        rewards = np.empty((EPISODE_STEPS, len(group)))
        states[0] = [system.start(random) for random in streams]
        driven = np.array([[random.random() < optimal_share] for random in streams])
        noise = np.stack([random.normal(0.0, NOISE, (EPISODE_STEPS, masses)) for random in streams], 1)
        for t in range(EPISODE_STEPS):
            actions[t] = (driven * (states[t] @ system.K.T) + noise[t]).clip(-1.0, 1.0)
            states[t + 1], rewards[t] = system.step(states[t], actions[t].astype(np.float64))
        for lane, length in enumerate(group):
            yield {
                "seed": None,
                "observations": states[: length + 1, lane].astype(np.float32),
                "actions": actions[:length, lane],
                "rewards": rewards[:length, lane],
                "terminations": np.zeros(length, bool),
                "truncations": np.arange(length) == length - 1,
            }


def _riccati(a: np.ndarray, b: np.ndarray, q: np.ndarray, r: np.ndarray) -> np.ndarray:
    """P of the cost-to-go x'Px = min Σ x'q x + u'r u under x' = a x + b u, by doubling the number of steps.

    Each round doubles the horizon (Anderson 1978, "Second-order convergent algorithms for the steady-state Riccati
    equation"). With hundreds of masses this takes seconds, and scipy's solver minutes.
    """
    power, reach, cost = a, b @ np.linalg.solve(r, b.T), q
    while True:
        carried = np.linalg.solve(np.eye(len(a)) + reach @ cost, power)
        through = np.linalg.solve(np.eye(len(a)) + reach @ cost, reach)
        more = power.T @ cost @ carried
        power, reach, cost = power @ carried, reach + power @ through @ power.T, cost + more
        if np.abs(more).max() <= 1e-14 * np.abs(cost).max():
            return np.asarray((cost + cost.T) / 2)


def _gain(a: np.ndarray, b: np.ndarray, p: np.ndarray, r: np.ndarray) -> np.ndarray:
    """K of the optimal u = K x."""
    return np.asarray(-np.linalg.solve(r + b.T @ p @ b, b.T @ p @ a))


def _largest(gain: np.ndarray, closed: np.ndarray) -> float:
    """The largest force of u = gain x along x' = closed x, from the worst start."""
    largest, ahead = 0.0, gain
    for _ in range(EPISODE_STEPS):
        largest = max(largest, START * float(np.abs(ahead).sum(1).max()))
        ahead = ahead @ closed
    return largest
