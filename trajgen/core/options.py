"""Checking plain values against annotations: the one place where options get their types."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import cache
from typing import Any, Literal, TypeVar

from trajgen.core.errors import ConfigError, nearest, unknown_name
from trajgen.core.renamed import new_value, replacement

T = TypeVar("T")
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


@cache
def yaml_loader() -> Any:
    """A loader of plain YAML that reads 1e-4 as a number, as YAML 1.2 and Hydra do; in C where it was built."""
    import yaml

    loader: Any = type("Loader", (getattr(yaml, "CSafeLoader", yaml.SafeLoader),), {})
    exponent = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
    loader.add_implicit_resolver("tag:yaml.org,2002:float", exponent, list("-+0123456789"))
    return loader


def value_of(word: str) -> Any:
    """The value of ``key=value``, which is plain YAML.

    Raises:
        ConfigError: if it cannot be read.
    """
    import yaml

    try:
        return yaml.load(word.partition("=")[2], Loader=yaml_loader())
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # of 5000 digits or brackets, or no such day
        raise ConfigError(f"The value of '{word}' cannot be read.", fix="close every bracket and quote") from error


def values_of(words: Iterable[str]) -> dict[str, Any]:
    """``key=value`` words as nested plain values: ``["a.b=1"]`` as ``{"a": {"b": 1}}``; see `value_of` and `nested`."""
    return nested((word.partition("=")[0], value_of(word)) for word in words)


def nested(words: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Dotted options as groups: ``("a.b", 1)`` becomes ``{"a": {"b": 1}}``.

    A component named alone, ``("sampler", "greedy")``, becomes ``{"sampler": {"name": "greedy"}}``.

    Raises:
        ConfigError: if an option is a value and a group.
    """
    from trajgen.core.registry import KINDS

    values: dict[str, Any] = {}
    for key, value in words:
        node, *path = values, *key.split(".")
        content = {"name": value} if key in KINDS and isinstance(value, str) else deepcopy(value)
        for part in path if isinstance(content, Mapping) else path[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                group = key.rpartition(".")[0]
                got, fix = f"a value of {group}, and {key}={value}", f"leave out {group} or {key}"
                raise ConfigError("An option is a value or a group, not both.", got=got, fix=fix)
        if isinstance(content, Mapping):
            node |= content
        else:
            node[path[-1]] = content
    return values


def convert(value: Any, annotation: Any, where: str) -> Any:
    """Returns ``value`` as ``annotation`` says.

    Knows int, float, bool, str, None, unions, Literal, tuple, list, dict and dataclasses of those. A whole number is
    accepted as a float; text is never accepted as a number.

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
            with suppress(ConfigError):
                return convert(value, choice, where)
    elif origin is Literal:
        if value in arguments:
            return value
    elif origin in (tuple, list) and isinstance(value, Sequence) and not isinstance(value, str):
        inner = arguments[0] if origin is list or (len(arguments) == 2 and arguments[1] is ...) else None
        if inner is not None or len(value) == len(arguments):
            inners = arguments if inner is None else [inner] * len(value)
            return origin(convert(v, a, f"{where}[{i}]") for i, (v, a) in enumerate(zip(value, inners, strict=True)))
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
        fix=f"{where}={new}" if (new := new_value(where, value)) else _choice(value, annotation, where),
    )


def _choice(value: Any, annotation: Any, where: str) -> str:
    """What to type in the place of a value: the nearest of those that the annotation lists, if it does."""
    if typing.get_origin(annotation) is Literal and isinstance(value, str):
        close = nearest(value, [choice for choice in typing.get_args(annotation) if isinstance(choice, str)])
        if close.startswith("did"):
            return close
    return f"leave {where} out for its default"


def structure(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Builds the dataclass ``cls`` from plain values; ``where`` is its dotted name, for messages."""
    hints = typing.get_type_hints(cls)
    fields = [f for f in dataclasses.fields(typing.cast(Any, cls)) if f.init]
    refuse_unknown(values, [f.name for f in fields], where)
    prefix = f"{where}." if where else ""
    required = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [name for name in required if name not in values]:
        raise ConfigError(f"'{where}' needs {', '.join(missing)}.", fix=f"{prefix}{missing[0]}=…")
    return cls(**{k: convert(v, hints[k], f"{prefix}{k}") for k, v in values.items()})


def refuse_unknown(values: Mapping[str, Any], options: Iterable[str], where: str) -> None:
    """Raises a `ConfigError` for a key of ``values`` that is none of ``options``, with its new or the nearest name."""
    options = list(options)
    for key, value in values.items():
        if key not in options:
            raise unknown_option(f"{where}.{key}" if where else str(key), options, value)


def unknown_option(name: str, options: Iterable[str], value: Any = None, hint: str = "") -> ConfigError:
    """The error for an option ``name``, given by its dotted name, beside which there are ``options``."""
    if new := replacement(name, value):
        return ConfigError(f"Option '{name}' has another name since 0.1.", fix=new)
    return unknown_name(f"Unknown option '{name}'.", name.rpartition(".")[2], sorted(options), hint)


def entry(values: Any, path: Iterable[str]) -> Any:
    """The value at a path of keys in nested plain values; None where there is none."""
    for key in path:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def flat(values: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name and the value of each option of nested plain values."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def differing(one: Mapping[str, Any], two: Mapping[str, Any], where: str = "") -> list[str]:
    """The options in which nested plain values differ, by their dotted names, each with both values."""
    lines = []
    for key in sorted({*one, *two}):
        a, b = one.get(key), two.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differing(a, b, f"{where}{key}.")
        elif a != b:
            lines.append(f"{where}{key}={_text(a)} there, {_text(b)} here")
    return lines


def _text(value: Any) -> str:
    if isinstance(value, Mapping) and "name" in value:
        return str(value["name"])
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def describe(annotation: Any) -> str:
    """A type in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in WORDS:
        return WORDS[annotation]
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(a) for a in arguments)
    if origin is Literal:
        return "one of " + ", ".join(repr(a) for a in arguments)
    if origin in (tuple, list):
        return "a list of " + describe(arguments[0])
    return getattr(annotation, "__name__", str(annotation))
