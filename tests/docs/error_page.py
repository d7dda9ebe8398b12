"""The page of all error messages, read from the code. ``python tests/docs/error_page.py`` writes it anew."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
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
        return "\n".join([self.rule, *(f"  {name + ':':<9} {rendered}" for name, rendered in self.parts)])

    @property
    def fix(self) -> str:
        """What to type or change; a hole where that depends on the moment alone."""
        return dict(self.parts).get("fix", HOLE)


@cache
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


LISTED = ("TrainingError",)
"""Classes whose errors the page lists, since they end a training; the others come before one, and say what to type."""
HEAD = """# Errors

An error that you can correct says what is wrong and what to type or change (`fix`), and where it helps what was
expected and found. The exit code is 1; `--debug` adds the traceback. An unknown command or flag ends with exit code 2,
an interruption with 130. In Python each error is an exception with the attributes `rule`, `expected`, `got` and `fix`.

Errors that end a training are listed below; `…` stands for a name, a number or a path, `|` between alternatives.

"""


@cache
def all_messages() -> tuple[Message, ...]:
    """Those of the package."""
    return tuple(m for path in sorted(PACKAGE.rglob("*.py")) for m in messages(path, classes()))


def page() -> str:
    """The page as the code has it now."""
    listed: defaultdict[str, defaultdict[str, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
    for message in all_messages():
        if HOLE not in (message.fix, message.rule):
            listed[message.error][message.fix][message.rule] = None
    return HEAD + "\n".join(_section(error, doc, listed[error]) for error, doc in classes().items())


def _section(error: str, doc: str, rules: Mapping[str, Iterable[str]]) -> str:
    text = f"## {error}\n\n{_marked(doc)}"
    if error not in LISTED:
        return f"{text}\n"
    lines = [line for fix, them in rules.items() for line in (*them, f"  fix: {fix}")]
    return f"{text}\n" + ("\n```text\n{}\n```\n".format("\n".join(lines)) if lines else "")


def _marked(text: str) -> str:
    return re.sub("``(.+?)``", r"`\1`", text)


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
