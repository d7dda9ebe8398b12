"""What the numbers of a data set are: widths and bounds, from its spaces and its actions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from trajgen.core.errors import ConfigError, DataError, nearest
from trajgen.core.types import Space
from trajgen.data.episodes import Episodes
from trajgen.data.options import DataOptions


def space_of(id: str, dataset: Any, options: DataOptions) -> Space:
    """Widths and bounds from the spaces of Minari's data set.

    Raises:
        DataError: if actions, states or goals are no vectors of real numbers.
        ConfigError: if an observation key of the options does not fit the data.
    """
    from gymnasium import spaces

    actions, observations = dataset.action_space, dataset.observation_space
    if not isinstance(actions, spaces.Box) or len(actions.shape) != 1:
        raise DataError(
            "Actions must be vectors of real numbers.",
            expected="a one-dimensional Box",
            got=f"data set {id!r}: {actions}",
            fix="choose a data set with continuous actions",
        )

    leaves = _leaves(observations) if isinstance(observations, spaces.Dict) else {None: observations}

    def width(option: str) -> int:
        asked = getattr(options, option)
        found = 0
        for key in asked if isinstance(asked, tuple) else (asked,):
            if key not in leaves:
                keys = sorted(map(str, leaves))
                flat = None in leaves
                raise ConfigError(
                    f"data.{option} must name an entry of the observation.",
                    expected="null: the observation is an array" if flat else nearest(str(key), keys),
                    got=f"data.{option}={key} for data set {id!r}",
                    fix=f"data.{option}={'null' if flat else keys[0]}, or another data set",
                )
            leaf = leaves[key]
            if not isinstance(leaf, spaces.Box) or len(leaf.shape) != 1:
                raise DataError(
                    "States and goals must be vectors of real numbers.",
                    expected="a one-dimensional Box",
                    got=f"data set {id!r}, {option} {key}: {leaf}",
                )
            found += int(leaf.shape[0])
        return found

    goal_dim = width("goal_key") if options.goals != "none" else 0
    return Space(
        state_dim=width("state_key"),
        action_dim=int(actions.shape[0]),
        goal_dim=goal_dim,
        state_key=options.state_key,
        goal_key=options.goal_key if goal_dim else None,
        action_low=tuple(map(float, actions.low)),
        action_high=tuple(map(float, actions.high)),
    )


def limited(episodes: Episodes, options: DataOptions) -> Episodes:
    """The episodes, with the bounds of their actions drawn in to the data's where the options ask for it."""
    if options.action_limits == "space":
        return episodes
    rows = [
        np.s_[first:last] for first, last in zip(episodes.starts, episodes.ends, strict=True)
    ]  # the last is not real
    low = np.min([episodes.actions[each].min(0) for each in rows], axis=0)
    high = np.max([episodes.actions[each].max(0) for each in rows], axis=0)
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
    found: dict[str | None, Any] = {}
    for name, space in observations.spaces.items():
        found |= _leaves(space, f"{path}{name}/") if hasattr(space, "spaces") else {f"{path}{name}": space}
    return found
