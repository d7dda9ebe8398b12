"""``trajgen new``: writes a skeleton of a component."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.util import find_spec
from pathlib import Path

from trajgen.cli.words import key_values, take_imports
from trajgen.core.errors import ConfigError

NEW_HELP = """trajgen new KIND NAME [file=PATH.py]

  KIND                     view, schedule, tokenizer, conditioner, prior, decoder, action, sampler, target or planner
  NAME                     under which recipes will name it: prior=NAME
  file=PATH.py             where it is written: NAME.py in this folder if not given; nothing is ever overwritten

Writes a small commented component that works and passes 'trajgen check', to be changed into what you want."""

PLACEHOLDER = "mine"
RECIPES = {"tokenizer": "flat_ar", "planner": "bc"}
"""The recipe in which a skeleton works as it is, where that is not mage."""


def new(words: list[str]) -> None:
    if "--help" in words or "-h" in words:
        print(NEW_HELP)
        return
    from trajgen.core.registry import check_kind, load_entry_points, load_imports, names

    plain = [word for word in words if "=" not in word]
    if len(plain) != 2:
        raise ConfigError(
            "A new component has a kind and a name.",
            expected="trajgen new KIND NAME",
            got=" ".join(["trajgen new", *words]),
            fix="for example trajgen new prior gru",
        )
    kind, name = plain
    values = key_values([word for word in words if "=" in word])
    load_entry_points()
    load_imports(take_imports(values))
    check_kind(kind)
    _check_name(kind, name, names(kind))
    path = Path(str(values.pop("file", f"{name}.py")))
    if values:
        raise ConfigError(
            "A skeleton has no options yet.", expected="file=PATH.py", got=", ".join(values), fix="set them in the file"
        )
    module = _module(path, kind)
    skeleton = Path(__file__).parents[1] / "templates" / f"{kind}.py"
    camel = "".join(part[:1].upper() + part[1:] for part in name.split("_"))
    text = re.sub(rf"\b{PLACEHOLDER}\b", name, skeleton.read_text(encoding="utf-8"))
    text = re.sub(rf"\b{PLACEHOLDER.capitalize()}(?=[A-Z])", camel, text)
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
    print(f"Wrote {path}. Next:\n")
    print(f"  trajgen check {kind}/{name} 'imports=[{module}]'")
    print(f"  trajgen list {kind}/{name} 'imports=[{module}]'")
    print(f"  trajgen train recipe={RECIPES.get(kind, 'mage')} {kind}={name} 'imports=[{module}]'")


def _check_name(kind: str, name: str, taken: list[str]) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(
            "A component's name is a Python name in lower case.",
            expected="letters, digits and _, as in gru or my_gru",
            got=name,
            fix=f"trajgen new {kind} {re.sub(r'[^a-z0-9_]+', '_', name.lower()).strip('_0123456789') or 'my_' + kind}",
        )
    if name in taken:
        raise ConfigError(
            f"There is a {kind} '{name}' already.",
            expected="a name that is free",
            got=f"{name}; taken are {', '.join(taken)}",
            fix=f"trajgen new {kind} my_{name}",
        )


def _module(path: Path, kind: str) -> str:
    """The dotted name by which a file is imported from here.

    Raises:
        ConfigError: if the file exists, its folder does not, or no import statement could name it.
    """
    if path.exists():
        raise ConfigError(
            "A file is never overwritten.",
            expected="a path that is free",
            got=str(path),
            fix=f"file={path.with_name(f'{path.stem}_{kind}.py')}",
        )
    inside = path.resolve().is_relative_to(Path.cwd())
    parts = path.resolve().relative_to(Path.cwd()).with_suffix("").parts if inside else ()
    if path.suffix != ".py" or not parts or not all(p.isidentifier() and not keyword.iskeyword(p) for p in parts):
        raise ConfigError(
            "The file can be imported from this folder.",
            expected="NAME.py or FOLDER/NAME.py below this folder, of letters, digits and _",
            got=str(path),
            fix=f"file=my_{kind}.py",
        )
    if not path.parent.is_dir():
        raise ConfigError(
            "There is no such folder.", expected="a folder", got=str(path.parent), fix=f"mkdir -p {path.parent}"
        )
    if not (Path.cwd() / parts[0]).is_dir() and (parts[0] in sys.stdlib_module_names or find_spec(parts[0])):
        raise ConfigError(
            f"There is a Python module '{parts[0]}' already, which 'import' would find first.",
            expected="another name for the file",
            got=str(path),
            fix=f"file={path.with_name(f'my_{path.name}')}",
        )
    return ".".join(parts)
