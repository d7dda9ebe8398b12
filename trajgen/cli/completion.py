"""What the Tab key offers for ``key=value`` words; Typer brings the scripts of the shells."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import typer

from trajgen.cli.overrides import options_of
from trajgen.core.errors import TrajgenError
from trajgen.core.registry import KINDS, names
from trajgen.security import read_limited

FILES = ("recipe", "data", "study", "search")
"""Options whose values are names of shipped files, or paths of YAML files."""
MAX_CONFIG_BYTES = 2**20
LITERAL = re.compile(r"""['"](\w+)['"]""")


@dataclass(frozen=True)
class Command:
    """What a command takes: a dataclass of its options, and the groups of a composition."""

    options: type
    groups: tuple[str, ...] = ()
    positional: str = ""
    """What else its words may be: components or folders."""


COMMANDS: dict[str, Command] = {}
"""Every command that takes ``key=value`` words, by its path, as ``data make``."""


def complete(ctx: typer.Context, incomplete: str) -> list[str]:
    """The words that could stand in the place of the last one; no module of the user is imported.

    bash takes ``key=value`` apart into three words, of which the last one alone is replaced; other shells do not.
    """
    before = re.sub(r"\n=(\n|$)", "=", "\n".join(ctx.params.get("words") or ())).split("\n")
    command = COMMANDS[ctx.command_path.partition(" ")[2]]
    key = before[-1]
    if not incomplete and key in {*options_of(command.options), *command.groups}:  # the cursor follows the '='
        before[-1] = key = f"{key}="
    prefix = key if key.endswith("=") else ""
    options = dict(word.partition("=")[::2] for word in (before[:-1] if prefix else before))
    try:
        words = candidates(command, options, prefix + incomplete)
        # Several words keep the shell from adding a blank after what they begin with.
        while len(words) == 1 and words[0][-1] in "=./" and (more := candidates(command, options, words[0])):
            if more == words:
                break
            words = more
        if len(words) == 1 and words[0].endswith("="):
            option = options_of(command.options).get(words[0][:-1])
            words.append(option.label if option else f"{words[0]}VALUE")
    except (TrajgenError, OSError, ValueError, TypeError, AttributeError, RecursionError):
        return []  # a damaged file: the command itself will name it
    return [word.removeprefix(prefix) for word in words if not set(word) & set(" \n'\"")]


def candidates(command: Command, options: Mapping[str, str], prefix: str) -> list[str]:
    """The words that begin with ``prefix``, sorted."""
    key, equals, value = prefix.partition("=")
    if equals:
        head = re.sub(r"[^,\[]*$", "", value)  # of several values, the last one is completed
        words: Iterable[str] = [f"{key}={head}{each}" for each in _values(command, key, value[len(head) :], options)]
    elif "." in key and key.partition(".")[0] in command.groups:
        section = key.rpartition(".")[0]
        words = [f"{section}.{name}" for name in _section(section, options)]
    else:
        words = [*_options(command), *_positional(command.positional, prefix)]
    return sorted({word for word in words if word.startswith(prefix)})


def _options(command: Command) -> list[str]:
    parts = [f"{part}=" for part in command.groups if part in KINDS] + [f"{part}." for part in command.groups]
    return [*(f"{key}=" for key in options_of(command.options)), *parts]


def _positional(what: str, prefix: str) -> list[str]:
    if what == "folders":
        return _folders(prefix, "config.json", "cells")
    components = [f"{kind}/{name}" for kind in KINDS for name in names(kind)] if what else []
    return [*KINDS, "recipes", "studies", "searches", "data", "zoo", *components] if what == "listed" else components


def _values(command: Command, key: str, prefix: str, options: Mapping[str, str]) -> Iterable[str]:
    section, dot, name = key.rpartition(".")
    if key in FILES:
        return [*_files(key), *(str(path) for path in _siblings(prefix) if path.suffix in (".yaml", ".yml"))]
    if key == "run":
        return [*(f"zoo/{name}" for name in _files("zoo")), *_folders(prefix, "config.json")]
    if key in KINDS:
        return names(key)
    if dot:
        annotation = _section(section, options).get(f"{name}=", "")
        return ("true", "false") if annotation == "bool" else LITERAL.findall(annotation)
    option = options_of(command.options).get(key)
    return option.values if option else ()


def _section(section: str, options: Mapping[str, str]) -> dict[str, str]:
    """What may follow a part's name and a dot, with its type as text; ending in a dot where more follows."""
    from trajgen.config import SECTIONS as OPTIONS
    from trajgen.core.registry import spec
    from trajgen.engine.options import StageOptions

    config = _composition(options)
    if section in KINDS:
        node = config.get(section)
        name = options.get(section) or (node.get("name") if isinstance(node, dict) else None)
        components = [name] if name in names(section) else names(section)
        return {f"{option.name}=": option.annotation for each in components for option in spec(section, each).options}
    if section == "engine.stages":
        return dict.fromkeys((f"{stage}." for stage in config.get("engine", {}).get("stages", {})), "")
    cls: Any = StageOptions if section.startswith("engine.stages.") else OPTIONS.get(section)
    return {"stages." if f.name == "stages" else f"{f.name}=": str(f.type) for f in fields(cls)} if cls else {}


def _composition(options: Mapping[str, str]) -> dict[str, Any]:
    """The configuration of the run or the recipe that is on the line; empty if there is none."""
    from trajgen.config import read_options
    from trajgen.core.formats import current
    from trajgen.experiments.zoo import is_on_hub, local_folder

    if "run" in options:
        if is_on_hub(options["run"]):  # the Tab key downloads nothing
            return {}
        path = local_folder(options["run"]) / "config.json"  # read here, since the module of run folders imports torch
        return current(json.loads(read_limited(path, MAX_CONFIG_BYTES)), path)
    path = _files("recipe").get(options.get("recipe", "mage"), Path(options.get("recipe", "")))
    return read_options("recipe", path) if path.is_file() else {}


def _files(what: str) -> dict[str, Path]:
    from trajgen import config

    files: dict[str, Path] = getattr(config, f"{what}_files")()
    return files


def _folders(prefix: str, *marks: str) -> list[str]:
    """Folders that hold one of these, those in runs/ among them; others end in a slash."""
    folders = {path for path in _siblings(prefix) if path.is_dir()}
    folders |= set() if "/" in prefix else {*Path("runs").glob("*/")}
    return [str(path) if any((path / mark).exists() for mark in marks) else f"{path}/" for path in folders]


def _siblings(prefix: str) -> list[Path]:
    folder = Path(prefix[: prefix.rfind("/") + 1] or ".")
    return [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
