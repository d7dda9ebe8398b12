"""The episodes of a data set as an environment that gives what was recorded, whatever the actions are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from trajgen.data import minari, store
from trajgen.data.spaces import features_of
from trajgen.data.starts import val_episodes
from trajgen.envs.eval_env import EnvRecord, EvalEnv, has_eval_env, make_eval_env

if TYPE_CHECKING:
    from trajgen.data.options import DataOptions


class Replay(gymnasium.Env[Any, Any]):
    """Gives the observations and rewards of recorded episodes, and keeps the actions beside the recorded ones.

    Args:
        dataset: Minari's object.
        numbers: of its episodes; the seed of a reset picks one of them, counted round.
    """

    def __init__(self, dataset: Any, numbers: Sequence[int]) -> None:
        self.observation_space, self.action_space = dataset.observation_space, dataset.action_space
        self._dataset, self._numbers = dataset, numbers
        self.actions: list[Any] = []
        """Actions of the present episode, one a step."""
        self.played: dict[int, tuple[list[Any], NDArray[Any]]] = {}
        """By seed, the actions of an episode and the data's (n, A) or (n,)."""

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts a recorded episode: the one that the seed picks."""
        super().reset(seed=seed)
        seed = seed or 0
        number = self._numbers[seed % len(self._numbers)]
        self._episode = next(iter(self._dataset.iterate_episodes([number])))
        self.actions = []
        self.played[seed] = self.actions, self._episode.actions
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The next recorded observation and reward."""
        self.actions.append(action)
        step, episode = len(self.actions), self._episode
        terminated = bool(episode.terminations[step - 1])
        is_last = step == len(self._episode.actions)
        reward = float(np.asarray(episode.rewards[step - 1]).item())
        return self._observation(), reward, terminated, is_last and not terminated, {}

    @property
    def observations(self) -> Any:
        """All observations of the present episode, stacked as in the data: (n+1, …)."""
        return self._episode.observations

    def _observation(self) -> Any:
        return _row(self._episode.observations, len(self.actions))


def _row(observations: Any, step: int) -> Any:
    if isinstance(observations, Mapping):
        return {name: _row(values, step) for name, values in observations.items()}
    return observations[step]


def replay_env(options: DataOptions) -> EvalEnv:
    """An environment that replays a data set of this machine: its validation episodes, if it has some, else all.

    Raises:
        DataError: if the set is missing or damaged.
    """
    features = features_of(options.id)
    if features is not None:  # a policy takes the images that they were made of
        options = replace(options, id=features.source, state_key=features.state_key)
    dataset = minari.open_dataset(options.id)
    share = options.val_fraction
    numbers = np.flatnonzero(val_episodes(dataset.total_episodes, share) == bool(share)).tolist()
    lengths = [int(episode["total_steps"]) for episode in dataset.storage.get_episode_metadata(numbers)]
    return EvalEnv(
        name=f"{options.id}, replayed",
        make_env=lambda: Replay(minari.open_dataset(options.id), numbers),
        max_steps=min(max(lengths), options.max_episode_steps or max(lengths)),
        state_key=options.state_key,
        goal_key=options.goal_key,
        achieved_key=options.achieved_key,
        replayed_episodes=len(numbers),
    )


def recorded_states(eval_env: EvalEnv, seed: int) -> NDArray[Any]:
    """The states (n+1, S) of the episode that a seed picks, of an environment that replays a data set."""
    env: Any = eval_env.make_env()
    env.reset(seed=seed)
    return np.asarray(eval_env.state(env.observations))


def env_of_run(options: DataOptions, recorded: EnvRecord | None) -> EvalEnv:
    """The environment of a run, or where its data name none, the data replayed.

    Args:
        options: of the run's data.
        recorded: see `make_eval_env`.

    Raises:
        DataError: if the set is not on this machine and nothing else names an environment, or it cannot be made here.
    """
    return replay_env(options) if is_replayed(options, recorded) else make_eval_env(options, recorded)


def is_replayed(options: DataOptions, recorded: EnvRecord | None) -> bool:
    """Whether a run's data are replayed, as they name no environment; see `env_of_run`."""
    return recorded is None and store.folder(options.id).is_dir() and not has_eval_env(options)
