"""``trajgen completion``: what a shell offers at the Tab key, from the help texts, the registry and the files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from trajgen.core.errors import ConfigError, TrajgenError, nearest

HELP = """trajgen completion bash|zsh|fish

Prints a script that completes commands, options and their values, components, recipes, data and run folders:

  bash   echo 'source <(trajgen completion bash)' >> ~/.bashrc
  zsh    echo 'source <(trajgen completion zsh)' >> ~/.zshrc       (after compinit)
  fish   trajgen completion fish > ~/.config/fish/completions/trajgen.fish"""

SCRIPTS = {
    # The line up to the cursor is split anew: bash takes words apart at '=' and ':', and replaces the last part alone.
    "bash": r"""_trajgen() {
  local line="${COMP_LINE:0:COMP_POINT}" word before
  local IFS=$'\n'
  word="${line##*[[:space:]]}"
  COMPREPLY=($("${COMP_WORDS[0]}" completion words "$line" 2>/dev/null))
  before="${word%"${word##*[=:]}"}"
  [[ -n $before ]] && COMPREPLY=("${COMPREPLY[@]#"$before"}")
  [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=./] ]] && compopt -o nospace 2>/dev/null
  return 0
}
complete -o default -F _trajgen trajgen""",
    "zsh": r"""#compdef trajgen
_trajgen() {
  local -a found open whole
  found=(${(f)"$(trajgen completion words "$LBUFFER" 2>/dev/null)"})
  open=(${(M)found:#*[=./]})
  whole=(${found:#*[=./]})
  (( $#open )) && compadd -U -S '' -a open
  (( $#whole )) && compadd -U -a whole
}
compdef _trajgen trajgen""",
    "fish": r"""complete -c trajgen -f -a '(trajgen completion words (commandline -cp) 2>/dev/null)'""",
}

KEY = re.compile(r"(?:^|[\s'\[])([a-z_]+)=(\S*)", re.MULTILINE)
"""An option in a help text, and what it says of its value."""
LITERAL = re.compile(r"""['"](\w+)['"]""")
FILES = ("recipe", "data", "study", "search")
"""Options whose values are names of shipped files, or files of one's own."""
LARGEST = 2**20
"""Bytes of a configuration that is read at the Tab key."""
NOT_AS_IT_SHOULD = (TrajgenError, OSError, ValueError, TypeError, AttributeError, RecursionError)
"""What a file raises that is absent or damaged."""
TRAINED = ("evaluate", "sample", "plot", "video", "export")
"""Commands that take a run, and of the parts of a composition those that matter when acting."""
COMPOSED = ("train", "study", "search", "bench", "check")
"""Commands that take every part of a composition."""


def completion(words: list[str]) -> None:
    """Prints a script for a shell; or, as those scripts ask, the words that could stand at the end of a line."""
    if words and words[0] == "words":
        print("\n".join(offered(" ".join(words[1:]))))
    elif words and words[0] in SCRIPTS:
        print(SCRIPTS[words[0]])
    elif not words or words[0] in ("-h", "--help"):
        print(HELP)
    else:
        raise ConfigError(
            "Completion is made for three shells.",
            expected=", ".join(SCRIPTS),
            got=" ".join(words),
            fix=nearest(words[0], SCRIPTS),
        )


def offered(line: str) -> list[str]:
    """What could stand in the place of a line's last word, sorted; nothing of one's own is imported for it."""
    from trajgen.cli import COMMANDS

    words = re.split(r"[;&|]", line)[-1].split()
    begun = words.pop() if words and not line[-1:].isspace() else ""
    start = next((n for n, word in enumerate(words) if word == "trajgen" or word.endswith("/trajgen")), -1)
    command, *before = words[start + 1 :] or [""]
    try:
        if not command:
            found: Iterable[str] = (*COMMANDS, "--help", "--version")
        elif command in COMMANDS:
            found = _words(command, before, begun)
        else:
            found = ()
    except NOT_AS_IT_SHOULD:  # at the Tab key nobody can be told; the command itself will say it
        found = ()
    return sorted({word for word in found if word.startswith(begun) and not set(word) & set(" \n'\"")})


def _words(command: str, before: list[str], begun: str) -> Iterable[str]:
    key, equals, value = begun.partition("=")
    given = dict(word.partition("=")[::2] for word in before)
    section, dot, _ = key.rpartition(".")
    if equals:
        head = re.sub(r"[^,\[]*$", "", value)  # of several values, the last one is completed
        return [f"{key}={head}{each}" for each in _values(command, key, value[len(head) :], given)]
    if before[-1:] == ["--against"]:
        return ["dt"]
    if not before and (first := _first(command, begun)):
        return first
    if before == ["make"] and command == "data":
        return re.findall(r"(?m)^ *maker: *(\S+)", "\n".join(p.read_text("utf-8") for p in _files("data").values()))
    if dot:
        return [f"{section}.{name}" for name in _section(section, given)]
    return [*_folders(begun, "config.json", "cells"), *_options(command)] if command == "report" else _options(command)


def _first(command: str, begun: str) -> Iterable[str]:
    """The words right after a command that are not options."""
    from trajgen.core.registry import KINDS, names

    components = [f"{kind}/{name}" for kind in KINDS for name in names(kind)]
    return {
        "list": [*KINDS, *components, "recipes", "studies", "searches", "data"],
        "check": components,
        "new": [*KINDS],
        "completion": [*SCRIPTS],
        "bench": ["decision", "train", "data"],
        "data": ["list", "info", "make", "get"],
    }.get(command, [])


def _options(command: str) -> list[str]:
    """The options that the help of a command names, and the parts of a composition that it takes."""
    from trajgen.config import SECTIONS
    from trajgen.core.registry import KINDS

    parts = [*KINDS, *SECTIONS] if command in COMPOSED else []
    parts = ["sampler", "return_target", "policy", "evaluation"] if command in TRAINED else parts
    words = [f"{key}=" for key, _ in KEY.findall(_help(command)) if key != "key"]
    return [*words, *(f"{kind}=" for kind in parts if kind in KINDS), *(f"{part}." for part in parts), "--help"]


def _help(command: str) -> str:
    from trajgen.cli import COMMANDS

    room, name = COMMANDS[command]
    module = vars(import_module(f"trajgen.cli.{room}"))
    return str(module.get(f"{name.upper()}_HELP") or module.get("HELP", ""))


def _values(command: str, key: str, begun: str, given: Mapping[str, str]) -> Iterable[str]:
    from trajgen.core.registry import KINDS, names

    section, dot, name = key.rpartition(".")
    if key in FILES:
        return _named(key, begun)
    if key == "run":
        return _folders(begun, "config.json")
    if key in KINDS:
        return names(key)
    if dot:
        annotation = _section(section, given).get(f"{name}=", "")
        return ("true", "false") if annotation == "bool" else LITERAL.findall(annotation)
    said = "|".join(values for name, values in KEY.findall(_help(command) + _help("train")) if name == key)
    return (each for each in said.split("|") if each.islower() and each.isidentifier())


def _section(section: str, given: Mapping[str, str]) -> dict[str, str]:
    """What may follow a part's name and a dot, with its type as text; ending in a dot, where more follows."""
    from trajgen.config import SECTIONS
    from trajgen.core.registry import KINDS, names, spec
    from trajgen.engine.options import StageOptions

    plain = _composition(given)
    if section in KINDS:
        node = plain.get(section)
        chosen = given.get(section) or (node.get("name") if isinstance(node, dict) else None)
        some = [chosen] if chosen in names(section) else names(section)
        return {f"{option.name}=": option.annotation for name in some for option in spec(section, name).options}
    if section == "engine.stages":
        return dict.fromkeys((f"{stage}." for stage in plain.get("engine", {}).get("stages", {})), "")
    cls: Any = StageOptions if section.startswith("engine.stages.") else SECTIONS.get(section)
    return {"stages." if f.name == "stages" else f"{f.name}=": str(f.type) for f in fields(cls)} if cls else {}


def _composition(given: Mapping[str, str]) -> dict[str, Any]:
    """The run or the recipe that is on the line, as plain values; nothing if there is none."""
    from trajgen.config import read_options
    from trajgen.core.formats import current

    if "run" in given:
        path = Path(given["run"]) / "config.json"  # read here, since the module of run folders imports torch
        return current("config", json.loads(path.read_text("utf-8")), path) if path.stat().st_size < LARGEST else {}
    path = _files("recipe").get(given.get("recipe", "mage"), Path(given.get("recipe", "")))
    return read_options("recipe", path) if path.is_file() else {}


def _files(what: str) -> dict[str, Path]:
    from trajgen import config

    found: dict[str, Path] = getattr(config, f"{what}_files")()
    return found


def _named(what: str, begun: str) -> list[str]:
    """Shipped files by name, and YAML files where the word points to."""
    return [*_files(what), *(str(path) for path in _beside(begun) if path.suffix in (".yaml", ".yml"))]


def _folders(begun: str, *marks: str) -> list[str]:
    """Folders that hold one of these, those in runs/ among them; others, ending in a slash, are on the way."""
    near = [path for path in _beside(begun) if path.is_dir()]
    own = {*near, *Path("runs").glob("*/")} if "/" not in begun else near
    return [str(path) if any((path / mark).exists() for mark in marks) else f"{path}/" for path in own]


def _beside(begun: str) -> list[Path]:
    folder = Path(begun[: begun.rfind("/") + 1] or ".")
    return [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
