"""Gymnasium with the worlds of gymnasium-robotics, imported only when a world is needed."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

from trajgen.core.errors import DataError, nearest

OGBENCH = "ogbench/"
"""How the ids of worlds begin that another package makes known."""


def register_envs() -> None:
    """Makes the robotics worlds known to Gymnasium, if they are installed."""
    import gymnasium

    try:
        with contextlib.redirect_stderr(io.StringIO()):  # it prints a notice about worlds nobody asked for
            import gymnasium_robotics
    except ImportError:
        return
    gymnasium.register_envs(gymnasium_robotics)


def spec(env_id: str, *, max_episode_steps: int | None = None, **options: Any) -> Any:
    """The Gymnasium spec of a world, with options of its own changed.

    Raises:
        DataError: if there is no such world.
        ConfigError: if it comes with a package that is not installed.
    """
    import gymnasium

    register_envs()
    if env_id.startswith(OGBENCH):
        from trajgen.envs.ogbench import register

        env_id = register(env_id)
    try:
        found = copy.deepcopy(gymnasium.spec(env_id))
    except gymnasium.error.Error as error:
        raise DataError(
            "The world must be known to Gymnasium.",
            expected=nearest(env_id, gymnasium.registry),
            got=repr(env_id),
            fix="data.env_id=ID of a world that is installed, or install the package that has it",
        ) from error
    found.kwargs.update(options)
    if max_episode_steps is not None:
        found.max_episode_steps = max_episode_steps
    return found
