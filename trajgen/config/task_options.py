"""What a task needs of a recipe: options that a data preset names by recipe, and that are composed with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trajgen.config.files import DEFAULTS, RECIPES, find_file, read_options, read_yaml
from trajgen.core.errors import ConfigError
from trajgen.core.registry import KINDS

RECIPES_KEY = "recipes"
"""The key of a data preset under which options stand by recipe: ``recipes: {mage: [policy.replan_interval=1]}``."""
SWITCH = "task_options"
SECTIONS = ("data", "policy", "engine", *KINDS)
PLAIN_NAME = re.compile(r"[-\w/.]+")


def task_options(words: Sequence[str], folders: Sequence[Path] = ()) -> list[str]:
    """The options that the data preset of a command line has for its recipe, and for recipes that it inherits.

    An option that the words set themselves is left out, and so are the options of a component that they replace. Of
    two that set the same, that of the nearer recipe counts.

    Args:
        words: ``key=value``, as for ``trajgen train``.
        folders: of recipes and presets of the user's own.

    Raises:
        ConfigError: if the preset's options are not a list of ``key=value`` for each recipe.
    """
    chosen = _chosen(words)
    recipe = _file("recipe", chosen["recipe"], folders)
    if chosen.get(SWITCH) == "false" or recipe is None:  # a missing file, or several values of a sweep: said elsewhere
        return []
    by_recipe = options_by_recipe(words, folders)
    options = [option for name in reversed(_lineage(recipe, folders)) for option in by_recipe.get(name, ())]
    nearest = {option.partition("=")[0]: option for option in options}
    return [word for word in nearest.values() if not _names(word) & set(chosen)]


def options_by_recipe(words: Sequence[str], folders: Sequence[Path] = ()) -> dict[str, list[str]]:
    """The options that the data preset of a command line has for recipes, by the recipe's name.

    Raises:
        ConfigError: if they are not a list of ``key=value`` for each recipe.
    """
    data = _file("data", _chosen(words)["data"], folders)
    by_recipe: dict[str, list[str]] = (data and read_options("data", data, folders).get(RECIPES_KEY)) or {}
    lists = [*by_recipe.values()] if isinstance(by_recipe, dict) else [None]
    if not all(isinstance(options, list) and all(map(_is_option, options)) for options in lists):
        raise ConfigError(
            f"'{RECIPES_KEY}' of a data preset has a list of key=value for each recipe.",
            got=f"{data}: {by_recipe!r:.100}",
            fix=f"{RECIPES_KEY}: {{mage: [policy.replan_interval=1]}}",
        )
    return by_recipe


def _chosen(words: Sequence[str]) -> dict[str, str]:
    """The values of a command line by their keys, with the recipe and the data preset that it has by default."""
    usual = {key: value for entry in read_yaml(RECIPES / "base.yaml")[DEFAULTS] for key, value in entry.items()}
    return usual | {word.lstrip("+~").partition("=")[0]: word.partition("=")[2].strip("'\"") for word in words}


def _names(word: str) -> set[str]:
    """The option of a word, and the component that it belongs to: what a word must not set for this one to count."""
    key = word.partition("=")[0]
    kind = key.partition(".")[0]
    return {key, kind} if kind in KINDS else {key}


def _is_option(option: Any) -> bool:
    return isinstance(option, str) and "=" in option and option.partition("=")[0].partition(".")[0] in SECTIONS


def _file(group: str, value: str, folders: Sequence[Path]) -> Path | None:
    if value.endswith((".yaml", ".yml")):
        return Path(value) if Path(value).is_file() else None
    return find_file(group, value, list(folders)) if PLAIN_NAME.fullmatch(value) else None


def _lineage(recipe: Path, folders: Sequence[Path]) -> list[str]:
    """The names of a recipe and of those that it inherits, the nearest first."""
    names = [recipe.stem]
    for entry in read_yaml(recipe).get(DEFAULTS) or ():
        name = entry.removeprefix("/recipe/") if isinstance(entry, str) else ""
        parent = find_file("recipe", name, list(folders)) if PLAIN_NAME.fullmatch(name) else None
        names += _lineage(parent, folders) if parent is not None and parent != recipe else []
    return names
