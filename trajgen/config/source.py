"""Recipes, data presets and components as a source of Hydra's: read when they are chosen, and never executed.

A recipe is one plain YAML file. Each of its component nodes becomes an option ``recipe/NAME`` of the Hydra group of
that kind, beside all registered components: ``tokenizer=NAME`` swaps the whole node, and no key of the old one stays.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from trajgen.config.files import (
    DEFAULTS,
    OVERRIDE,
    RECIPES,
    component_preset,
    data_files,
    find_file,
    missing,
    read_options,
    read_yaml,
    recipe_files,
)
from trajgen.config.schema import SECTIONS, TOP, Config, defaults
from trajgen.config.task_options import RECIPES_KEY
from trajgen.core.errors import ConfigError
from trajgen.core.registry import KINDS, load_entry_points, load_imports, names, spec
from trajgen.engine.options import StageOptions

ROOT, PLAIN = "train", "plain"
"""What a command line starts from, and the same without the parts of Hydra that log, sweep and help."""
UNUSED = ("output", "launcher", "sweeper", "help", "hydra_help", "hydra_logging", "env")
ABOUT = "about"
"""What a data preset tells the reader of the catalogue; no option."""
OF_A_RECIPE = "recipe/"
HYDRA = {
    "output_subdir": None,  # what a run consists of is in its config.json
    "run": {"dir": "."},
    "sweep": {"dir": "runs/sweeps/${now:%Y-%m-%d_%H-%M-%S}", "subdir": "${hydra.job.num}"},
    "job": {"name": ROOT, "chdir": False},
    "callbacks": {"runs": {"_target_": "trajgen.experiments.multirun.RunTable"}},
}
"""Hydra's own options. A run folder is named by trajgen, but those of a sweep by their numbers."""


class RecipeSource(ConfigSource):
    """What Hydra composes: ``train``, and the groups ``recipe``, ``data`` and one for each kind of component.

    Its path is ``trajgen://`` and what `searching` set, as JSON, so that jobs in other processes find the same.
    """

    def __init__(self, provider: str, path: str) -> None:
        super().__init__(provider, path)
        self.search = json.loads(self.path)
        self._load_extensions()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load_extensions()

    def _load_extensions(self) -> None:
        load_entry_points()
        load_imports(self.search["imports"])

    @property
    def folders(self) -> list[Path]:
        """Folders of the user's own with ``recipe/``, ``data/`` and component groups."""
        return [Path(folder) for folder in self.search["folders"]]

    @staticmethod
    def scheme() -> str:
        return "trajgen"

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path.partition("/")[0] in ("", "recipe", "data", *KINDS)

    def is_config(self, config_path: str) -> bool:
        group, _, name = config_path.partition("/")
        built_in = group in KINDS and (name in names(group) or name.startswith(OF_A_RECIPE))
        return (
            built_in
            or config_path in (ROOT, PLAIN)
            or (bool(name) and find_file(group, name, self.folders) is not None)
        )

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if results_filter is ObjectType.GROUP:
            return [] if config_path else ["recipe", "data", *KINDS]
        if config_path in KINDS:
            return names(config_path)
        files = {"recipe": recipe_files, "data": data_files}
        return [*files[config_path](self.folders)] if config_path in files else []

    def load_config(self, config_path: str) -> ConfigResult:
        group, _, name = config_path.partition("/")
        package: str | None = "_global_"
        if config_path in (ROOT, PLAIN):
            node = _root(UNUSED if config_path == PLAIN else ())
        elif group in KINDS:
            package, node = group, self._component(group, name)
            if group == "encoder":  # it has a stage, whose options no recipe names
                stages = {"encoder": defaults(StageOptions)}
                package, node = "_global_", {group: node, "engine": {"stages": stages}}
        else:
            path = find_file(group, name, self.folders)
            if path is None:
                raise missing(group, name, self.folders)
            node = self._recipe(path, name) if group == "recipe" else read_options(group, path, self.folders)
            node.pop(ABOUT, None)
            node.pop(RECIPES_KEY, None)
        return ConfigResult(self.provider, self.full_path(), OmegaConf.create(node), {"package": package})

    def _component(self, kind: str, name: str) -> dict[str, Any]:
        recipe = name.removeprefix(OF_A_RECIPE)
        if recipe == name:
            node = component_preset(kind, name, self.folders)
        elif path := find_file("recipe", recipe, self.folders):
            node = read_options("recipe", path, self.folders)[kind]
        if not isinstance(node, dict) or not isinstance(node.get("name"), str):
            fix = f"{kind}: {{name: {names(kind)[0]}}}"
            raise ConfigError("A recipe names each component.", got=f"{recipe}: {kind}: {node!r:.100}", fix=fix)
        return {**spec(kind, node["name"]).defaults(), **node}

    def _recipe(self, path: Path, name: str) -> dict[str, Any]:
        recipe = read_options("recipe", path, self.folders)
        load_imports(recipe.get("imports", ()))
        engine = _group(path, recipe, "engine")
        stages = _group(path, engine, "stages")
        complete = {stage: defaults(StageOptions) | _group(path, stages, stage) for stage in stages}
        chosen = recipe.pop(DEFAULTS, [])
        for kind in [kind for kind in KINDS if kind in recipe]:
            absent = recipe.pop(kind) is None
            chosen.append({f"{OVERRIDE}/{kind}": None if absent else f"{OF_A_RECIPE}{name}"})
        return {
            DEFAULTS: [*chosen, "_self_"],
            "recipe": Path(name).stem,
            **recipe,
            "engine": engine | {"stages": complete},
        }


def _group(path: Path, values: dict[str, Any], key: str) -> dict[str, Any]:
    """The options under a key, which may be left out."""
    group = values.get(key) or {}
    if not isinstance(group, dict):
        raise ConfigError(f"'{key}' of a recipe is a group of options.", got=f"{path}: {key}: {str(group)[:100]}")
    return group


def _root(unused: Iterable[str]) -> dict[str, Any]:
    """What ``trajgen train`` starts from: the defaults of the code, and base.yaml over them, without parts of Hydra."""
    base = dict(read_yaml(RECIPES / "base.yaml"))
    chosen = [{kind: None} for kind in KINDS] + base.pop(DEFAULTS)
    top = {k: v for k, v in defaults(Config).items() if k in TOP and k not in SECTIONS}
    sections = {name: defaults(cls) | base.pop(name, {}) for name, cls in SECTIONS.items()}
    quiet = {f"{OVERRIDE}hydra/job_logging": "none"}  # it would leave an empty file where the command was given
    without = [{f"{OVERRIDE}hydra/{part}": None} for part in unused]
    return {DEFAULTS: ["_self_", *chosen, quiet, *without], "hydra": HYDRA, **top, **sections, **base}


_search: dict[str, list[str]] = {"imports": [], "folders": []}
"""What the next composition searches: modules to import, and folders of the user's own."""


class _SearchPath(SearchPathPlugin):
    """Puts the source on Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("trajgen", f"{RecipeSource.scheme()}://{json.dumps(_search)}")


@contextmanager
def searching(imports: Iterable[str], folders: Iterable[Path]) -> Iterator[None]:
    """Has Hydra compose recipes, with modules and folders of the user's own."""
    _register()
    before = dict(_search)
    _search.update(imports=[*imports], folders=[str(folder) for folder in folders])
    try:
        yield
    finally:
        _search.update(before)


def _register() -> None:
    """Registers the plugins. Hydra scans the path for others, but not the current folder, which may be a stranger's."""
    path = sys.path[:]
    sys.path[:] = [entry for entry in path if entry and Path(entry).resolve() != Path.cwd().resolve()]
    try:
        for plugin in (RecipeSource, _SearchPath):
            Plugins.instance().register(plugin)
    finally:
        sys.path[:] = path
