"""Command lines to a typed configuration. Hydra composes and sweeps; it stops here."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from trajgen.config.files import missing
from trajgen.config.schema import SECTIONS, TOP, Config, merged
from trajgen.config.suggestions import suggestion
from trajgen.config.task_options import task_options
from trajgen.core.errors import ConfigError, TrajgenError, unknown_name
from trajgen.core.options import unknown_option, values_of
from trajgen.core.registry import KINDS, names, owners, spec
from trajgen.core.renamed import new_name
from trajgen.data.options import EnvShift, SuccessRule
from trajgen.engine.options import StageOptions

MULTIRUN = ("-m", "--multirun")
SHOWN = ("--cfg", "-c", "--info", "-i")
"""Flags of Hydra that print instead of training."""
CONFIG_DIR = ("--config-dir", "-cd")
NO_OPTION = r"Could not (?:override|delete|append)[^']*'([^']+)'|Key '([^']+)'|'([\w.]+)' does not exist"
"""How Hydra says that there is no such option."""
SEVERAL = r"Ambiguous value for argument '([^=']+)=([^']*)'"
"""How Hydra says that values have commas between them."""
NO_NAME = r"\[?(?:true|false|nan|[-+]?(?:inf|[\d._]+(?:e[-+]?\d+)?))\]?"
"""What Hydra reads as a truth value or a number, also in a list of one."""
STAGES = "engine.stages."


def compose(words: Iterable[str]) -> Config:
    """The configuration of ``trajgen train`` with these words, such as ``["recipe=mage", "seed=1"]``.

    Modules that they name are imported. ``--config-dir DIR`` adds a folder with ``recipe/`` and ``data/``.

    Raises:
        ConfigError: for anything in them that does not fit.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module

    from trajgen.config.source import PLAIN

    words = absolute_paths(words)
    with _hydra(words) as overrides, initialize_config_module("trajgen.config", version_base="1.3"):
        composed = hydra_compose(PLAIN, overrides=overrides)
    return from_hydra(composed, words)


def task_words(words: Iterable[str]) -> list[str]:
    """The options that `compose` adds to these words; see `trajgen.config.task_options`."""
    folders, overrides = _folders(words)
    return task_options(overrides, folders)


def task_line(words: Iterable[str]) -> str:
    """What a training says of the options that its task adds to these words; empty where it adds none."""
    options = task_words(words)
    return f"For this task: {shlex.join(options)} (task_options=false leaves them out)" if options else ""


def from_hydra(composed: Any, words: Iterable[str]) -> Config:
    """A configuration that Hydra composed of these words, with what its task needs of its recipe, checked."""
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(composed, resolve=True)
    return Config.from_plain(merged(plain, values_of(task_words(words))))


def hydra_run(words: Sequence[str]) -> NoReturn:
    """Replaces this process by a Hydra application, for ``-m``, ``--cfg``, ``--info`` and other flags of Hydra.

    Raises:
        ConfigError: for a word that does not fit; each value of a sweep is composed first.
    """
    words = absolute_paths(words)
    if not any(word in MULTIRUN for word in words):
        folders, overrides = _folders(words)
        with _hydra(words):
            words = [*words, *task_options([word for word in overrides if not word.startswith("-")], folders)]
    else:
        if shown := [word for word in words if word in SHOWN]:
            raise ConfigError(
                "-m trains several configurations, of which Hydra prints none.",
                got=f"-m {' '.join(shown)}",
                fix=f"leave -m out, and name one value of each option with {shown[0]}",
            )
        _check_sweep(words)
        words = [re.sub(r"^run_dir=", "hydra.sweep.dir=", word) for word in words]
        if "resume=true" in words and not any(word.startswith("hydra.sweep.dir=") for word in words):
            raise ConfigError("resume=true goes on with the sweep that is named.", fix="run_dir=runs/sweeps/…")
    # The current folder is not on the path, and errors are raised for `hydra_application` to translate.
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "HYDRA_FULL_ERROR": "1"}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, "-m", "trajgen.experiments", *words], environment)


def hydra_application(job: Any) -> None:
    """Runs Hydra's main with the command line of this process.

    Args:
        job: is called with each composed configuration.
    """
    import hydra

    from trajgen.config.source import ROOT

    with _hydra(sys.argv[1:]):
        hydra.main(version_base="1.3", config_path=None, config_name=ROOT)(job)()


def is_for_hydra(words: Iterable[str]) -> bool:
    """Whether a command line is one for `hydra_run`: it has a flag other than ``--config-dir``, or a mode."""
    _, overrides = _folders(words)
    return any(word.startswith(("-", "hydra.mode=")) for word in overrides)


def absolute_paths(words: Iterable[str]) -> list[str]:
    """The words with absolute paths of recipes and presets, so that they mean the same in any folder."""

    def absolute(word: str) -> str:
        key, _, value = word.partition("=")
        if key not in ("recipe", "data") or not value.endswith((".yaml", ".yml")) or value[0] in "'\"[":
            return word
        paths = [value] if Path(value).exists() else value.split(",")
        return f"{key}={','.join(quoted(str(Path(path).absolute())) for path in paths)}"

    return [absolute(word) for word in words]


def quoted(text: str, plain: str = r"[-+\w/.]*") -> str:
    """Text as Hydra's grammar reads it: in quotes, unless it is ``plain``."""
    escaped = re.sub(r"(\\*)('|$)", lambda match: 2 * match[1] + match[2].replace("'", "\\'"), text)
    return text if re.fullmatch(plain, text, re.ASCII) else f"'{escaped}'"


@contextmanager
def _hydra(words: Iterable[str]) -> Iterator[list[str]]:
    """Hydra with the source of recipes, and its errors as ours; gives the words that are overrides."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from trajgen.config.source import searching

    folders, overrides = _folders(words)
    lists = (word.partition("=")[2].strip("[]").split(",") for word in overrides if word.startswith("imports="))
    imports = [name.strip(" '\"") for names in lists for name in names if name.strip()]
    for key in (word.removesuffix("=null") for word in overrides if word.endswith("=null")):
        if key in ("recipe", "data", *KINDS):
            raise ConfigError(f"There is no {key} 'null'.", fix=f"'~{key}' leaves a component out")
    for key, _, value in (word.lstrip("+").partition("=") for word in overrides):
        if key in ("recipe", "data", *KINDS) and re.fullmatch(NO_NAME, value, re.IGNORECASE):
            unknown = unknown_name(f"There is no {key} '{value}'.", value, names(key)) if key in KINDS else None
            raise unknown or missing(key, value, folders)
    GlobalHydra.instance().clear()
    try:
        with searching(imports, folders):
            yield overrides
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error, overrides, folders) from error


def config_dir_word(folder: Path) -> str:
    """The word that has `compose` read recipes, data and components of a folder too, the same wherever it is composed.

    Raises:
        ConfigError: if there is no such folder.
    """
    word = f"{CONFIG_DIR[0]}={folder.absolute()}"
    _folders([word])
    return word


def _folders(words: Iterable[str]) -> tuple[list[Path], list[str]]:
    """The folders that ``--config-dir`` names, and the other words."""
    folders, others, rest = [], [], iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag in CONFIG_DIR:
            folder = Path(value if equals else next(rest, "")).absolute()
            if not folder.is_dir():
                raise ConfigError("There is no such folder of recipes.", got=f"--config-dir {folder}")
            folders.append(folder)
        else:
            others.append(word)
    return folders, others


def _check_sweep(words: Sequence[str]) -> None:
    """Composes each value of a sweep, with the first values of the other options."""
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    folders, overrides = _folders(words)
    choices: dict[str, list[str]] = {}
    with (
        _hydra(words),
        initialize_config_module("trajgen.config", version_base="1.3"),
    ):  # a glob looks for what there is
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        for override in parser.parse_overrides([word for word in overrides if not word.startswith("-")]):
            key = override.get_key_element()
            if override.is_discrete_sweep():
                choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
            elif not override.is_hydra_override() and not override.is_sweep_override():  # intervals are for a sweeper
                choices[key] = [str(override.input_line)]
    shared = [f"--config-dir={folder}" for folder in folders]
    first = {key: values[0] for key, values in choices.items()}
    compose([*shared, *first.values()])
    for key, values in choices.items():
        for value in values[1:]:
            compose([*shared, *(first | {key: value}).values()])


def explain(error: Exception, overrides: Sequence[str] = (), folders: Iterable[Path] = ()) -> TrajgenError:
    """What Hydra meant, in terms of recipes and components."""
    malformed = getattr(error, "override", None)  # of Hydra's error of syntax
    if malformed is not None:
        return ConfigError(
            "Options are written key=value, key=[a,b] or ~key.",
            got=malformed,
            fix="close every bracket, and put what holds blanks into quotes: 'key=[a, b]'",
        )
    group, _, name = (getattr(error, "missing_cfg_file", None) or "").partition("/")
    if group in ("recipe", "data"):
        return missing(group, name, folders)
    if group in KINDS:
        try:
            spec(group, name)
        except ConfigError as unknown:
            return unknown
    values = {word.lstrip("+~").partition("=")[0]: word.partition("=")[2] for word in overrides}
    match = re.search(NO_OPTION, str(error))
    unknown_key = next(filter(None, match.groups())) if match else None
    for key, value in values.items():
        if key == unknown_key or new_name(key):
            rest = [word for word in overrides if word.lstrip("+~").partition("=")[0] != key]
            section, _, option = key.rpartition(".")
            if not new_name(key) and (no_stage := _no_stage(key, value, rest, folders)):
                return no_stage
            if (no_component := _no_component(key, value, rest, folders)) is not None:
                return no_component
            if not new_name(key) and (close := suggestion(option, (*SECTIONS, *KINDS), section)):
                return ConfigError(f"Unknown option '{key}'.", fix=close)
            hint = owners(section, option) if section in KINDS else ""
            return unknown_option(key, _options_of(section, rest, folders), value, hint)
    if several := re.search(SEVERAL, str(error)):
        key, value = several.groups()
        return ConfigError(
            f"{key} takes one value here.",
            got=f"{key}={value}",
            fix=f"-m trains once for each value, '{key}=[{value}]' is a list, and decimals are written 0.5",
        )
    return ConfigError(
        "The command line does not compose.",
        got=" ".join(str(error).split())[:500],
        fix="'trajgen train --cfg job' prints what there is to set",
    )


def _no_stage(key: str, value: str, words: Sequence[str], folders: Iterable[Path]) -> ConfigError | None:
    """The error for ``engine.stages.STAGE…`` of a stage that the recipe of the other words does not have."""
    stage = key.removeprefix(STAGES).partition(".")[0]
    composed = _composed(words, folders) if key.startswith(STAGES) else None
    if composed is None or stage in composed.engine.stages:
        return None
    hint = f"'+{key}={value}' gives another stage options" if value else ""
    return unknown_name(f"The recipe has no options of a stage '{stage}'.", stage, composed.engine.stages, hint)


def _no_component(key: str, value: str, words: Sequence[str], folders: Iterable[Path]) -> ConfigError | None:
    """The error for an option of a kind that the recipe of the other words does not have."""
    kind, _, option = key.partition(".")
    composed = _composed(words, folders) if kind in KINDS and option else None
    if composed is None or kind in composed.components:
        return None
    rule = f"Recipe '{composed.recipe}' has no {kind}."
    return ConfigError(rule, got=f"{key}={value}", fix=f"leave it out, or name one: {kind}=NAME")


def _composed(words: Sequence[str], folders: Iterable[Path]) -> Config | None:
    """The configuration of these words, if they are one."""
    try:
        return compose([*(f"--config-dir={folder}" for folder in folders), *words])
    except TrajgenError:
        return None


def _options_of(section: str, words: Sequence[str], folders: Iterable[Path]) -> list[str]:
    """The options of a section; of a component, those of the one that the other words choose."""
    if section in KINDS:
        rest = _composed(words, folders)
        components = [rest.components[section]["name"]] if rest and section in rest.components else names(section)
        return sorted({option.name for name in components for option in spec(section, name).options})
    if not section:
        return list(TOP)
    classes = {**SECTIONS, "data.success": SuccessRule, "data.shift": EnvShift}
    return [f.name for f in fields(classes.get(section, StageOptions))]
