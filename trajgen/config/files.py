"""The files of options: those that are shipped, and how any of them is read without trusting it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from trajgen.core.errors import ConfigError

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
if not RECIPES.is_dir():  # a checkout: the folder stands beside the package; a wheel carries it inside
    RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The same as yaml.safe_load's, in C where it was built."""
LARGEST_FILE, DEEPEST, MOST_ALIASES = 2**20, 32, 64
"""Bytes, nesting and repetitions (``*name``) of the largest YAML file that is read; a recipe has a tenth of each."""


def recipe_files() -> dict[str, Path]:
    """The shipped recipes by name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.yaml")) if path.stem != "base"}


def data_files() -> dict[str, Path]:
    """The shipped data presets by name, as ``pointmaze/umaze``."""
    folder = RECIPES / "data"
    paths = sorted(folder.rglob("*.yaml"))
    return {str(path.relative_to(folder).with_suffix("").as_posix()): path for path in paths}


def study_files() -> dict[str, Path]:
    """The shipped studies by name."""
    return {path.stem: path for path in sorted((RECIPES / "study").glob("*.yaml"))}


def search_files() -> dict[str, Path]:
    """The shipped searches by name."""
    return {path.stem: path for path in sorted((RECIPES / "search").glob("*.yaml"))}


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a dictionary.

    Raises:
        ConfigError: if it is missing or is not YAML.
    """
    try:
        text = _small(path)
        values = yaml.load(text, Loader=SAFE_LOADER)
    except (ValueError, OverflowError) as error:  # not UTF-8, a number of 5000 digits, the 31st of February
        raise _not_plain(path, str(error)[:200]) from error
    except OSError as error:
        raise ConfigError(
            "The file cannot be read.",
            expected="a YAML file",
            got=f"{path}: {error.strerror}",
            fix="check the path; recipe=NAME without .yaml is a shipped recipe",
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(
            "The file is not YAML.",
            expected="key: value, one a line",
            got=f"{path}: {' '.join(str(error).split())}",
            fix="mend the line that is named",
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(
            "A recipe is a YAML dictionary.",
            expected="key: value, one a line",
            got=f"{path}: {type(values).__name__}",
            fix="recipes/mage.yaml is an example",
        )
    if path.resolve().parent != RECIPES:
        for key in ("hydra", "defaults"):
            if key in values:
                raise _not_plain(path, f"'{key}', which only a command line sets")
    _require_plain(path, values)
    return values


def _small(path: Path) -> str:
    """The text of a YAML file that is neither too large nor too deep for the library that reads it."""
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise _not_plain(path, f"{size:,} bytes, and at most {LARGEST_FILE:,} are read")
    text = path.read_text(encoding="utf-8")
    depth = aliases = 0
    for event in yaml.parse(text, Loader=SAFE_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        aliases += isinstance(event, yaml.AliasEvent)
        if depth > DEEPEST or aliases > MOST_ALIASES:
            raise _not_plain(path, f"more than {DEEPEST} levels, or more than {MOST_ALIASES} repetitions")
    return text


def _require_plain(path: Path, value: Any) -> None:
    """Refuses what Hydra and OmegaConf would resolve: a file may come from a stranger."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            _require_plain(path, key)
            _require_plain(path, each)
            if str(key).startswith("_") and str(key).endswith("_"):
                raise _not_plain(path, f"the key '{key}'")
    elif isinstance(value, list):
        for each in value:
            _require_plain(path, each)
    elif isinstance(value, str) and "${" in value:
        raise _not_plain(path, f"'{value[:100]}', which reads what is outside the file")


def _not_plain(path: Path, what: str) -> ConfigError:
    return ConfigError(
        "A file of options holds plain values.",
        expected="text, numbers, lists and dictionaries",
        got=f"{path}: {what}",
        fix="write the value itself, or give it on the command line",
    )
