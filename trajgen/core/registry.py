"""The registry: components by kind and name, each described by its own signature.

A component is a class or a function. Its arguments before the ``*`` are *wiring*: values that follow from the
rest of the composition (the schedule, the code width, …) and are given by name. Its keyword-only arguments are
its *options*: what a recipe or the command line may set, with literal defaults.

The built-in components are found by reading their source, not by importing it, so that listing them and
composing a recipe cost no import of torch.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from trajgen.core.errors import ConfigError, nearest
from trajgen.core.options import convert, refuse_unknown

KINDS: dict[str, str] = {
    "view": "which features of a window the model sees",
    "schedule": "how many scales there are, and how long each is",
    "tokenizer": "trajectory to codes, scale by scale, and back to a latent",
    "conditioner": "what a plan is conditioned on, at which scale",
    "prior": "the distribution of codes given the condition",
    "decoder": "latent to trajectory",
    "action": "plan to action",
    "sampler": "how codes are drawn from the prior",
    "return_target": "the return-to-go that is asked for when acting",
    "planner": "the composition: stages of training and the making of a plan",
}
ROOMS = (
    "views",
    "schedules",
    "tokenizers",
    "conditioners",
    "priors",
    "decoders",
    "actions",
    "samplers",
    "return_targets",
    "planners",
)
ENTRY_POINTS = "trajgen.components"

C = TypeVar("C", bound=Callable[..., Any])


@dataclass(frozen=True)
class Option:
    """One option of a component: its name, its annotation as text, and its default."""

    name: str
    annotation: str
    default: Any


@dataclass(frozen=True)
class Spec:
    """What is known of a component without building it."""

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


_own: dict[tuple[str, str], tuple[Spec, Callable[..., Any]]] = {}


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
        found = _from_object(kind, name, component)
        taken = _built_in().get((kind, name)) or (_own[kind, name][0] if (kind, name) in _own else None)
        if taken and (taken.module, taken.attribute) != (found.module, found.attribute):
            raise ConfigError(
                f"The name '{name}' of kind '{kind}' is taken.",
                got=f"{found.module}.{found.attribute}, but it is {taken.module}.{taken.attribute}",
                fix=f'register it under another name: @register("{kind}", "my_{name}")',
            )
        _own[kind, name] = (found, component)
        return component

    return add


def check_kind(kind: str) -> None:
    """Raises a `ConfigError` that names the nearest kinds if ``kind`` is not one."""
    if kind not in KINDS:
        raise ConfigError(f"Unknown kind '{kind}'.", expected=", ".join(KINDS), got=kind, fix=nearest(kind, KINDS))


def names(kind: str) -> list[str]:
    """The names of all components of a kind, sorted."""
    check_kind(kind)
    return sorted({n for k, n in (*_built_in(), *_own) if k == kind})


def spec(kind: str, name: str) -> Spec:
    """What is known of a component.

    Raises:
        ConfigError: if there is none of this name; the nearest names are given.
    """
    check_kind(kind)
    found = _built_in().get((kind, name)) or (_own[kind, name][0] if (kind, name) in _own else None)
    if found is None:
        raise ConfigError(
            f"There is no {kind} '{name}'.",
            expected=", ".join(names(kind)),
            got=f"{kind}={name}",
            fix=f"{nearest(name, names(kind))} (own components need imports=[…]; see 'trajgen list {kind}')",
        )
    return found


def component(kind: str, name: str) -> Callable[..., Any]:
    """The registered class or function itself, imported now if it was not yet."""
    found = spec(kind, name)
    if (kind, name) not in _own:
        importlib.import_module(found.module)
    return _own[kind, name][1]


def complete(kind: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration node with every option present and of the right type.

    Raises:
        ConfigError: for an unknown component, an unknown option, or a value of the wrong type.
    """
    if not isinstance(node, Mapping) or "name" not in node:
        raise ConfigError(f"The recipe has no {kind}.", expected=", ".join(names(kind)), got=node, fix=f"{kind}=NAME")
    found = spec(kind, node["name"])
    options = {k: v for k, v in node.items() if k != "name"}
    refuse_unknown(options, {o.name: o for o in found.options}, kind)
    target = component(kind, found.name)
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    checked = {k: convert(v, hints.get(k, Any), f"{kind}.{k}") for k, v in options.items()}
    return {**found.defaults(), **checked}


def build(kind: str, node: Mapping[str, Any], **wiring: Any) -> Any:
    """Builds the component that ``node`` names, with its options and the wiring it asks for.

    Args:
        kind: one of `KINDS`.
        node: ``{"name": …, option: value, …}``.
        wiring: values by name; those that the component does not ask for are left out.

    Raises:
        ConfigError: for an unknown component or option, a wrong type, or wiring that nothing provides.
    """
    options = complete(kind, node)
    found = spec(kind, options.pop("name"))
    missing = [w for w in found.wiring if w not in wiring]
    if missing:
        raise ConfigError(
            f"{kind} '{found.name}' asks for {', '.join(missing)} before its '*', which nothing provides.",
            expected=f"only {', '.join(sorted(wiring))}",
            fix="make it keyword-only with a default, so that it is an option",
        )
    return component(kind, found.name)(**{w: wiring[w] for w in found.wiring}, **options)


def load_imports(modules: Iterable[str]) -> None:
    """Imports the user's own modules, which register their components.

    Raises:
        ConfigError: if a name is not that of a module, or a module cannot be found.
    """
    if os.getcwd() not in sys.path:  # a console script does not look where it is run
        sys.path.append(os.getcwd())
    for module in modules:
        if not all(part.isidentifier() for part in module.split(".")):
            raise ConfigError(
                "imports=[…] lists modules by their dotted names.",
                expected="for example imports=[my_lab.parts]",
                got=f"{module!r}",
                fix="name the module as Python's import statement would",
            )
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"Cannot import '{module}', named in imports=[…].",
                expected="a module on Python's path",
                got=str(error),
                fix="run from the folder that holds it, or install its package",
            ) from error


def load_entry_points() -> None:
    """Imports the modules that installed packages offer under the entry point ``trajgen.components``.

    Raises:
        ConfigError: if one of them fails; it is named.
    """
    for point in entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as error:  # whatever an installed package does when it is imported
            raise ConfigError(
                f"The installed package behind the entry point '{point.name}' cannot be imported.",
                expected=f"a module that registers components: {point.value}",
                got=f"{type(error).__name__}: {error}",
                fix="mend that package, or uninstall it",
            ) from error


@cache
def _built_in() -> dict[tuple[str, str], Spec]:
    root = Path(__file__).resolve().parents[1]
    files = [f for room in ROOMS for f in (root / f"{room}.py", *sorted((root / room).glob("*.py")))]
    found: dict[tuple[str, str], Spec] = {}
    for file in (f for f in files if f.is_file()):
        module = ".".join(("trajgen", *file.relative_to(root).with_suffix("").parts))
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                for call in node.decorator_list:
                    if isinstance(call, ast.Call) and getattr(call.func, "id", None) == "register":
                        kind, name = (ast.literal_eval(a) for a in call.args)
                        found[kind, name] = _from_source(kind, name, module, node)
    return found


def _from_source(kind: str, name: str, module: str, node: ast.ClassDef | ast.FunctionDef) -> Spec:
    wiring: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()
    functions = [node] if isinstance(node, ast.FunctionDef) else node.body
    for function in functions:
        if isinstance(function, ast.FunctionDef) and function.name in ("__init__", node.name):
            arguments = function.args
            wiring = tuple(a.arg for a in arguments.args if a.arg != "self")
            options = tuple(
                Option(a.arg, ast.unparse(a.annotation) if a.annotation else "", ast.literal_eval(d))
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
        annotation = "" if p.annotation is p.empty else p.annotation
        options.append(Option(p.name, getattr(annotation, "__name__", str(annotation)), p.default))
    summary = _first_line(inspect.cleandoc(component.__doc__ or ""))  # its own, not one it inherits
    return Spec(kind, name, component.__module__, component.__qualname__, summary, wiring, tuple(options))


def _first_line(doc: str | None) -> str:
    return (doc or "").strip().split("\n", 1)[0]
