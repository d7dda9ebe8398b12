"""What the registry reads from the source is what Python would say of the components themselves."""

from __future__ import annotations

import importlib
import inspect
import typing
from dataclasses import replace

import pytest
from torch import nn

from trajgen.core import registry
from trajgen.core.errors import ConfigError
from trajgen.core.options import convert

BUILT_IN = sorted(registry._built_in())


@pytest.mark.parametrize(("kind", "name"), BUILT_IN)
def test_the_source_says_what_the_object_says(kind: str, name: str) -> None:
    read = registry.spec(kind, name)
    component = registry.component(kind, name)
    imported, registered = registry._registered[kind, name]
    assert component is registered is getattr(importlib.import_module(read.module), read.attribute)
    assert imported == replace(read, options=imported.options)
    assert [(o.name, o.default) for o in imported.options] == [(o.name, o.default) for o in read.options]
    hints = typing.get_type_hints(component.__init__ if inspect.isclass(component) else component)
    assert registry._types(read) == {o.name: hints[o.name] for o in read.options}


@pytest.mark.parametrize(("kind", "name"), BUILT_IN)
def test_defaults_are_of_the_type_they_declare(kind: str, name: str) -> None:
    read = registry.spec(kind, name)
    assert registry.complete(kind, read.defaults()) == read.defaults()
    parameters = inspect.signature(registry.component(kind, name)).parameters
    assert all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters.values())


def test_every_kind_has_a_component() -> None:
    assert all(registry.names(kind) for kind in registry.KINDS)


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, float, 1.0),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([1, 2.5], tuple[float, float], (1.0, 2.5)),
        (None, int | None, None),
        (3, int | None, 3),
        ({"a": 1}, dict[str, float], {"a": 1.0}),
        ("x", str | int, "x"),
    ],
)
def test_values_take_their_types(value: object, annotation: object, expected: object) -> None:
    converted = convert(value, annotation, "here")
    assert converted == expected and type(converted) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        ("1", int),
        (True, int),
        (1, bool),
        (1.5, int),
        (True, float),
        ("1e-3", float),
        ("ab", tuple[str, ...]),
        ([1, "x"], tuple[int, ...]),
        ([1], tuple[int, int]),
        (None, int),
        (5, str),
    ],
)
def test_other_types_are_refused(value: object, annotation: object) -> None:
    with pytest.raises(ConfigError, match="here") as caught:
        convert(value, annotation, "here")
    assert caught.value.expected


@pytest.mark.parametrize(
    ("kind", "name", "option", "value"),
    [
        ("prior", "transformer", "width", -1),
        ("prior", "diffusion", "dropout", 2.0),
        ("decoder", "adapter", "width", 0),
        ("critic", "value", "depth", 0),
        ("conditioner", "fields", "dropout", -1.0),
        ("conditioner", "fields", "fourier_frequencies", -1),
    ],
)
def test_sizes_and_shares_out_of_range_are_refused(kind: str, name: str, option: str, value: float) -> None:
    wiring = dict.fromkeys(registry.spec(kind, name).wiring)
    with pytest.raises(ConfigError, match=rf"{kind}\.{option} is out of range"):
        registry.build(kind, {"name": name, option: value}, **wiring)


def test_a_broken_installed_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        name, value, dist = "their_lab", "their_lab.parts", None

        def load(self) -> None:
            raise RuntimeError("no such device")

    monkeypatch.setattr(registry, "entry_points", lambda group: [Broken()])
    with pytest.raises(ConfigError, match="their_lab") as caught:
        registry.load_entry_points.__wrapped__()
    assert "their_lab.parts: RuntimeError: no such device" in str(caught.value.got)


def test_a_component_without_a_docstring_has_no_borrowed_one() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None: ...

    assert registry._from_object("sampler", "bare", Bare).summary == ""
