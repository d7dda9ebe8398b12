"""Checking plain values against annotations: the one place where options get their types."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from typing import Any, Literal, TypeVar

from trajgen.core.errors import ConfigError, nearest

T = TypeVar("T")


def nested(words: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Options as a command line names them, in groups.

    ``("a.b", 1)`` becomes ``{"a": {"b": 1}}``, and a component that is named alone, ``("sampler", "greedy")``,
    ``{"sampler": {"name": "greedy"}}``. What is nested already stays so.

    Raises:
        ConfigError: if an option is a value and a group.
    """
    from trajgen.core.registry import KINDS

    values: dict[str, Any] = {}
    for key, value in words:
        node, *path = values, *key.split(".")
        more = {"name": value} if key in KINDS and isinstance(value, str) else deepcopy(value)
        for part in path if isinstance(more, Mapping) else path[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(
                    "An option is a value or a group, not both.",
                    expected="one of the two, once",
                    got=f"{key}={value}",
                    fix="leave out one of the words that name it",
                )
        if isinstance(more, Mapping):
            node |= more
        else:
            node[path[-1]] = more
    return values


def convert(value: Any, annotation: Any, where: str) -> Any:
    """Returns ``value`` as ``annotation`` says, or raises.

    Knows int, float, bool, str, None, unions, Literal, tuple, list, dict and dataclasses of those; a whole
    number is accepted where a float is asked for, and text never is where a number is.

    Args:
        value: a plain value (as from YAML or JSON).
        annotation: a resolved type.
        where: the option's dotted name, for the message.

    Raises:
        ConfigError: if the value is of another type.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        for choice in arguments:
            try:
                return convert(value, choice, where)
            except ConfigError:
                continue
    elif origin is Literal:
        if value in arguments:
            return value
    elif origin in (tuple, list) and isinstance(value, Sequence) and not isinstance(value, str):
        inner = arguments[0] if origin is list or (len(arguments) == 2 and arguments[1] is ...) else None
        if inner is not None:
            return origin(convert(v, inner, f"{where}[{i}]") for i, v in enumerate(value))
        if len(value) == len(arguments):
            return tuple(convert(v, a, f"{where}[{i}]") for i, (v, a) in enumerate(zip(value, arguments, strict=True)))
    elif origin is dict and isinstance(value, Mapping):
        return {str(k): convert(v, arguments[1], f"{where}.{k}") for k, v in value.items()}
    elif dataclasses.is_dataclass(annotation) and isinstance(value, Mapping):
        return structure(typing.cast(type, annotation), value, where)
    elif annotation is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        with suppress(OverflowError):  # a whole number may be larger than any float
            return float(value)
    elif (annotation is int and isinstance(value, int) and not isinstance(value, bool)) or (
        annotation in (bool, str) and isinstance(value, annotation)
    ):
        return value
    elif annotation is type(None) and value is None:
        return None
    raise ConfigError(
        f"Option '{where}' has the wrong type.",
        expected=describe(annotation),
        got=f"{where}={value!r}",
        fix=f"give {where} {describe(annotation)}, or leave it out",
    )


def structure(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Builds the dataclass ``cls`` from plain values; ``where`` is its dotted name, for messages."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(typing.cast(Any, cls)) if f.init}
    refuse_unknown(values, fields, where)
    missing = [
        f.name
        for f in dataclasses.fields(typing.cast(Any, cls))
        if f.init
        and f.name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(
            f"'{where}' needs {', '.join(missing)}.",
            expected=f"{where}.{missing[0]}=…",
            got=f"only {', '.join(values) or 'nothing'}",
            fix="give what is missing",
        )
    return cls(**{k: convert(v, fields[k], f"{where}.{k}" if where else k) for k, v in values.items()})


def refuse_unknown(values: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    """Raises a `ConfigError` that names the nearest keys if ``values`` has a key that is not known."""
    for key in values:
        if key not in known:
            label = f"{where}.{key}" if where else str(key)
            raise ConfigError(
                f"Unknown option '{label}'.",
                expected=", ".join(sorted(known)) or "no options",
                got=f"{label}={values[key]!r}",
                fix=nearest(str(key), known),
            )


def describe(annotation: Any) -> str:
    """A type in words a person would use."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in names:
        return names[annotation]
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(a) for a in arguments)
    if origin is Literal:
        return "one of " + ", ".join(repr(a) for a in arguments)
    if origin in (tuple, list):
        return "a list of " + describe(arguments[0])
    return getattr(annotation, "__name__", str(annotation))
