"""``trajgen list``: components, their options, recipes and data presets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trajgen.cli.words import key_values, take_imports

FILES = {"recipe": "train", "study": "study", "search": "search", "data": "train"}
"""What lies in files, and the command that takes it."""
PLURALS = {"recipes": "recipe", "studies": "study", "searches": "search"}


LIST_HELP = """trajgen list [KIND[/NAME]] [imports=[my_parts]]

  trajgen list                     recipes, studies, searches, data presets, and all components
  trajgen list recipes             also: studies, searches, data
  trajgen list prior               the components of a kind
  trajgen list prior/transformer   the options of one, with types and defaults"""


def listing(words: list[str]) -> None:
    if "--help" in words or "-h" in words:
        print(LIST_HELP)
        return
    from rich.console import Console
    from rich.markup import escape

    from trajgen.core.registry import KINDS, check_kind, load_entry_points, load_imports, names, spec

    load_entry_points()
    values = key_values([word for word in words if "=" in word])
    modules = take_imports(values)
    load_imports(modules)
    which = [word for word in words if "=" not in word]
    console = Console(soft_wrap=True, highlight=False)
    if not which:
        for what in FILES:
            _print_files(console, what)
    elif (what := PLURALS.get(which[0], which[0])) in FILES:
        _print_files(console, what)
        return
    kind, _, name = which[0].partition("/") if which else ("", "", "")
    if name:
        _print_component(console, spec(kind, name), modules)
        return
    if kind:
        check_kind(kind)
    for each in [kind] if kind else KINDS:
        console.print(f"\n[bold]{each}[/]  {KINDS[each]}")
        for found in (spec(each, n) for n in names(each)):
            console.print(f"  [cyan]{found.name}[/]{escape(_signature(found))}")
            console.print(f"      {escape(found.summary)}")


def _signature(found: Any) -> str:
    options = [f"{o.name}={o.default!r}" for o in found.options]
    return f"({', '.join([*found.wiring, *(['*'] if options else []), *options])})"


def _print_component(console: Any, found: Any, modules: Sequence[str]) -> None:
    from rich.markup import escape

    from trajgen.viz.tables import Table

    about = _explained(found)
    console.print(f"[bold]{found.kind}={found.name}[/]  ({found.module}.{found.attribute})\n{escape(found.summary)}\n")
    rows = [(f"{found.kind}.{o.name}", o.annotation, repr(o.default), about.get(o.name, "")) for o in found.options]
    table = Table(("option", "type", "default", "what it is"), rows, numeric=False)
    console.print(table.rich() if rows else "It has no options.")
    if found.wiring:
        console.print(f"\nGiven by the composition: {', '.join(found.wiring)}")
        for name in (name for name in found.wiring if name in about):
            console.print(f"  [cyan]{name}[/]  {escape(about[name])}")
    own = f" 'imports=[{','.join(modules)}]'" if modules else ""
    check, train = f"check {found.kind}/{found.name}", f"train {found.kind}={found.name}"
    console.print(escape(f"\n  trajgen {check}{own}    trajgen {train}{own}"))


def _explained(found: Any) -> dict[str, str]:
    """What the docstring says of each argument, read from the source: importing it could take torch along."""
    import ast
    import re
    from importlib.util import find_spec

    module = find_spec(found.module)
    source = Path(module.origin) if module and module.origin else None
    if source is None or not source.is_file():
        return {}
    body = ast.parse(source.read_text(encoding="utf-8")).body
    nodes = [n for n in body if isinstance(n, (ast.ClassDef, ast.FunctionDef)) and n.name == found.attribute]
    text = (ast.get_docstring(nodes[0]) or "") if nodes else ""
    arguments = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)+)", text, re.MULTILINE)
    entries = re.split(r"^[ ]{4}(?=\S)", arguments[1], flags=re.MULTILINE) if arguments else []
    said = [entry.partition(":") for entry in entries if ":" in entry]
    return {name.strip(): " ".join(what.split()) for names, _, what in said for name in names.split(",")}


def _print_files(console: Any, what: str) -> None:
    from trajgen import config

    files: dict[str, Path] = getattr(config, f"{what}_files")()
    console.print(f"\n[bold]{what}[/]  trajgen {FILES[what]} {what}=NAME")
    for name, path in files.items():
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        console.print(f"  [cyan]{name}[/]  {first.removeprefix('#').strip() if first.startswith('#') else ''}")
