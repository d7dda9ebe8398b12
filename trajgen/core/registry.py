"""The registry: components by kind and name, each described by its own signature.

A component is a class or a function. Its arguments before the ``*`` are *wiring*: values that follow from the
rest of the composition (the schedule, the code width, …), passed by name. Its keyword-only arguments are its
*options*: what a recipe or the command line may set, with literal defaults.

The built-in components are found by parsing their source, so that listing and composing do not import torch.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import math
import os
import sys
import traceback
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from trajgen.core.checks import check_range
from trajgen.core.errors import ConfigError, TrajgenError, unknown_name
from trajgen.core.options import convert, unknown_option
from trajgen.core.renamed import new_name, new_value

KINDS: dict[str, str] = {
    "encoder": "image to features, which are a part of the state",
    "view": "which features of a window the model sees",
    "schedule": "how many scales there are, and how long each is",
    "tokenizer": "trajectory to codes, scale by scale, and back to a latent",
    "conditioner": "what a plan is conditioned on, at which scale",
    "prior": "the distribution of codes given the condition",
    "decoder": "latent to trajectory",
    "action": "plan to action",
    "critic": "what a plan is worth, where several are chosen among",
    "sampler": "how codes are drawn from the prior",
    "return_target": "the target return-to-go when acting",
    "subgoal": "the goal that a plan is made for, on the way to the episode's own",
    "planner": "the composition: stages of training and the making of a plan",
}
ROOMS = tuple(f"{kind}s" for kind in KINDS)
"""The modules and packages of trajgen in which components are."""
ENTRY_POINTS = "trajgen.components"
RANGES = {
    "width": (1, math.inf),
    "depth": (1, math.inf),
    "bottleneck": (1, math.inf),
    "expansion": (0.1, math.inf),
    "fourier_frequencies": (0, math.inf),
    "dropout": (0, 1),
}
"""The lowest and highest values of options of these names, in all built-in components."""

C = TypeVar("C", bound=Callable[..., Any])


@dataclass(frozen=True)
class Option:
    """One option of a component: its name, its annotation as text, and its default."""

    name: str
    annotation: str
    default: Any


@dataclass(frozen=True)
class Spec:
    """A component as its signature describes it, without building it."""

    kind: str
    name: str
    module: str
    attribute: str
    summary: str
    wiring: tuple[str, ...]
    options: tuple[Option, ...]

    def defaults(self) -> dict[str, Any]:
        """The component's configuration node: its name and its options' defaults."""
        return {"name": self.name, **{o.name: o.default for o in self.options}}


_registered: dict[tuple[str, str], tuple[Spec, Callable[..., Any]]] = {}
"""The components whose modules have been imported, by kind and name."""


def register(kind: str, name: str) -> Callable[[C], C]:
    """Makes a class or function available to recipes as ``kind: {name: …}``.

    Args:
        kind: one of `KINDS`.
        name: the name that recipes use; it must not be taken.

    Raises:
        ConfigError: if the kind is unknown or the name is taken by another component.
    """
    check_kind(kind)

    def add(component: C) -> C:
        new, existing = _from_object(kind, name, component), _find(kind, name)
        if existing and (existing.module, existing.attribute) != (new.module, new.attribute):
            raise ConfigError(
                f"The name '{name}' of kind '{kind}' is taken.",
                got=f"{new.module}.{new.attribute}, but it is {existing.module}.{existing.attribute}",
                fix=f'@register("{kind}", "my_{name}")',
            )
        _registered[kind, name] = (new, component)
        return component

    return add


def check_kind(kind: str) -> None:
    """Raises a `ConfigError` that names the nearest kinds if ``kind`` is not one."""
    if kind not in KINDS:
        raise unknown_name(f"Unknown kind '{kind}'.", new_name(kind) or kind, KINDS)


def names(kind: str) -> list[str]:
    """The names of all components of a kind, sorted."""
    check_kind(kind)
    return sorted({n for k, n in (*_built_in(), *_registered) if k == kind})


def spec(kind: str, name: str) -> Spec:
    """The description of a component.

    Raises:
        ConfigError: if there is none of this name; the nearest names are given.
    """
    check_kind(kind)
    description = _find(kind, name)
    if description is None:
        rule = f"There is no {kind} '{name}'."
        if new := new_value(kind, name):
            raise ConfigError(rule, fix=f"{kind}={new}")
        hint = f"own components need imports=[…]; see 'trajgen list {kind}'"
        raise unknown_name(rule, str(name), names(kind), hint)
    return description


def owners(kind: str, option: str) -> str:
    """Which components of a kind have an option, for a message; empty if none has."""
    components = [f"{kind}={name}" for name in names(kind) if option in (o.name for o in spec(kind, name).options)]
    return f"{' and '.join(components)} {'has' if len(components) == 1 else 'have'} {option}" if components else ""


def component(kind: str, name: str) -> Callable[..., Any]:
    """The registered class or function itself, imported now if it was not yet."""
    description = spec(kind, name)
    if (kind, name) not in _registered:
        importlib.import_module(description.module)
    return _registered[kind, name][1]


def complete(kind: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration node with every option present and of the right type.

    Raises:
        ConfigError: for an unknown component, an unknown option, or a value of the wrong type.
    """
    if not isinstance(node, Mapping) or not isinstance(node.get("name"), str):
        raise ConfigError(f"The {kind} has no name.", got=f"{kind}={node!r:.100}", fix=f"{kind}={names(kind)[0]}")
    description = spec(kind, node["name"])
    options = {k: v for k, v in node.items() if k != "name"}
    option_names = [o.name for o in description.options]
    for option in (name for name in options if name not in option_names):
        raise unknown_option(f"{kind}.{option}", option_names, options[option], owners(kind, option))
    hints = _types(description)
    return {**description.defaults(), **{k: convert(v, hints.get(k, Any), f"{kind}.{k}") for k, v in options.items()}}


def build(kind: str, node: Mapping[str, Any], **wiring: Any) -> Any:
    """Builds the component that ``node`` names, with its options and the wiring that it takes.

    Args:
        kind: one of `KINDS`.
        node: ``{"name": …, option: value, …}``.
        wiring: values by name; those that the component does not take are left out.

    Raises:
        ConfigError: for an unknown component or option, a wrong type, a value out of range, or wiring that nothing
            provides.
    """
    options = complete(kind, node)
    description = spec(kind, options.pop("name"))
    missing = [w for w in description.wiring if w not in wiring]
    if missing:
        raise ConfigError(
            f"{kind} '{description.name}' requires {', '.join(missing)} before its '*', which nothing provides.",
            expected=f"only {', '.join(sorted(wiring))}",
            fix="make it keyword-only with a default, so that it is an option",
        )
    if (kind, description.name) in _built_in():
        for option in description.options:
            if option.name in RANGES:
                check_range(f"{kind}.{option.name}", options[option.name], *RANGES[option.name], usual=option.default)
    return component(kind, description.name)(**{w: wiring[w] for w in description.wiring}, **options)


def load_imports(modules: Iterable[str]) -> None:
    """Imports the user's own modules, which register their components, from the current folder or installed packages.

    Raises:
        ConfigError: if a name is not that of a module, or a module cannot be found or raises.
    """
    for module in modules:
        text = str(module)
        if text.endswith(".py") or not _is_dotted(text):
            dotted = text.removesuffix(".py").removeprefix("./").replace("/", ".")
            raise ConfigError(
                "imports=[…] lists modules by their dotted names.",
                got=f"{module!r}",
                fix=f"imports=[{dotted if _is_dotted(dotted) else 'my_lab.parts'}]",
            )
        if os.getcwd() not in sys.path:  # a console script does not look there; installed packages come first
            sys.path.append(os.getcwd())
        try:
            importlib.import_module(module)
        except TrajgenError:
            raise
        except Exception as error:  # whatever a module does when it is imported
            fix = f"correct {_location_of(error)}"
            if isinstance(error, ModuleNotFoundError) and error.name:
                is_itself = f"{module}.".startswith(f"{error.name}.")
                fix = "run from the folder that holds it, or install its package"
                fix = fix if is_itself else f"install {error.name}, which it imports"
            raise ConfigError(
                f"Cannot import '{module}', named in imports=[…].", got=f"{type(error).__name__}: {error}", fix=fix
            ) from error


def _is_dotted(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _location_of(error: Exception) -> str:
    """File and line of an error that a module raised when it was imported."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}, line {frame.lineno}"


@cache
def load_entry_points() -> None:
    """Imports, once, the modules that installed packages offer under the entry point ``trajgen.components``.

    The metadata of a package in the current folder is ignored: the folder may be a stranger's.

    Raises:
        ConfigError: if one of them fails; it is named.
    """
    for point in entry_points(group=ENTRY_POINTS):
        if point.dist is not None and Path(str(point.dist.locate_file(""))).resolve() == Path.cwd().resolve():
            continue
        try:
            point.load()
        except Exception as error:  # whatever an installed package does when it is imported
            raise ConfigError(
                f"The installed package behind the entry point '{point.name}' cannot be imported.",
                got=f"{point.value}: {type(error).__name__}: {error}",
                fix="repair that package, or uninstall it",
            ) from error


def _find(kind: str, name: str) -> Spec | None:
    return _built_in().get((kind, name)) or (_registered[kind, name][0] if (kind, name) in _registered else None)


def _types(description: Spec) -> dict[str, Any]:
    """The types of the options. Annotations of built-in components name nothing but builtins and Literal."""
    if (description.kind, description.name) in _built_in():
        return _built_in_types(description.kind, description.name)
    target = _registered[description.kind, description.name][1]
    return {option.name: type_of(target, option.name) for option in description.options}


def type_of(component: Callable[..., Any], name: str) -> Any:
    """The type of an argument of a component, or of what a function returns, by its annotation; Any without one.

    Raises:
        ConfigError: if the annotation names what is not there when the program runs.
    """
    function = inspect.unwrap(component.__init__ if inspect.isclass(component) else component)
    annotation = getattr(function, "__annotations__", {}).get(name, Any)
    alone = SimpleNamespace(__annotations__={name: annotation})  # others may be for type checkers only
    try:
        return typing.get_type_hints(alone, getattr(function, "__globals__", {}))[name]
    except Exception as error:  # whatever the evaluation of an annotation raises
        raise ConfigError(
            f"The annotation of '{name}' cannot be read.",
            got=f"{component.__module__}.{component.__qualname__}: {name}: {annotation} ({error})",
            fix="import what it names outside of 'if TYPE_CHECKING:'",
        ) from error


@cache
def _built_in_types(kind: str, name: str) -> dict[str, Any]:
    options = _built_in()[kind, name].options
    return {o.name: eval(o.annotation, {"Literal": typing.Literal, "Any": Any}) for o in options}


@cache
def _built_in() -> dict[tuple[str, str], Spec]:
    root = Path(__file__).resolve().parents[1]
    files = [f for room in ROOMS for f in (root / f"{room}.py", *sorted((root / room).glob("*.py"))) if f.is_file()]
    specs: dict[tuple[str, str], Spec] = {}
    for file in files:
        module = ".".join(("trajgen", *file.relative_to(root).with_suffix("").parts))
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            for call in getattr(node, "decorator_list", ()):
                if isinstance(call, ast.Call) and getattr(call.func, "id", None) == "register":
                    kind, name = (ast.literal_eval(a) for a in call.args)
                    specs[kind, name] = _from_source(kind, name, module, typing.cast(ast.ClassDef, node))
    return specs


def _from_source(kind: str, name: str, module: str, node: ast.ClassDef | ast.FunctionDef) -> Spec:
    wiring: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()
    for function in [node] if isinstance(node, ast.FunctionDef) else node.body:
        if isinstance(function, ast.FunctionDef) and function.name in ("__init__", node.name):
            arguments = function.args
            wiring = tuple(a.arg for a in arguments.args if a.arg != "self")
            options = tuple(
                Option(a.arg, ast.unparse(a.annotation) if a.annotation else "Any", ast.literal_eval(d))
                for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
                if d is not None
            )
    return Spec(kind, name, module, node.name, _first_line(ast.get_docstring(node)), wiring, options)


def _from_object(kind: str, name: str, component: Callable[..., Any]) -> Spec:
    parameters = list(inspect.signature(component).parameters.values())
    wiring = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    options = []
    for p in (p for p in parameters if p.kind is p.KEYWORD_ONLY):
        if p.default is p.empty:
            raise ConfigError(f"Option '{p.name}' of {kind} '{name}' has no default.", fix=f"{p.name}: … = value")
        try:
            json.dumps(p.default)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"The default of option '{p.name}' of {kind} '{name}' cannot be written into a recipe.",
                expected="a number, a text, true, false, None, or a tuple of those",
                got=f"{p.default!r:.100}",
                fix="what follows from other parts belongs before the '*'",
            ) from error
        annotation = "" if p.annotation is p.empty else p.annotation
        options.append(Option(p.name, getattr(annotation, "__name__", str(annotation)), p.default))
    summary = _first_line(inspect.cleandoc(component.__doc__ or ""))  # its own, not one it inherits
    return Spec(kind, name, component.__module__, component.__qualname__, summary, wiring, tuple(options))


def _first_line(doc: str | None) -> str:
    return (doc or "").strip().split("\n", 1)[0]
