"""Recipes and command lines to a typed configuration. Hydra composes and sweeps; it stops here.

A recipe is one plain YAML file. Each of its component nodes becomes an option of the Hydra group of that kind
under the recipe's name, beside all registered components under theirs: ``tokenizer=NAME`` swaps the whole node,
and no key of the old component stays behind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from trajgen.config.files import RECIPES, data_files, read_yaml, recipe_files
from trajgen.config.schema import SECTIONS, Config, defaults
from trajgen.core.errors import ConfigError, nearest
from trajgen.core.registry import KINDS, load_entry_points, load_imports, names, spec
from trajgen.data.options import SuccessRule
from trajgen.engine.options import StageOptions

ROOT = "train"
ABOUT = "about"
"""What a data preset tells the reader of the catalogue; no option."""
PLAIN_CHOICE = re.compile(r"[-\w/.,]*")
_stored = ""
"""What Hydra was offered last: a sweep composes hundreds of times, and offering takes half of that."""


def compose(overrides: Iterable[str]) -> Config:
    """The configuration of ``trajgen train`` with these overrides, as ``["recipe=mage", "seed=1"]``.

    Modules that they name are imported, and files of one's own are found.

    Raises:
        ConfigError: for anything in them that does not fit.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    overrides, own = own_files(overrides)
    store_groups(own["recipe"], own["data"])
    check_choices(overrides, own["recipe"], own["data"])
    GlobalHydra.instance().clear()
    try:
        with initialize(version_base="1.3", config_path=None):
            return from_hydra(hydra_compose(ROOT, overrides=overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error, overrides) from error


def from_hydra(composed: Any) -> Config:
    """A composed Hydra configuration as a `Config`; everything is resolved, and Hydra forgotten."""
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(composed, resolve=True)
    if not isinstance(plain, dict):
        raise ConfigError(
            "A configuration is a dictionary.",
            expected="options by name",
            got=type(plain).__name__,
            fix="the config.json of a run folder, or what Config.to_plain() gave",
        )
    return Config.from_plain({str(k): v for k, v in plain.items()})


def own_files(overrides: Iterable[str]) -> tuple[list[str], dict[str, list[Path]]]:
    """Imports what registers components, and takes recipes and data presets of one's own out of overrides.

    Returns:
        The overrides, with the name of a file in place of its path, and the files by group: recipe and data.
    """
    load_entry_points()
    words, own = [], dict[str, list[Path]](recipe=[], data=[])
    for word in overrides:
        key, _, value = word.partition("=")
        if key == "imports":
            load_imports(name.strip(" '\"") for name in value.strip("[]").split(",") if name.strip())
        if key in own and value.endswith((".yaml", ".yml")):
            own[key].append(Path(value))
            load_imports(read_yaml(Path(value)).get("imports") or [])
            word = f"{key}={Path(value).stem}"
        words.append(word)
    return words, own


def store_groups(own_recipes: Iterable[Path] = (), own_data: Iterable[Path] = ()) -> None:
    """Offers components, recipes and data presets to Hydra."""
    from hydra.core.config_store import ConfigStore

    global _stored
    components = {kind: {name: spec(kind, name).defaults() for name in names(kind)} for kind in KINDS}
    recipes = recipe_files() | {path.stem: path for path in own_recipes}
    presets = data_files() | {path.stem: path for path in own_data}
    offer = repr((components, [(p, p.stat().st_mtime_ns) for p in (*recipes.values(), *presets.values())]))
    if offer == _stored:
        return
    store = ConfigStore.instance()
    # Hydra copies its repository for each composition, and all that was ever offered with it: half of the time. The
    # store is one of a kind, and copies what it hands out.
    vars(store)["__deepcopy__"] = lambda _: store
    for kind, every in components.items():
        for name, node in every.items():
            store.store(group=kind, name=name, node=node)
    for name, path in recipes.items():
        _store_recipe(store, name, path)
    for name, path in presets.items():
        *folders, last = name.split("/")
        preset = {key: value for key, value in read_yaml(path).items() if key != ABOUT}
        store.store(group="/".join(["data", *folders]), name=last, node=preset, package="_global_")
    base = read_yaml(RECIPES / "base.yaml")
    chosen = base.pop("defaults")
    groups = [{kind: None} for kind in KINDS]
    top = {k: v for k, v in defaults(Config).items() if k not in ("components", *SECTIONS)}
    sections = {name: defaults(cls) | base.pop(name, {}) for name, cls in SECTIONS.items()}
    store.store(name=ROOT, node={"defaults": ["_self_", *groups, *chosen], **top, **sections, **base})
    _stored = offer


def _store_recipe(store: Any, name: str, path: Path) -> None:
    recipe = read_yaml(path)
    engine = _group(path, recipe, "engine")
    stages = _group(path, engine, "stages")
    stages |= {str(stage): defaults(StageOptions) | _group(path, stages, stage) for stage in list(stages)}
    overrides = []
    for kind in [kind for kind in KINDS if kind in recipe]:
        node = recipe.pop(kind)
        if not isinstance(node, dict) or not isinstance(node.get("name"), str):
            raise ConfigError(
                "A recipe names each component.",
                expected=f"{kind}: {{name: …}}",
                got=f"{path}: {kind}: {node!r}",
                fix=f"{kind}: {{name: {names(kind)[0]}}}, or leave {kind} out",
            )
        preset = f"{name}_recipe" if name in names(kind) else name  # schedule=two_level is the component's name
        store.store(group=kind, name=preset, node={**spec(kind, node["name"]).defaults(), **node})
        overrides.append({f"override /{kind}": preset})
    store.store(
        group="recipe",
        name=name,
        node={"defaults": [*overrides, "_self_"], "recipe": name, **recipe},
        package="_global_",
    )


def _group(path: Path, values: dict[str, Any], key: str) -> dict[str, Any]:
    """The options under a key, which may be left out."""
    found = values.get(key, {})
    if not isinstance(found, dict):
        raise ConfigError(
            f"'{key}' of a recipe is a group of options.",
            expected=f"{key}: {{option: value, …}}",
            got=f"{path}: {key}: {str(found)[:100]}",
            fix="recipes/mage.yaml is an example",
        )
    return found


def check_choices(overrides: Iterable[str], own_recipes: Iterable[Path] = (), own_data: Iterable[Path] = ()) -> None:
    """Looks up every recipe, data preset and component that is chosen by name; a sweep chooses several.

    Raises:
        ConfigError: for a name that is not there; the nearest ones are given.
    """
    recipes = recipe_files() | {path.stem: path for path in own_recipes}
    files = {"recipe": recipes, "data": data_files() | {path.stem: path for path in own_data}}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not PLAIN_CHOICE.fullmatch(text):  # Hydra reads more than names: quotes, globs, ranges
            continue
        for value in text.split(","):
            if key in files and value not in files[key]:
                raise ConfigError(
                    f"There is no {key} '{value}'.",
                    expected=", ".join(files[key]),
                    got=override,
                    fix=f"{nearest(value, files[key])} A path to a .yaml file of your own works too.",
                )
            if key in KINDS and value not in (n for n, path in recipes.items() if key in read_yaml(path)):
                spec(key, value)  # raises with the nearest names


def explain(error: Exception, overrides: Iterable[str]) -> ConfigError:
    """What Hydra meant, in terms of recipes and components."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    malformed = getattr(error, "override", None)  # of Hydra's error of syntax
    if malformed is not None:
        return ConfigError(
            "Options are written key=value.",
            expected="key=value, key=[a,b] or ~key",
            got=malformed,
            fix="close every bracket, and put what holds blanks into quotes: 'key=[a, b]'",
        )
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if f"'{key}'" in lines[0] or (len(lines) > 1 and f"key '{key}'" in str(error)):
            head, _, last = key.rpartition(".")
            known = _known_keys(head)
            return ConfigError(
                f"Unknown option '{key}'.",
                expected=", ".join(sorted(known)),
                got=override,
                fix=nearest(last, known) + _hint(head),
            )
    return ConfigError(
        "The command line does not compose.",
        got=" ".join(lines[:2]),
        fix="'trajgen train --cfg job' prints what there is to set",
    )


def _known_keys(section: str) -> list[str]:
    if section in KINDS:
        return [o.name for name in names(section) for o in spec(section, name).options]
    if not section:
        return [*(f.name for f in fields(Config) if f.name != "components"), *KINDS]
    return [f.name for f in fields({**SECTIONS, "data.success": SuccessRule}.get(section, StageOptions))]


def _hint(section: str) -> str:
    return f" See 'trajgen list {section}'." if section in KINDS else ""
