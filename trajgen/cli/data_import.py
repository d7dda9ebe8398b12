"""``trajgen data import``: data of another format, written as a Minari data set."""

from __future__ import annotations

import ast
import inspect
from dataclasses import fields

from trajgen.cli.words import key_values
from trajgen.core.errors import ConfigError
from trajgen.core.options import structure
from trajgen.data.importing import MARKS, ImportOptions, from_path

USAGE = """trajgen data import SOURCE id=mine/name-v0 [key=value …]

The source is checked whole before anything is written, and an existing set is not replaced unasked (force=true).
Formats, and what they are known by:
"""


def import_data(words: list[str]) -> None:
    """Imports the source that the first word names.

    Raises:
        ConfigError: if no source is named, or an option is wrong.
        DataError: if the source is.
    """
    if not words or {"-h", "--help"} & {*words}:
        print(import_help())
        return
    source, *rest = words
    if "=" in source and not source.startswith(("/", ".", "~")):
        raise ConfigError(
            "'trajgen data import' needs a source.",
            expected="trajgen data import SOURCE id=mine/name-v0",
            got=" ".join(["trajgen data import", *words]),
            fix="name the file or folder first",
        )
    options = structure(ImportOptions, key_values(rest), "")
    made = from_path(source, options)
    print(f"Imported {made.id}: {made.episodes:,} episodes, {made.steps:,} steps; the task ended {made.terminated:,}.")
    if made.about:
        print(made.about)
    print("A preset for it:\n\ndata:\n  " + "\n  ".join(made.lines))
    if options.env is None:
        print("\nIt names no world: it can be trained on, and evaluated with data.env_id=ID of a Gymnasium world.")


def import_help() -> str:
    """What can be imported, and all options with their defaults."""
    lines = [USAGE.rstrip(), *(f"  {name:<10} {mark}" for name, mark in MARKS.items()), "", "Options:"]
    said = _said()
    for field in fields(ImportOptions):
        default = "" if field.name == "id" else f"={'null' if field.default is None else _plain(field.default)}"
        lines.append(f"  {field.name + default:<20} {said[field.name]}")
    return "\n".join(lines)


def _plain(value: object) -> str:
    return str(list(value) if isinstance(value, tuple) else value).lower() if not isinstance(value, str) else value


def _said() -> dict[str, str]:
    """What the source of the options says below each of them."""
    body = ast.parse(inspect.getsource(ImportOptions)).body[0]
    found: dict[str, str] = {}
    if isinstance(body, ast.ClassDef):
        for node, after in zip(body.body, body.body[1:], strict=False):
            if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
                continue
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                found[node.target.id] = inspect.cleandoc(str(after.value.value)).replace("\n", "\n" + " " * 23)
    return found
