"""``key=value`` words: the options of a command as a dataclass, and the rest as overrides of a composition."""

from __future__ import annotations

import ast
import json
import os
import re
import sys
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from trajgen.core.errors import ConfigError, unknown_name
from trajgen.core.options import convert, value_of, values_of
from trajgen.core.registry import KINDS, names

T = TypeVar("T", bound=Hashable)
COMPOSITION = (*KINDS, "data", "policy", "engine", "evaluation")
"""Components and the groups of options beside them."""
PLACEHOLDERS = {Path: "PATH", int: "N", float: "X", str: "TEXT", tuple: "[A,B]", dict: "{A: B}"}


@dataclass(frozen=True)
class Option:
    """An option of a command.

    Args:
        label: with its default or a placeholder, as ``seed=0`` or ``out=PATH``.
        doc: the docstring below its field.
        field: name of the field; it ends in an underscore where Python reserves the option's name.
        hint: its annotation.
        values: those that its annotation names: of a Literal, of a bool, or suggested by ``Annotated``.
        is_required: whether it has no default.
    """

    label: str
    doc: str
    field: str
    hint: Any
    values: tuple[str, ...]
    is_required: bool


@cache
def options_of(cls: Any) -> dict[str, Option]:
    """The options of a dataclass by the name that is typed."""
    docs = {name: doc for base in reversed(cls.__mro__[:-1]) for name, doc in _docs(base).items()}
    hints, options = get_type_hints(cls, include_extras=True), {}
    for field in fields(cls):
        name, hint = field.name.rstrip("_"), hints[field.name]
        suggested = getattr(hint, "__metadata__", ())
        hint = hint.__origin__ if suggested else hint
        types = _alternatives(hint)
        literals = tuple(value for each in types if get_origin(each) is Literal for value in get_args(each))
        default, kind = field.default, types[0]
        if default is MISSING or default is None:
            text = PLACEHOLDERS.get(get_origin(kind) or kind, "VALUE")
        else:
            text = default if isinstance(default, str) else json.dumps(default, separators=(",", ":"))
        doc = docs.get(field.name, "") + (f" One of {', '.join(literals)}." if literals[1:] else "")
        values = ("true", "false") if hint is bool else suggested or literals
        is_required = default is MISSING and field.default_factory is MISSING
        options[name] = Option(f"{name}={text}", doc, field.name, hint, values, is_required)
    return options


def read(words: Iterable[str], cls: type[T], groups: Collection[str] | None = None) -> tuple[T, list[str]]:
    """Takes the options of a command out of its words.

    Paths and texts are taken as they stand after the first ``=``; other values are YAML. One value is a list of one.

    Args:
        words: of the command line.
        cls: dataclass of the options.
        groups: first parts of the keys of other words; None where Hydra reads those.

    Returns:
        The options, and the other words.

    Raises:
        ConfigError: for a word that is not ``key=value``, an unknown or missing option, or a value that does not fit.
    """
    options, values, rest = options_of(cls), dict[str, Any](), list[str]()
    words = list(words)
    for number, word in enumerate(words):
        key, equals, _ = word.partition("=")
        if equals and key in options:
            values[options[key].field] = _value(word, options[key].hint)
        elif not key or not (equals or (groups is None and word.startswith("~"))):
            raise bare_word(word, options, words[number + 1 :])
        elif groups is None or key.partition(".")[0] in groups:
            rest.append(word)
        else:
            from trajgen.config import suggestion

            rule, close = f"Unknown option '{key}'.", suggestion(key, groups or ())
            raise ConfigError(rule, fix=close) if close else unknown_name(rule, key, [*options, *(groups or ())])
    for key, option in options.items():
        if option.is_required and option.field not in values:
            raise ConfigError(f"The command needs {key}=….", fix=f"add {option.label}")
    return cls(**values), rest


def parse(words: Iterable[str]) -> dict[str, Any]:
    """``a.b=1`` as ``{"a": {"b": 1}}``; a component named alone, ``sampler=greedy``, as ``{"name": "greedy"}``.

    Raises:
        ConfigError: for a word that is not ``key=value``, or whose value is not YAML.
    """
    words = list(words)
    if bare := [word for word in words if "=" not in word or word.startswith("=")]:
        raise bare_word(bare[0], {})
    return values_of(words)


def dashed(words: Sequence[str], options: Mapping[str, Option], groups: Collection[str]) -> None:
    """Raises a `ConfigError` for an option that is written as a flag, ``--recipe mage`` or ``--recipe=mage``."""
    for number, word in enumerate(words):
        key, equals, value = word.lstrip("-").partition("=")
        key = key.replace("-", "_")
        if word.startswith("-") and (key in options or (len(key) > 1 and key.partition(".")[0] in groups)):
            value = value if equals else _following(words[number + 1 :], options.get(key))
            raise ConfigError("Options are written key=value, without dashes.", got=word, fix=f"{key}={value}")


def _following(words: Sequence[str], option: Option | None) -> str:
    """The value of an option that was written without ``=``: the next word, or ``true``."""
    value = next((word for word in words if word != "="), "")
    if option is not None and option.values == ("true", "false"):
        return value if value in option.values else "true"
    return "…" if not value or "=" in value or value.startswith("-") else value


def bare_word(word: str, options: Mapping[str, Option], following: Sequence[str] = ()) -> ConfigError:
    """The error for a word without ``=``, with the option that it seems to be the name or the value of.

    Args:
        word: of the command line.
        options: of the command.
        following: the words after it, such as ``=`` and a value.
    """
    from trajgen import config

    values: dict[str, Collection[str]] = {
        "recipe": config.recipe_files(),
        "data": config.data_files(),
        "study": config.study_files(),
        "search": config.search_files(),
        "run": [word] if os.path.isfile(Path(word) / "config.json") else [],
    }
    keys = [key for key in values if key in options and word in values[key]]
    keys += [kind for kind in KINDS if word in names(kind)]
    fix = f"{keys[0]}={word}" if keys else f"for example {next(iter(options), 'recipe')}={word}"
    fix = f"{word}={_following(following, options[word])}" if word in options else fix
    return ConfigError(f"Options are written key=value, not '{word}'.", fix=fix)


def _docs(cls: type) -> dict[str, str]:
    """The docstrings below the fields of a class, read from the source of its module."""
    tree = ast.parse(Path(str(sys.modules[cls.__module__].__file__)).read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__)
    return {
        node.target.id: " ".join(str(below.value.value).split())
        for node, below in pairwise(body)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _value(word: str, hint: Any) -> Any:
    key, _, text = word.partition("=")
    types = _alternatives(hint)
    if Path in types:
        return Path(text)
    is_list = any(get_origin(each) is tuple for each in types)
    literals = [value for each in types if get_origin(each) is Literal for value in get_args(each)]
    if is_list and re.fullmatch(r"\d+(,\d+)+", text):
        raise _a_list(word)
    if str in types and not (is_list and text.startswith("[")):
        return None if NoneType in types and text == "null" else text
    value = value_of(word)
    if is_list and value is not None and not isinstance(value, list):
        if isinstance(value, str) and "," in value:
            raise _a_list(word)
        value = value if value in literals else [value]
    return convert(value, hint, key)


def _a_list(word: str) -> ConfigError:
    key, _, text = word.partition("=")
    return ConfigError("Several values are a list.", got=word, fix=f"'{key}=[{text}]'")
