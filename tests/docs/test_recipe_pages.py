"""The pages of the recipes: their lists name what the recipe composes, and code that exists."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import pytest
from pages import DOCS, ROOT, commands

from trajgen.config import read_options, recipe_files
from trajgen.core.registry import KINDS, spec

ROW = re.compile(r"^- `([^`]+)`, \[`([\w.]+)`\]\[([\w.]+)\]: .+$", re.MULTILINE)
PAPER = re.compile(r"\d{4}\.\d{5}")
ELSEWHERE = ("policy", "engine", "data")
"""Sections of a recipe that a row can speak of instead of a component."""


def text_of(name: str) -> str:
    return (DOCS / "recipes" / f"{name}.md").read_text(encoding="utf-8")


def listed(name: str) -> list[tuple[str, str]]:
    """The rows of a recipe's list: the component, and the code's dotted name.

    A page may name another one that has the rows of its other components.
    """
    section = text_of(name).partition("\n## Components\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("- ")]
    rows = ROW.findall("\n".join(lines))
    form = "a row is: - `kind: name`, [`end`][dotted.name]: what the paper says"
    assert len(rows) == len(lines) and all(path.endswith(name) for _, name, path in rows), form
    components = [(part, path) for part, _, path in rows]
    other = re.search(r"The other parts are \[`\w+`\]\((\w+)\.md#components\)", section)
    shared = composed(name) - {part for part, _ in components}
    return components + ([row for row in listed(other[1]) if row[0] in shared] if other else [])


def composed(name: str) -> set[str]:
    """The components that a recipe's file names."""
    nodes = read_options("recipe", recipe_files()[name])
    return {f"{kind}: {nodes[kind]['name']}" for kind in KINDS if kind in nodes}


def resolved(path: str) -> Any:
    """What a dotted name is: a class, a function or a method of the package."""
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            value = inspect.getattr_static(value, part)
        return value
    raise AssertionError(f"no module of {path}")


def test_every_recipe_has_a_page_and_every_page_a_recipe() -> None:
    assert {path.stem for path in (DOCS / "recipes").glob("*.md")} == {*recipe_files()}
    for page in (ROOT / "mkdocs.yml", DOCS / "recipes.md"):
        text = page.read_text(encoding="utf-8")
        assert all(f"recipes/{name}.md" in text for name in recipe_files()), page


@pytest.mark.parametrize("name", recipe_files())
def test_a_list_names_all_that_the_recipe_composes_and_nothing_else(name: str) -> None:
    named = {component for component, _ in listed(name)}
    assert named - {*ELSEWHERE} == composed(name)


@pytest.mark.parametrize("name", recipe_files())
def test_a_list_leads_to_the_code_of_each_component(name: str) -> None:
    rows = listed(name)
    for component, path in rows:
        assert callable(resolved(path)) or isinstance(resolved(path), (classmethod, staticmethod)), path
        assert path.startswith("trajgen."), component
    for component in composed(name):
        module = spec(*component.split(": ")).module
        assert any(path.startswith(f"{module}.") for other, path in rows if other == component), component


@pytest.mark.parametrize("name", recipe_files())
def test_a_page_has_source_command_figures_differences_and_variants(name: str) -> None:
    text = text_of(name)
    assert {*PAPER.findall(recipe_files()[name].read_text(encoding="utf-8"))} <= {*PAPER.findall(text)}
    assert "](../results.md#" in text
    assert "## What differs" in text
    shown = commands(DOCS / "recipes" / f"{name}.md")
    assert shown[0][:2] == ["train", f"recipe={name}"]
    variants = text.partition("\n## Vary it\n")[2]
    assert variants.count("\ntrajgen train ") >= 2


def test_a_code_name_that_is_gone_is_noticed() -> None:
    assert inspect.isclass(resolved("trajgen.views.FieldView"))
    with pytest.raises(AttributeError):
        resolved("trajgen.views.FieldView.nothing_of_this_name")
    with pytest.raises(AttributeError):
        resolved("trajgen.no_room.Thing")
