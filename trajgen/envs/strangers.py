"""Environments that files of strangers name: what is registered here, with options that name no file and no module."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

from trajgen.core.errors import DataError, TrajgenError
from trajgen.envs.teams import TEAMS
from trajgen.security import check_numbers

LARGEST_OPTION = 2**24
"""Largest whole number among the options of an environment."""
TEXT = re.compile(r"(\w[\w .+-]*)?")
"""Text of an option that is no path: an environment might open what it names."""
REGISTERING = ("minigrid", "ogbench", "ale_py")
"""Packages that register environments when they are imported."""
WRAPPERS = ("trajgen.envs.", "gymnasium.wrappers.", "minigrid.wrappers")
"""Where wrappers are that a data set may name, but for those that draw or write."""
DRAWING = "gymnasium.wrappers.rendering"


def check_options(env_id: str, options: Mapping[str, Any], error: type[TrajgenError] = DataError) -> None:
    """Raises an error if options of an environment name a file or a module, or hold a number that is far too large.

    Args:
        env_id: of the environment, for the message.
        options: with which it is made.
        error: that is raised.
    """
    try:
        check_numbers(options, LARGEST_OPTION, int)
        text = next((text for text in _texts(options) if not TEXT.fullmatch(text)), None)
    except (ValueError, RecursionError) as cause:
        raise error(f"An option of the environment {env_id} is too large or nested.", got=str(cause)) from cause
    if text is not None:
        raise error(
            "The options of an environment that a file names hold no path.",
            got=f"{env_id} with {text[:80]!r}",
            fix="data.env_id=ID of an environment that you know",
        )
    module = options.get("env")
    if isinstance(module, str) and module not in {*sys.modules, *(team.options["env"] for team in TEAMS.values())}:
        raise error(
            "A file may only name modules that are imported already.",
            got=f"{env_id} with env={module}",
            fix=f"imports=[{module}], if you know what it does",
        )


def trusted(env_spec: Any) -> Any:
    """The Gymnasium spec of a data set, with the class that is registered here under its id.

    Args:
        env_spec: as the data set has it; it may name any function of any module. It is changed.

    Raises:
        DataError: if nothing is registered under its id, or its options or wrappers might open, write or import
            something.
        ConfigError: if it is OGBench's, which is not installed.
    """
    import gymnasium

    module = str(env_spec.entry_point).partition(":")[0]
    package = module.partition(".")[0]
    if module == "trajgen.envs.ogbench":  # some of OGBench's are registered when they are asked for
        from trajgen.envs.ogbench import register

        register(env_spec.id)
    if package in REGISTERING:
        with suppress(ImportError):  # then nothing is registered
            import_module(package)
    registered = gymnasium.registry.get(env_spec.id)
    if registered is None:
        fix = f"pip install {package}" if package in REGISTERING else f"imports=[{package}], if you know what it does"
        raise DataError(
            "The environment that a data set names is one that is registered.",
            got=f"{env_spec.id}, of {env_spec.entry_point}",
            fix=f"{fix}; or data.env_id=ID of another one",
        )
    check_options(env_spec.id, env_spec.kwargs)
    for wrapper in env_spec.additional_wrappers:
        if not _is_harmless(wrapper.entry_point):
            raise DataError(
                "Wrappers that a data set names are Gymnasium's or MiniGrid's, and none draws or writes.",
                got=f"{env_spec.id} with {wrapper.entry_point}",
                fix="data.env_id=ID of an environment that you know",
            )
        check_options(f"{env_spec.id} with {wrapper.name}", wrapper.kwargs or {})
    env_spec.entry_point = registered.entry_point
    return env_spec


def _texts(values: Any) -> list[str]:
    """All text among plain values."""
    if isinstance(values, Mapping):
        return [text for value in values.values() for text in _texts(value)]
    if isinstance(values, list | tuple):
        return [text for value in values for text in _texts(value)]
    return [values] if isinstance(values, str) else []


def _is_harmless(entry_point: str) -> bool:
    import gymnasium

    module, _, name = str(entry_point).partition(":")
    if not module.startswith(WRAPPERS) or module.startswith(DRAWING):
        return False
    with suppress(ImportError):
        wrapper = getattr(import_module(module), name, None)
        return isinstance(wrapper, type) and issubclass(wrapper, gymnasium.Wrapper) and wrapper.__module__ == module
    return False
