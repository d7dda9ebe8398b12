"""The page of all error messages, read from the code. ``python tests/docs/error_page.py`` writes it anew."""

from __future__ import annotations

import ast
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pages import DOCS, ROOT

PAGE = DOCS / "errors.md"
PACKAGE = ROOT / "trajgen"
HOLE = "…"
"""What stands where a message names something of the moment."""
PARTS = ("expected", "got", "fix")
ANSWERS = {"nearest": "did you mean …?"}
"""Functions whose answers are part of a message, and what they say."""


@dataclass(frozen=True)
class Message:
    """One message: the class of the error, the room that raises it, and its four parts as they are printed."""

    error: str
    room: str
    rule: str
    parts: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return self._lines(PARTS)

    @property
    def entry(self) -> str:
        """What the page has of it: the rule, by which it is looked up, and the fix."""
        return self._lines(("fix",))

    def _lines(self, names: tuple[str, ...]) -> str:
        lines = [f"  {name + ':':<9} {rendered}" for name, rendered in self.parts if name in names]
        return "\n".join([self.rule, *lines])


def classes() -> dict[str, str]:
    """The errors that a person can mend, by name, with what each is."""
    docs: dict[str, str] = {}
    names = {"TrajgenError"}
    for path in [PACKAGE / "core" / "errors.py", *sorted(PACKAGE.rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and {ast.unparse(b) for b in node.bases} & names | ({node.name} & names):
                names.add(node.name)
                docs[node.name] = (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ")
    return docs


def messages(path: Path, error_names: Mapping[str, str]) -> Iterator[Message]:
    """The messages of a module, in the order in which they stand."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    constants = {ast.unparse(n.targets[0]): n.value for n in tree.body if isinstance(n, ast.Assign)}
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    for call in sorted(calls, key=lambda n: n.lineno):
        assert isinstance(call.func, ast.Name)
        if call.func.id in error_names and call.args:
            arguments = {word.arg: word.value for word in call.keywords}
            parts = tuple((name, rendered(arguments[name], constants)) for name in PARTS if name in arguments)
            yield Message(call.func.id, room, rendered(call.args[0], constants), parts)


def rendered(node: ast.expr, constants: Mapping[str, ast.expr]) -> str:
    """An expression as a reader meets it: its text, with a hole where something of the moment stands."""
    return re.sub(rf"{HOLE}(?:[ ,.]*{HOLE})+", HOLE, _rendered(node, constants))


def _rendered(node: ast.expr, constants: Mapping[str, ast.expr]) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_rendered(part, constants) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _rendered(node.value, constants)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _rendered(node.left, constants) + _rendered(node.right, constants)
    if isinstance(node, (ast.BoolOp, ast.IfExp)):
        either = node.values if isinstance(node, ast.BoolOp) else [node.body, node.orelse]
        return " | ".join(text for text in dict.fromkeys(_rendered(each, constants) for each in either) if text)
    if isinstance(node, ast.Name) and node.id in constants:
        return _rendered(constants[node.id], constants)
    if isinstance(node, ast.Call):
        return _called(node, constants)
    return HOLE


def _called(node: ast.Call, constants: Mapping[str, ast.expr]) -> str:
    """What a call gives: of what is joined, one item and a hole; or what one of ours is known to say."""
    if isinstance(node.func, ast.Name):
        return ANSWERS.get(node.func.id, HOLE)
    if isinstance(node.func, ast.Attribute) and node.func.attr == "join" and isinstance(node.args[0], ast.GeneratorExp):
        return _rendered(node.args[0].elt, constants) + HOLE
    return HOLE


HEAD = """# Errors

What trajgen refuses says four things: the rule, what would have been accepted (`expected`), what was found (`got`), and
what to type or change (`fix`). Wherever it can be, it is said before data are read or anything is trained. The exit
code is 1; `--debug` adds the traceback. An unknown command or flag is refused with the usage and exit code 2, and an
interruption ends with 130.

This page has the rule and the fix of every such message, as printed. `…` stands for what belongs to the moment: a name,
a number, a path.
Texts with `|` between them are one or the other. Look for a few words of the rule. The page is made from the code by
`python tests/docs/error_page.py`, and a test compares the two.

In Python, each is an exception of one of these classes, with the attributes `rule`, `expected`, `got` and `fix`:

"""


def page() -> str:
    """The page as the code has it now."""
    docs = classes()
    rooms: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(PACKAGE.rglob("*.py")):
        for message in messages(path, docs):
            here = rooms[message.room][message.error]
            if message.entry not in here:
                here.append(message.entry)
    parts = [f"| class | when |\n| --- | --- |\n{_rows(docs)}\n"]
    for room in sorted(rooms):
        parts.append(f"## {room}\n\n{about(room)}\n")
        for error in (error for error in docs if error in rooms[room]):
            listed = "\n\n".join(rooms[room][error])
            parts.append(f"`{error}`\n\n```text\n{listed}\n```\n")
    return HEAD + "\n".join(parts)


def _rows(docs: Mapping[str, str]) -> str:
    return "\n".join(f"| `{name}` | {_marked(what)} |" for name, what in docs.items())


def _marked(text: str) -> str:
    return re.sub("``(.+?)``", r"`\1`", text)


def about(room: str) -> str:
    """The first sentence of a room's docstring."""
    path = PACKAGE / room / "__init__.py"
    doc = ast.get_docstring(ast.parse((path if path.exists() else PACKAGE / f"{room}.py").read_text(encoding="utf-8")))
    return _marked(inspect.cleandoc(doc or "").split("\n\n")[0].replace("\n", " "))


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
