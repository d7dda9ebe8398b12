"""The figure of the path from data to actions: it shows what the default recipe composes, and what passes."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import path_figure
import pytest
import tables
from pages import DOCS

from trajgen.config import Config, compose
from trajgen.core import types


@pytest.fixture(scope="module")
def default() -> Config:
    return compose([])


def test_the_figure_shows_what_the_default_recipe_is(default: Config) -> None:
    picture = path_figure.PICTURE.read_text(encoding="utf-8")
    assert picture == path_figure.figure(default), "stale: python tests/docs/path_figure.py draws the figure anew"
    assert "images/path.svg" in (DOCS / "concepts.md").read_text(encoding="utf-8")


def test_the_figure_is_an_image_with_a_title_and_every_part_on_it(default: Config) -> None:
    root = ElementTree.fromstring(path_figure.figure(default))
    width, height = map(int, root.attrib["viewBox"].split()[2:])
    places = [(float(each.attrib["x"]), float(each.attrib["y"])) for each in root.iter() if "x" in each.attrib]
    assert all(0 <= x < width and 0 <= y < height for x, y in places)
    text = "".join(root.itertext())
    for kind, node in default.components.items():
        if kind not in ("view", "planner"):
            assert node["name"] in text, kind


def test_another_recipe_is_another_figure(default: Config) -> None:
    other = compose(["schedule=two_level", "data.horizon=64", "data.chunk=4"])
    changed, default_shapes = path_figure.shapes(other), path_figure.shapes(default)
    assert changed["schedule"] == (2, 8) and default_shapes["schedule"] == (1, 2, 4, 8)
    assert changed["codes"].shape == (2, 10) and default_shapes["codes"].shape == (2, 15)
    assert changed["x"].shape == (2, 64, 5) and changed["actions"].shape == (2, 4, 2)
    assert "(B, T, D) = (B, 64, 5)" in path_figure.figure(other)


def test_the_letters_of_the_page_are_those_of_the_code() -> None:
    rows = re.findall(r"^- \*\*([A-Z](?:, [A-Zl_k]+)*)\*\*", tables.letters(), re.MULTILINE)
    explained = {letter for row in rows for letter in row.split(", ")}
    shapes = (types.__doc__ or "").partition("Shapes: ")[2]
    assert {*re.findall(r"\b([A-Z]) [a-z]", shapes)} <= explained
