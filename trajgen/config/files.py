"""The files of options: where they are, how they inherit, and how they are read without trusting them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from trajgen.config.schema import merged
from trajgen.core.errors import ConfigError, unknown_name
from trajgen.core.options import convert, yaml_loader
from trajgen.core.registry import KINDS, names

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
if not RECIPES.is_dir():  # a checkout: the folder stands beside the package; a wheel carries it inside
    RECIPES = Path(__file__).resolve().parents[2] / "recipes"
LARGEST_FILE, DEEPEST, MOST_ALIASES = 2**20, 32, 64
"""Bytes, nesting and repetitions (``*name``) of the largest YAML file that is read; a recipe has a tenth of each."""
DEFAULTS, SELF, OVERRIDE = "defaults", "_self_", "override "


def recipe_files(folders: Iterable[Path] = ()) -> dict[str, Path]:
    """The recipes by name: the shipped ones, and those in ``recipe/`` of other folders."""
    return _by_name(RECIPES, "*.yaml") | {k: v for f in folders for k, v in _by_name(f / "recipe", "*.yaml").items()}


def data_files(folders: Iterable[Path] = ()) -> dict[str, Path]:
    """The data presets by name, as ``pointmaze/umaze``. Files named ``_….yaml`` are there to be inherited."""
    roots = [RECIPES / "data", *(folder / "data" for folder in folders)]
    return {k: v for folder in roots for k, v in _by_name(folder, "**/*.yaml").items()}


def study_files() -> dict[str, Path]:
    """The shipped studies by name."""
    return _by_name(RECIPES / "study", "*.yaml")


def search_files() -> dict[str, Path]:
    """The shipped searches by name."""
    return _by_name(RECIPES / "search", "*.yaml")


def zoo_files() -> dict[str, Path]:
    """The model cards of the trained planners in the zoo by name; each lies in its run folder."""
    return {path.parent.name: path for path in sorted((RECIPES / "zoo").glob("*/README.md"))}


def _by_name(folder: Path, pattern: str) -> dict[str, Path]:
    paths = [p for p in sorted(folder.glob(pattern)) if p.name[0] != "_" and p != RECIPES / "base.yaml"]
    return {p.relative_to(folder).with_suffix("").as_posix(): p for p in paths}


def find_file(group: str, name: str, folders: Iterable[Path] = ()) -> Path | None:
    """The file of a recipe, data preset or component preset: a path to a YAML file, or a name."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    if any(part in ("", ".", "..") for part in name.split("/")):
        return None
    shipped = {"recipe": [RECIPES], "data": [RECIPES / "data"]}.get(group, [])
    paths = [folder / f"{name}.yaml" for folder in (*(folder / group for folder in folders), *shipped)]
    return next((path for path in paths if path.is_file() and path != RECIPES / "base.yaml"), None)


def read_options(
    group: str, path: Path, folders: Iterable[Path] = (), *, _open: tuple[Path, ...] = ()
) -> dict[str, Any]:
    """A recipe or data preset with all that it inherits.

    Its ``defaults`` list has Hydra's syntax and order. It may name files of the same group (``mage``, ``/recipe/mage``,
    or a file beside it); in a recipe also components (``override /sampler: greedy``) and a preset
    (``override /data: …``), which is left to Hydra, under ``defaults``.

    Raises:
        ConfigError: for a file that cannot be read, and an entry that is something else.
    """
    path = path.resolve()
    values = read_yaml(path)
    entries = values.pop(DEFAULTS, None) or []
    if path in _open or not isinstance(entries, list):
        raise _not_plain(path, "defaults that name the file itself" if path in _open else "defaults that are no list")
    result: dict[str, Any] = {}
    for entry in entries if SELF in entries else [*entries, SELF]:
        if entry == SELF:
            result = _laid_over(result, values)
            continue
        key, name = _entry(path, group, entry)
        if key == group:
            sibling = path.parent / f"{name}.yaml"
            parent = sibling if sibling.is_file() and ".." not in name else find_file(group, name, folders)
            if parent is None or name.startswith("/"):
                raise missing(group, name, folders)
            result = _laid_over(result, read_options(group, parent, folders, _open=(*_open, path)))
        elif key == "data":
            result[DEFAULTS] = [{"override /data": name}]
        else:
            result[key] = None if name == "null" else component_preset(key, name, folders)
    return result


def _laid_over(result: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """``values`` over ``result``; the imports of both are imported."""
    imports = [*result.get("imports", ()), *convert(values.get("imports") or (), tuple[str, ...], "imports")]
    return merged(result, values) | ({"imports": imports} if imports else {})


def _entry(path: Path, group: str, entry: Any) -> tuple[str, str]:
    """Group and name of an entry of a defaults list."""
    if isinstance(entry, str):
        absolute, _, name = entry.removeprefix("/").partition("/")
        key, name = (absolute, name) if entry.startswith("/") else (group, entry)
    elif isinstance(entry, dict) and len(entry) == 1:
        ((key, value),) = entry.items()
        key, name = str(key).removeprefix(OVERRIDE).strip().lstrip("/"), str(value or "null")
    else:
        key = name = ""
    if not name or key not in ((group,) if group == "data" else (group, "data", *KINDS)):
        raise _not_plain(path, f"'{entry}' in its defaults, which may name recipes, data presets and components")
    return key, name


def component_preset(kind: str, name: str, folders: Iterable[Path] = ()) -> dict[str, Any]:
    """The node of a component by its name, or by that of a file ``KIND/NAME.yaml``."""
    path = None if name in names(kind) else find_file(kind, name, folders)
    return {"name": name} if path is None else read_yaml(path)


def missing(group: str, name: str, folders: Iterable[Path] = ()) -> ConfigError:
    """The error for a recipe or data preset that is not there."""
    choices = (recipe_files if group == "recipe" else data_files)(folders)
    if group == "data" and re.search(r"-v\d+$", name):
        fix = f"data.id={name}, with the options of a preset ('trajgen data import' prints one)"
        raise ConfigError(f"There is no task '{name}', and data= names a task.", fix=fix)
    return unknown_name(f"There is no {group} '{name}'.", name, choices, "a path to a .yaml file of your own works too")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a dictionary of plain values, without what it inherits.

    Raises:
        ConfigError: if it is missing, is not YAML, or holds more than plain values.
    """
    try:
        stat = path.stat()
        if not path.is_file():  # reading a FIFO or a device may never end
            raise _not_plain(path, "no regular file")
        return deepcopy(_read(path, stat.st_mtime_ns, stat.st_size))
    except OSError as error:
        raise ConfigError(
            "The file cannot be read.",
            got=f"{path}: {error.strerror}",
            fix="check the path; a NAME without .yaml is that of a shipped file",
        ) from error


@lru_cache(256)
def _read(path: Path, changed: int, size: int) -> dict[str, Any]:
    """The file as it was at a time, parsed once."""
    if size > LARGEST_FILE:
        raise _not_plain(path, f"{size:,} bytes, and at most {LARGEST_FILE:,} are read")
    try:
        text = path.read_text(encoding="utf-8")
        _check_depth(path, text)
        values = yaml.load(text, Loader=yaml_loader())
    except (ValueError, OverflowError) as error:  # not UTF-8, a number of 5000 digits, the 31st of February
        raise _not_plain(path, str(error)[:200]) from error
    except yaml.YAMLError as error:
        raise ConfigError("The file is not YAML.", got=f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(
            "A file of options is a YAML dictionary.",
            got=f"{path}: {type(values).__name__}",
            fix="key: value, one a line; recipes/mage.yaml is an example",
        )
    if "hydra" in values:
        raise _not_plain(path, "'hydra', which only a command line sets")
    _require_plain(path, {k: v for k, v in values.items() if k != DEFAULTS})
    _require_plain(path, [entry for entry in values.get(DEFAULTS) or [] if entry != SELF])
    return values


def _check_depth(path: Path, text: str) -> None:
    depth = aliases = 0
    for event in yaml.parse(text, Loader=yaml_loader()):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        aliases += isinstance(event, yaml.AliasEvent)
        if depth > DEEPEST or aliases > MOST_ALIASES:
            raise _not_plain(path, f"more than {DEEPEST} levels, or more than {MOST_ALIASES} repetitions")


def _require_plain(path: Path, value: Any) -> None:
    """Refuses what Hydra and OmegaConf would resolve: a file may come from a stranger."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _require_plain(path, key)
            _require_plain(path, inner)
            if str(key).startswith("_") and str(key).endswith("_"):
                raise _not_plain(path, f"the key '{key}'")
    elif isinstance(value, list):
        for inner in value:
            _require_plain(path, inner)
    elif isinstance(value, str) and "${" in value:
        raise _not_plain(path, f"'{value[:100]}', which reads what is outside the file")


def _not_plain(path: Path, what: str) -> ConfigError:
    return ConfigError(
        "A file of options holds plain values.",
        got=f"{path}: {what}",
        fix="write the value itself, or give it on the command line",
    )
