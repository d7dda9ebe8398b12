"""Recipes and command lines to a typed configuration. Hydra composes and sweeps; it stops here.

A recipe is one plain YAML file. Each of its component nodes becomes an option of the Hydra group of that kind
under the recipe's name, beside all registered components under theirs: ``tokenizer=NAME`` swaps the whole node,
and no key of the old component stays behind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from trajgen.core.errors import ConfigError, nearest
from trajgen.core.options import structure
from trajgen.core.registry import KINDS, complete, load_entry_points, load_imports, names, spec
from trajgen.data.options import DataOptions, SuccessRule
from trajgen.engine.options import EngineOptions, StageOptions
from trajgen.evaluation.evaluate import EvaluationOptions
from trajgen.policies.options import PolicyOptions

RECIPES = Path(__file__).resolve().parent / "recipes"
if not RECIPES.is_dir():  # a checkout: the folder stands beside the package; a wheel carries it inside
    RECIPES = Path(__file__).resolve().parents[1] / "recipes"
ROOT = "train"
SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The same as yaml.safe_load's, in C where it was built."""
LARGEST_FILE, DEEPEST, MOST_ALIASES = 2**20, 32, 64
"""Bytes, nesting and repetitions (``*name``) of the largest YAML file that is read; a recipe has a tenth of each."""
ABOUT = "about"
"""What a data preset tells the reader of the catalogue; no option."""
PLAIN_CHOICE = re.compile(r"[-\w/.,]*")
SECTIONS: dict[str, Any] = {
    "data": DataOptions,
    "policy": PolicyOptions,
    "engine": EngineOptions,
    "evaluation": EvaluationOptions,
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that a run depends on."""

    recipe: str
    data: DataOptions
    components: dict[str, dict[str, Any]] = field(default_factory=dict)
    policy: PolicyOptions = field(default_factory=PolicyOptions)
    engine: EngineOptions = field(default_factory=EngineOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    imports: tuple[str, ...] = ()
    seed: int = 0
    device: str = "auto"
    run_dir: str | None = None
    resume: bool = False

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Config:
        """Checks plain values, each component node against its signature.

        Raises:
            ConfigError: for a key, name or type that is wrong.
        """
        sections = {f.name for f in fields(cls)} - {"components"}
        for key in plain:
            if key not in sections and key not in KINDS:
                known = sections | set(KINDS)
                raise ConfigError(
                    f"Unknown option '{key}'.",
                    expected=", ".join(sorted(known)),
                    got=f"{key}={plain[key]!r}",
                    fix=nearest(str(key), known),
                )
        components = {kind: complete(kind, plain[kind]) for kind in KINDS if plain.get(kind)}
        rest = {k: v for k, v in plain.items() if k in sections}
        return replace(structure(cls, rest, ""), components=components)

    def to_plain(self) -> dict[str, Any]:
        """The configuration as plain values, components at the top level; `from_plain` reads it back."""
        values = asdict(self)
        components = values.pop("components")
        plain: dict[str, Any] = json.loads(json.dumps(values | components))
        return plain

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same training: all but where it lies, where it runs, and how it is evaluated."""
        aside = ("run_dir", "resume", "device", "evaluation", "policy")
        plain = {k: v for k, v in self.to_plain().items() if k not in aside}
        # What a run from before an option existed does not have must not make it another.
        plain["engine"] = {k: v for k, v in plain["engine"].items() if k not in ("accumulate", "log")}
        return plain


def merged(plain: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values with changes laid over them; a component that is named anew replaces the old one whole."""
    result = dict(plain)
    for key, value in changes.items():
        old = result.get(key)
        swapped = isinstance(value, Mapping) and "name" in value and isinstance(old, Mapping)
        if (
            isinstance(value, Mapping)
            and isinstance(old, Mapping)
            and not (swapped and value["name"] != old.get("name"))
        ):
            result[key] = merged(old, value)
        else:
            result[key] = value
    return result


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


_stored = ""
"""What Hydra was offered last: a sweep composes hundreds of times, and offering takes half of that."""


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


def defaults(cls: Any) -> dict[str, Any]:
    """The defaults of an options dataclass, as plain values; what has none is left out."""
    plain = {f.name: f.default for f in fields(cls) if f.default is not MISSING}
    plain |= {f.name: f.default_factory() for f in fields(cls) if f.default_factory is not MISSING}
    return {key: defaults(type(value)) if is_dataclass(value) else value for key, value in plain.items()}


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
