"""The spaces of an imported data set, and whether a world has the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from trajgen.core.errors import DataError
from trajgen.core.types import Space
from trajgen.data.episodes import Array
from trajgen.data.importing.options import ImportOptions

STATE, GOAL, ACHIEVED = "observation", "desired_goal", "achieved_goal"
"""Entries of the observations of a set with goals, as in gymnasium-robotics."""


def observations_of(space: Space, options: ImportOptions) -> Any:
    """The space of the observations, a dictionary where there are goals."""
    from gymnasium import spaces

    def unbounded(width: int) -> Any:
        return box(np.full(width, -np.inf), np.full(width, np.inf))

    if not options.has_goals:
        return unbounded(space.state_dim)
    entries = {STATE: space.state_dim, GOAL: space.goal_dim}
    entries |= {ACHIEVED: space.goal_dim} if options.achieved is not None else {}
    return spaces.Dict({name: unbounded(width) for name, width in entries.items()})


def box(low: Array, high: Array) -> Any:
    """A box of vectors in 32-bit floats."""
    from gymnasium import spaces

    return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)


def env_spec_for(env: str, space: Space, options: ImportOptions) -> Any:
    """The spec of the world to evaluate in, which must show and take what the data hold.

    Raises:
        DataError: if it is not known, cannot be built, or does not.
    """
    import gymnasium

    from trajgen.envs.gym import spec

    found = spec(env)
    try:
        made = gymnasium.make(found)
    except Exception as error:  # whatever building a world may raise
        raise DataError(
            "The world to evaluate in must be there.",
            expected="a world that can be built on this machine",
            got=f"env={env}: {str(error).partition(chr(10))[0]}",
            fix="install what it needs, or leave out env",
        ) from error
    theirs = {"observations": made.observation_space, "actions": made.action_space}
    made.close()
    ours = {
        "observations": observations_of(space, options),
        "actions": box(np.zeros(space.action_dim), np.ones(space.action_dim)),
    }
    for name, own in ours.items():
        if not alike(own, theirs[name]):
            raise DataError(
                "The world to evaluate in shows and takes what the data hold.",
                expected=f"{name} like {own}",
                got=f"env={env}: {theirs[name]}",
                fix="name another world, or leave out env",
            )
    return found


def alike(own: Any, theirs: Any) -> bool:
    """Whether a space has at least the entries of the data's own, in the same widths."""
    if hasattr(own, "spaces"):
        return all(
            name in getattr(theirs, "spaces", {}) and alike(each, theirs[name]) for name, each in own.spaces.items()
        )
    return bool(own.shape == theirs.shape) and np.issubdtype(theirs.dtype or object, np.floating)
