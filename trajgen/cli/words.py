"""The words of a command line: ``key=value``."""

from __future__ import annotations

from typing import Any

from trajgen.core.errors import ConfigError
from trajgen.core.options import convert, nested


def take_imports(values: dict[str, Any]) -> tuple[str, ...]:
    """Takes the modules of imports=[…] out of the values."""
    modules: tuple[str, ...] = convert(values.pop("imports", ()), tuple[str, ...], "imports")
    return modules


def key_values(words: list[str]) -> dict[str, Any]:
    """``a.b=1`` as ``{"a": {"b": 1}}``; a component named alone, ``sampler=greedy``, as ``{"name": "greedy"}``."""
    import yaml

    found: list[tuple[str, Any]] = []
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(
                "Options are written key=value.",
                expected="key=value",
                got=word,
                fix="for example evaluation.episodes=12",
            )
        try:
            found.append((key, yaml.safe_load(text)))
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # of 5000 digits or brackets, or no such day
            raise ConfigError(
                f"The value of '{key}' cannot be read.",
                expected="a number, a name, true, false, null or [a, list]",
                got=word,
                fix="close every bracket and quote",
            ) from error
    return nested(found)
