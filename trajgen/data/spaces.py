"""Widths and bounds of a data set, from its spaces and its actions."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trajgen.core.choices import ACTIONS, choices_of
from trajgen.core.errors import ConfigError, DataError, nearest
from trajgen.core.observations import channels_last
from trajgen.core.options import structure
from trajgen.core.types import Space
from trajgen.data import store
from trajgen.data.episodes import Episodes, require_pixels
from trajgen.data.options import DataOptions
from trajgen.security import MAX_SHAPE, check_numbers


@dataclass(frozen=True, kw_only=True)
class Features:
    """What the metadata of an encoded data set say of its features, and of the observations that they are made of."""

    encoder: dict[str, Any]
    """The node of the component that made them."""
    feature_dim: int
    image_shape: tuple[int, ...]
    image_key: str | tuple[str, ...] | None
    state_key: str | tuple[str, ...] | None
    """The entries that the features follow in the state."""
    source: str
    """Id of the set with the images."""


def features_of(id: str) -> Features | None:
    """What the metadata of a data set say of its features; None if it was not encoded.

    Raises:
        DataError: if they say what was never written.
    """
    about = store.metadata(id).get("images")
    if about is None:
        return None
    try:
        check_numbers(about, MAX_SHAPE, int)
        return structure(Features, about, "images")
    except (ConfigError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise store.damaged(id, f"the images of its metadata: {error}") from error


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
    leaves = leaves_of(observations) if isinstance(observations, spaces.Dict) else {None: observations}

    def width(name: str, space: Any, key: str | None = None) -> int:
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            got = f"data set {id!r}: {space}"
            kinds = ACTIONS if name == "Actions" else "vectors of real numbers"
            fix = f"data.image_key={key}, and state_key=[] if there are no vectors" if is_image(space) else None
            raise DataError(f"{name} must be {kinds}.", got=got, fix=fix or "another data set")
        return int(space.shape[0])

    def observed(option: str) -> list[Any]:
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
        return [leaves[key] for key in keys]

    def total(option: str) -> int:
        keys = getattr(options, option)
        keys = keys if isinstance(keys, tuple) else (keys,)
        return sum(width(f"{option} {key}", leaf, key) for key, leaf in zip(keys, observed(option), strict=True))

    state_key = () if options.state_key is None and is_image(observations) else options.state_key
    images = observed("image_key") if options.image_key is not None else [observations] if state_key == () else []
    goal_dim = total("goal_key") if options.goals != "none" else 0
    if choices := choices_of(actions):
        action_dim = sum(choices)
        low, high = (0.0,) * action_dim, (1.0,) * action_dim
    else:
        action_dim = width("Actions", actions)
        low, high = tuple(map(float, actions.low)), tuple(map(float, actions.high))
    state_dim = total("state_key") if state_key != () else 0
    space = Space(
        state_dim=state_dim,
        action_dim=action_dim,
        agents=_agents(id, dataset.storage.metadata.get(TEAM), state_dim, action_dim),
        goal_dim=goal_dim,
        state_key=state_key,
        goal_key=options.goal_key if goal_dim else None,
        action_low=low,
        action_high=high,
        choices=choices,
        image_key=options.image_key,
        image_shape=_image_shape(id, images) if images else (),
    )
    features = features_of(id)
    if features is None:
        return space
    about = {name: value for name, value in vars(features).items() if name != "source"}
    try:
        return replace(space, encoded=True, **about)
    except ValueError as error:
        raise store.damaged(id, f"the images of its metadata: {error}") from error


def is_image(space: Any) -> bool:
    """Whether a space is that of images, by its three axes."""
    return len(getattr(space, "shape", None) or ()) == 3


def _image_shape(id: str, images: list[Any]) -> tuple[int, ...]:
    """Height, width and channels of images of these spaces, joined along the channels.

    Raises:
        DataError: if one is no image in uint8.
        ConfigError: if their sizes differ.
    """
    for space in images:
        if not is_image(space):
            fix = "data.image_key=ENTRY of shape (height, width, channels) or (channels, height, width)"
            raise DataError("An image has three axes.", got=f"data set {id!r}: {space}", fix=fix)
        require_pixels(np.zeros(0, space.dtype), f"data set {id!r}")
    shapes = [channels_last(np.broadcast_to(np.uint8(0), space.shape)).shape for space in images]
    if len({shape[:2] for shape in shapes}) > 1:
        sizes = ", ".join(map(str, shapes))
        raise ConfigError("Images that are joined are of one size.", got=sizes, fix="data.image_key=ONE of them")
    return (*shapes[0][:2], sum(shape[2] for shape in shapes))


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


def leaves_of(observations: Any, path: str = "") -> dict[str | None, Any]:
    """The entries of a dictionary space by name, "/" between those of nested ones."""
    leaves: dict[str | None, Any] = {}
    for name, space in observations.spaces.items():
        leaves |= leaves_of(space, f"{path}{name}/") if hasattr(space, "spaces") else {f"{path}{name}": space}
    return leaves
