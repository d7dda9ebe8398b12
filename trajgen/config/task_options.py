"""What a task needs of a recipe: options that a data preset names by recipe, and that are composed with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from trajgen.config.files import DEFAULTS, OVERRIDE, RECIPES, find_file, read_options, read_yaml
from trajgen.core.errors import ConfigError
from trajgen.core.options import flat
from trajgen.core.registry import KINDS

RECIPES_KEY = "recipes"
"""The key of a data preset under which options stand by recipe: ``recipes: {mage: [policy.replan_interval=1]}``."""
SWITCH = "task_options"
SECTIONS = ("data", "policy", "engine", *KINDS)
PLAIN_NAME = re.compile(r"[-\w/.]+")


def task_options(words: Sequence[str], folders: Sequence[Path] = ()) -> list[str]:
    """The options that the data preset of a command line has for its recipe, and for recipes that it inherits.

    An option that the words set themselves is left out, and so are the options of a component that they replace. A
    component with options that they set stays the recipe's. Of two that set the same, that of the nearer recipe counts;
    those of a component that it replaces are left out.

    Args:
        words: ``key=value``, as for ``trajgen train``.
        folders: of recipes and presets of the user's own.

    Raises:
        ConfigError: if the preset's options are not a list of ``key=value`` for each recipe.
    """
    typed = _typed(words)
    path = _file("recipe", typed.get("recipe", _usual("recipe")), folders)
    if path is None:  # a missing file, or several values of a sweep: said elsewhere
        return []
    recipe = read_options("recipe", path, folders)
    (data_entry,) = recipe.get(DEFAULTS) or [{}]
    data = _file("data", typed.get("data", data_entry.get(f"{OVERRIDE}/data", _usual("data"))), folders)
    if data is None or typed.get(SWITCH, recipe.get(SWITCH)) is False:
        return []
    by_recipe = _by_recipe(data, folders)
    nearest: dict[str, str] = {}
    components: dict[str, Any] = {}
    for inherited in reversed(_lineage(path, folders)):
        for kind, name in _components(inherited).items():
            if components.setdefault(kind, name) != name:
                components[kind] = name
                nearest = {key: option for key, option in nearest.items() if not key.startswith(f"{kind}.")}
        nearest |= {option.partition("=")[0]: option for option in by_recipe.get(inherited.stem, ())}
    keys_typed = {key for key in typed if key not in ("recipe", "data")}
    keys_typed |= {key for key in nearest if key in KINDS and any(name.startswith(f"{key}.") for name in keys_typed)}
    return [word for key, word in nearest.items() if not keys_typed & {*accumulate(key.split("."), "{}.{}".format)}]


def options_by_recipe(words: Sequence[str], folders: Sequence[Path] = ()) -> dict[str, list[str]]:
    """The options that the data preset of a command line has for recipes, by the recipe's name.

    Raises:
        ConfigError: if they are not a list of ``key=value`` for each recipe.
    """
    data = _file("data", _typed(words).get("data", _usual("data")), folders)
    return {} if data is None else _by_recipe(data, folders)


def _by_recipe(data: Path, folders: Sequence[Path]) -> dict[str, list[str]]:
    by_recipe: dict[str, list[str]] = read_options("data", data, folders).get(RECIPES_KEY) or {}
    lists = [*by_recipe.values()] if isinstance(by_recipe, dict) else [None]
    if not all(isinstance(options, list) and all(map(_is_option, options)) for options in lists):
        raise ConfigError(
            f"'{RECIPES_KEY}' of a data preset has a list of key=value for each recipe.",
            got=f"{data}: {by_recipe!r:.100}",
            fix=f"{RECIPES_KEY}: {{mage: [policy.replan_interval=1]}}",
        )
    return by_recipe


def _usual(group: str) -> str:
    """The recipe or the data preset of a command line that names none."""
    return next(entry[group] for entry in read_yaml(RECIPES / "base.yaml")[DEFAULTS] if group in entry)


def _typed(words: Sequence[str]) -> dict[str, Any]:
    """The values of a command line by their dotted keys, read as Hydra reads them; of what ``~`` removes, None."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from trajgen.config.composing import absolute_paths

    options = [word for word in words if "=" in word or word.startswith("~")]  # and no value of a flag of Hydra
    overrides = OverridesParser.create().parse_overrides(absolute_paths(options))
    return dict(option for each in overrides for option in flat({each.key_or_group: each.value()}))


def _is_option(option: Any) -> bool:
    return isinstance(option, str) and "=" in option and option.partition("=")[0].partition(".")[0] in SECTIONS


def _file(group: str, value: Any, folders: Sequence[Path]) -> Path | None:
    if not isinstance(value, str):
        return None
    if value.endswith((".yaml", ".yml")):
        return Path(value) if Path(value).is_file() else None
    return find_file(group, value, list(folders)) if PLAIN_NAME.fullmatch(value) else None


def _components(recipe: Path) -> dict[str, Any]:
    """The names of the components that a recipe sets itself, by kind."""
    nodes = {kind: node for kind, node in read_yaml(recipe).items() if kind in KINDS and isinstance(node, dict)}
    return {kind: node["name"] for kind, node in nodes.items() if "name" in node}


def _lineage(recipe: Path, folders: Sequence[Path]) -> list[Path]:
    """A recipe and those that it inherits, the nearest first."""
    recipes = [recipe]
    for entry in read_yaml(recipe).get(DEFAULTS) or ():
        name = entry.removeprefix("/recipe/") if isinstance(entry, str) else ""
        parent = find_file("recipe", name, list(folders)) if PLAIN_NAME.fullmatch(name) else None
        recipes += _lineage(parent, folders) if parent is not None and parent != recipe else []
    return recipes
