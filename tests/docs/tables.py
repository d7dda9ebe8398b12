"""Tables of the pages that are made from the code. ``python tests/docs/tables.py`` writes them anew.

A page says where one belongs by ``<!-- KIND-OF-TABLE:ARGUMENT -->``; it ends at ``<!-- end -->``.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml
from pages import PAGES

from trajgen.config import recipe_files
from trajgen.core import protocols
from trajgen.core.registry import KINDS, component, names, spec

MARKED = re.compile(r"(<!-- (\w+)(?::(\w+))? -->\n).*?(<!-- end -->)", re.DOTALL)
SHOWN = ("schedule", "tokenizer", "prior", "decoder", "sampler", "action", "planner")
"""The kinds in the table of recipes."""
CALLED = {"ActionHead": "action"}
"""What a protocol's object is called where it is called."""


def protocol(name: str) -> str:
    """What a protocol asks for: its methods and attributes, each with the first paragraph of its docstring."""
    tree = ast.parse(inspect.getsource(protocols))
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    rows = [f"| `{what}` | {said} |" for what, said in _members(found)]
    return "\n".join(["| it has | which is |", "| --- | --- |", *rows])


def _members(found: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for node, following in zip(found.body, [*found.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            said = f"`{ast.unparse(node.annotation)}`"
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                said = str(following.value.value)
            yield ast.unparse(node.target), _cell(said)
        elif isinstance(node, ast.FunctionDef):
            arguments = node.args
            given = [a.arg for a in arguments.args[1:]]
            given += ["*", *(a.arg for a in arguments.kwonlyargs)] if arguments.kwonlyargs else []
            name = CALLED.get(found.name, found.name.lower()) if node.name == "__call__" else node.name
            said = ast.get_docstring(node) or f"`{ast.unparse(node.returns or ast.Constant(None))}`"
            if node.name == "__call__":
                said = ast.get_docstring(node) or ast.get_docstring(found) or said
            yield f"{name}({', '.join(given)})", _cell(said.split("\n\n")[0])


def components(kind: str) -> str:
    """The components that are shipped: what each is, and what it asks for before its ``*``."""
    shipped = [spec(kind, n) for n in names(kind)]
    rows = [
        f"| `{found.name}` | {_cell(found.summary)} | {', '.join(f'`{w}`' for w in found.wiring)} |"
        for found in shipped
        if component(kind, found.name).__module__.startswith("trajgen.")
    ]
    return "\n".join(["| name | what | asks for |", "| --- | --- | --- |", *rows])


def recipes(_: str = "") -> str:
    """The components of every shipped recipe."""
    rows = []
    for name, path in recipe_files().items():
        nodes = yaml.safe_load(path.read_text(encoding="utf-8"))
        fields = ", ".join(nodes["view"]["fields"]) if "view" in nodes else "–"
        parts = [f"`{nodes[kind]['name']}`" if kind in nodes else "–" for kind in SHOWN]
        rows.append(f"| [`{name}`](#{name}) | {fields} | {' | '.join(parts)} |")
    head = f"| recipe | generates | {' | '.join(SHOWN)} |"
    return "\n".join([head, "| --- " * (len(SHOWN) + 2) + "|", *rows])


def kinds(_: str = "") -> str:
    """All kinds, with the page of each."""
    rows = [f"| [{kind}]({kind}.md) | {said} |" for kind, said in KINDS.items()]
    return "\n".join(["| kind | what it is |", "| --- | --- |", *rows])


TABLES: dict[str, Callable[[str], str]] = {
    "protocol": protocol,
    "components": components,
    "recipes": recipes,
    "kinds": kinds,
}


def fresh(text: str) -> str:
    """A page's text with its tables as the code has them now."""
    return MARKED.sub(lambda m: f"{m[1]}{TABLES[m[2]](m[3] or '')}\n{m[4]}" if m[2] in TABLES else m[0], text)


def _cell(text: str) -> str:
    return re.sub(r"``(.+?)``", r"`\1`", " ".join(text.split())).replace("|", "\\|")


def main() -> None:
    """Writes the tables of all pages."""
    for path in PAGES.values():
        text = path.read_text(encoding="utf-8")
        if (now := fresh(text)) != text:
            path.write_text(now, encoding="utf-8")
            print(f"wrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


if __name__ == "__main__":
    main()
