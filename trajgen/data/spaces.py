"""Widths and bounds of a data set, from its spaces and its actions."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np

from trajgen.core.choices import choices_of
from trajgen.core.errors import ConfigError, DataError, nearest
from trajgen.core.types import Space
from trajgen.data import store
from trajgen.data.episodes import Episodes
from trajgen.data.options import DataOptions

TEAM = "agents"
"""The entry of a set's metadata that lists the agents whose observations and actions lie side by side, as JSON."""


def space_of(id: str, dataset: Any, options: DataOptions) -> Space:
    """Widths and bounds from the spaces of Minari's data set.

    Raises:
        DataError: if states or goals are no vectors of real numbers, or actions neither these nor choices.
        ConfigError: if an observation key of the options does not fit the data.
    """
    from gymnasium import spaces

    actions, observations = dataset.action_space, dataset.observation_space
    leaves = _leaves(observations) if isinstance(observations, spaces.Dict) else {None: observations}

    def width(name: str, space: Any) -> int:
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            got = f"data set {id!r}: {space}"
            kinds = "vectors of real numbers" + (", Discrete or MultiDiscrete" if name == "Actions" else "")
            raise DataError(f"{name} must be {kinds}.", got=got, fix="another data set")
        return int(space.shape[0])

    def observed(option: str) -> int:
        keys = getattr(options, option)
        keys = keys if isinstance(keys, tuple) else (keys,)
        for key in keys:
            if key not in leaves:
                names = sorted(map(str, leaves))
                flat = None in leaves
                raise ConfigError(
                    f"data.{option} must name an entry of the observation.",
                    expected="null: the observation is an array" if flat else nearest(str(key), names),
                    got=f"data.{option}={key} for data set {id!r}",
                    fix=f"data.{option}={'null' if flat else names[0]}, or another data set",
                )
        return sum(width(f"{option} {key}", leaves[key]) for key in keys)

    goal_dim = observed("goal_key") if options.goals != "none" else 0
    if choices := choices_of(actions):
        action_dim = sum(choices)
        low, high = (0.0,) * action_dim, (1.0,) * action_dim
    else:
        action_dim = width("Actions", actions)
        low, high = tuple(map(float, actions.low)), tuple(map(float, actions.high))
    state_dim = observed("state_key")
    return Space(
        state_dim=state_dim,
        action_dim=action_dim,
        agents=_agents(id, dataset.storage.metadata.get(TEAM), state_dim, action_dim),
        goal_dim=goal_dim,
        state_key=options.state_key,
        goal_key=options.goal_key if goal_dim else None,
        action_low=low,
        action_high=high,
        choices=choices,
    )


def _agents(id: str, listed: str | None, state_dim: int, action_dim: int) -> int:
    """The number of agents that a set's metadata lists, 1 where they list none."""
    if listed is None:
        return 1
    try:
        count = len(json.loads(listed))
    except (TypeError, ValueError, RecursionError) as error:
        raise store.damaged(id, f"the agents of its metadata: {error}") from error
    if not count or state_dim % count or action_dim % count:
        raise store.damaged(id, f"{count} agents with {state_dim} numbers to observe and {action_dim} to act")
    return count


def limit_actions(episodes: Episodes, options: DataOptions) -> Episodes:
    """The episodes, with the bounds of their actions narrowed to those of the data where the options say so."""
    if options.action_limits == "space" or episodes.space.choices:
        return episodes
    actions = [episodes.actions[first:last] for first, last in zip(episodes.starts, episodes.ends, strict=True)]
    low, high = np.min([each.min(0) for each in actions], axis=0), np.max([each.max(0) for each in actions], axis=0)
    space = episodes.space
    return replace(
        episodes,
        space=replace(
            space,
            action_low=tuple(map(float, np.maximum(low, space.action_low))),
            action_high=tuple(map(float, np.minimum(high, space.action_high))),
        ),
    )


def _leaves(observations: Any, path: str = "") -> dict[str | None, Any]:
    """The entries of a dictionary space by name, "/" between those of nested ones."""
    leaves: dict[str | None, Any] = {}
    for name, space in observations.spaces.items():
        leaves |= _leaves(space, f"{path}{name}/") if hasattr(space, "spaces") else {f"{path}{name}": space}
    return leaves
