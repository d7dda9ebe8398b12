"""Gymnasium with our environments, gymnasium-robotics' and OGBench's, imported only when one is needed."""

from __future__ import annotations

import contextlib
import copy
import io
import re
from importlib import import_module
from typing import Any

from trajgen.core.errors import ConfigError, DataError, nearest

PIP = re.compile(r"`(pip install [^`]+)`")
"""How Gymnasium writes what a missing package is installed by."""
OGBENCH = "ogbench/"
"""Prefix here of the ids of OGBench's environments."""
PACKAGES = {"MiniGrid-": "minigrid", "BabyAI-": "minigrid"}
"""Packages that register their environments when they are imported, by the prefixes of the ids."""


def register_envs() -> None:
    """Registers our environments with Gymnasium, and the robotics environments, if they are installed."""
    import gymnasium

    for module in ("chain", "joint", "teams"):
        import_module(f"trajgen.envs.{module}")
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # it prints a notice about unrelated environments
            import gymnasium_robotics
    except ImportError:
        return
    gymnasium.register_envs(gymnasium_robotics)


def spec(env_id: str, *, max_episode_steps: int | None = None, **options: Any) -> Any:
    """The Gymnasium spec of an environment, with some of its options changed.

    Raises:
        DataError: if there is no such environment.
        ConfigError: if it comes with a package that is not installed.
    """
    import gymnasium

    register_envs()
    if env_id.startswith(OGBENCH):
        from trajgen.envs.ogbench import register

        env_id = register(env_id)
    module, _, env_id = env_id.rpartition(":")
    module = module or next((package for prefix, package in PACKAGES.items() if env_id.startswith(prefix)), "")
    try:
        import_module(module) if module else None
    except ImportError as error:
        raise ConfigError(f"{env_id} comes with the module {module}: {error}.", fix=f"pip install {module}") from error
    try:
        env_spec = copy.deepcopy(gymnasium.spec(env_id))
    except gymnasium.error.Error as error:
        close = nearest(env_id, gymnasium.registry)
        close = f"{close} or " if close.startswith("did you mean") else ""  # else it lists hundreds
        raise DataError(
            f"The environment {env_id!r} is not known to Gymnasium.",
            fix=f"{close}MODULE:{env_id}, of the module that registers it",
        ) from error
    env_spec.kwargs.update(options)
    if max_episode_steps is not None:
        env_spec.max_episode_steps = max_episode_steps
    return env_spec


def portable(env_spec: Any) -> Any:
    """The Gymnasium spec as a data set can hold it: with the name of a class or function in its place.

    Raises:
        DataError: if it has no name that can be imported, or an option is no plain value.
    """
    name = getattr(env_spec.entry_point, "__qualname__", "<")
    if "<" not in name:  # as that of a lambda, and of what is defined within a function
        env_spec = copy.deepcopy(env_spec)
        env_spec.entry_point = f"{env_spec.entry_point.__module__}:{name}"
    try:
        env_spec.to_json()
    except (TypeError, ValueError) as error:
        raise DataError(
            "A data set names its environment by what can be imported, with options that are plain values.",
            got=f"{env_spec.id}: {error}",
            fix="gymnasium.register(ID, entry_point='my_module:MyClass')",
        ) from error
    return env_spec


def make_env(env_spec: Any) -> Any:
    """The environment of a spec, with observations of vectors and images alone.

    Raises:
        ConfigError: by an environment of ours, if its options do not fit.
        DataError: if it cannot be made on this machine, or observes nothing of that kind.
    """
    import gymnasium

    from trajgen.envs.numeric import numeric

    try:
        env = gymnasium.make(env_spec)
    except ConfigError:  # which says what to do
        raise
    except Exception as error:  # an environment may raise anything
        cause = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(
            f"The environment {env_spec.id} cannot be made: {cause}.",
            fix=" and ".join(PIP.findall(str(error))) or "install what it needs, or name another one: data.env_id=ID",
        ) from error
    return numeric(env)
