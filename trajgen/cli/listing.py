"""``trajgen list``: components, their options, recipes and data presets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trajgen.cli.words import key_values, take_imports

FILES = {"recipe": "train", "study": "study", "data": "train"}
"""What lies in files, and the command that takes it."""
PLURALS = {"recipes": "recipe", "studies": "study"}


def listing(words: list[str]) -> None:
    from rich.console import Console

    from trajgen.core.registry import KINDS, check_kind, load_entry_points, load_imports, names, spec

    load_entry_points()
    values = key_values([word for word in words if "=" in word])
    load_imports(take_imports(values))
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
        _print_component(console, spec(kind, name))
        return
    if kind:
        check_kind(kind)
    for each in [kind] if kind else KINDS:
        console.print(f"\n[bold]{each}[/]  {KINDS[each]}")
        for found in (spec(each, n) for n in names(each)):
            options = ", ".join(f"{o.name}={o.default!r}" for o in found.options)
            console.print(f"  [cyan]{found.name}[/]  {found.summary}")
            if options:
                console.print(f"      {options}")


def _print_component(console: Any, found: Any) -> None:
    from rich.table import Table

    console.print(f"[bold]{found.kind}={found.name}[/]  ({found.module}.{found.attribute})\n{found.summary}")
    table = Table("option", "type", "default")
    for option in found.options:
        table.add_row(f"{found.kind}.{option.name}", option.annotation, repr(option.default))
    console.print(table)
    if found.wiring:
        console.print(f"Given by the composition: {', '.join(found.wiring)}")


def _print_files(console: Any, what: str) -> None:
    from trajgen import config

    files: dict[str, Path] = getattr(config, f"{what}_files")()
    console.print(f"\n[bold]{what}[/]  trajgen {FILES[what]} {what}=NAME")
    for name, path in files.items():
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        console.print(f"  [cyan]{name}[/]  {first.removeprefix('#').strip() if first.startswith('#') else ''}")
