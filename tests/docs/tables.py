"""Tables and lists of the pages that are made from the code. ``python tests/docs/tables.py`` writes them anew.

A page says where one belongs by ``<!--KIND-OF-TABLE:ARGUMENT-->``; it ends at ``<!--end-->``.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import catalogue_table
import path_figure
from griffe import Docstring, DocstringSectionKind
from pages import PAGES

import trajgen
from trajgen.config import SECTIONS, compose, zoo_files
from trajgen.core import critics, errors, planning, protocols
from trajgen.core.options import WORDS, describe
from trajgen.core.registry import KINDS, names, spec
from trajgen.core.schedule import ScaleSchedule
from trajgen.engine.options import StageOptions

MARKED = re.compile(r"(<!--(\w+)(?::(\w+))?-->\n).*?(<!--end-->)", re.DOTALL)
FOLLOWS = (property, cached_property)
CALLED = {"ActionHead": "action", "ReturnTarget": "return_target"}
"""What a protocol's object is called where it is called."""


def protocol(name: str) -> str:
    """What a protocol requires: its methods and attributes, each with the first paragraph of its docstring."""
    trees = [ast.parse(inspect.getsource(module)) for module in (protocols, critics, planning)]
    classes = {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}
    bases = [base.id for base in classes[name].bases if isinstance(base, ast.Name) and base.id in classes]
    return "\n".join(f"- `{what}`: {text}" for each in (*bases, name) for what, text in _members(classes[each]))


def _members(protocol: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for node, following in zip(protocol.body, [*protocol.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            text = f"`{ast.unparse(node.annotation)}`"
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                text = str(following.value.value)
            yield ast.unparse(node.target), _text(text)
        elif isinstance(node, ast.FunctionDef):
            arguments = node.args
            parameters = [a.arg for a in arguments.args[1:]]
            parameters += ["*", *(a.arg for a in arguments.kwonlyargs)] if arguments.kwonlyargs else []
            name = CALLED.get(protocol.name, protocol.name.lower()) if node.name == "__call__" else node.name
            text = ast.get_docstring(node) or f"`{ast.unparse(node.returns or ast.Constant(None))}`"
            if node.name == "__call__":
                text = ast.get_docstring(node) or ast.get_docstring(protocol) or text
            yield f"{name}({', '.join(parameters)})", _text(text.split("\n\n")[0])


def components(kind: str) -> str:
    """The components that are shipped, each with a link to what it is and to its options."""
    shipped = (each for each in (spec(kind, name) for name in names(kind)) if each.module.startswith("trajgen."))
    return ",\n".join(f"[`{each.name}`][{each.module}.{each.attribute}]" for each in shipped)


def kinds(_: str = "") -> str:
    """All kinds, with the page of each."""
    return "\n".join(f"- [{kind}]({kind}.md): {text}" for kind, text in KINDS.items())


def arguments(documented: Any) -> dict[str, str]:
    """What the docstring of a class or function says of each of its arguments."""
    about = {}
    for section in Docstring(inspect.getdoc(documented) or "").parse("google", warnings=False):
        if section.kind is DocstringSectionKind.parameters:
            about |= {name: one.description for one in section.value for name in one.name.split(", ")}
    return about


def settings(name: str) -> str:
    """The options of a section of a configuration that is no component."""
    cls = StageOptions if name == "stage" else SECTIONS[name]
    prefix = "engine.stages.NAME" if name == "stage" else name
    hints, about = typing.get_type_hints(cls), attributes(cls)
    rows = []
    for field in dataclasses.fields(cls):
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        values = _values(f"{prefix}.{field.name}", hints[field.name], default)
        rows.append(f"- {_text(values)}: {_text(about.get(field.name, ''))}")
    return "\n".join(rows)


def attributes(cls: type) -> dict[str, str]:
    """What is said of each field of a dataclass: below it, or among the arguments of the class."""
    (tree,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(tree, ast.ClassDef)
    about = {k: v[:1].upper() + v[1:] for k, v in arguments(cls).items()}
    for node, following in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(following, ast.Expr):
            about[ast.unparse(node.target)] = ast.literal_eval(following.value)
    return about


def letters(_: str = "") -> str:
    """The letters of shapes, with what each is in the default recipe."""
    tensors, config = path_figure.shapes(compose([])), compose([])
    lengths = tensors["schedule"]
    letters_and_sizes = {
        "B": ("batch", "`engine.stages.NAME.batch_size`", ""),
        "T": ("horizon, points in a window", "`data.horizon`", config.data.horizon),
        "M": ("stride, environment steps between two points", "`data.stride`", config.data.stride),
        "H": ("chunk, steps at full rate that the action head learns", "`data.chunk`", config.data.chunk),
        "S, A, G": (
            "width of state, action, goal",
            "of the data",
            f"{path_figure.SPACE.state_dim}, {path_figure.SPACE.action_dim}, {path_figure.SPACE.goal_dim}",
        ),
        "P": ("points of a history", "by the planner", "0"),
        "Q": ("goals of a transition, the first of which is the window's", "by the stage", ""),
        "D": (
            "features per point",
            "by the view: 1 + S for (return, state), M·A for the actions",
            tensors["x"].shape[-1],
        ),
        "N": (
            "latent length; where it is learnt, T is N times a power of two",
            "`tokenizer.latent_length`",
            tensors["latent"].shape[1],
        ),
        "C": ("code width", "`tokenizer.code_dim`", tensors["code_dim"]),
        "V": (
            "codes in the vocabulary; none if codes are continuous",
            "`tokenizer.codebook_size`",
            tensors["vocabulary"],
        ),
        "K, l_k": ("scales, and their lengths", "`schedule`", f"{len(lengths)}, {lengths}"),
        "L": ("tokens", "the sum of l_k", sum(lengths)),
        "E": ("width of the condition's embedding", "`conditioner.width`", tensors["embedding"].shape[-1]),
        "W": ("width of the prior", "`prior.width`", config.components["prior"]["width"]),
    }
    return "\n".join(
        f"- **{letter}**{f' = {value}' * (value != '')}: {what} ({where})"
        for letter, (what, where, value) in letters_and_sizes.items()
    )


def scales(_: str = "") -> str:
    """What a schedule tells: the lengths it was made of, and what follows from them."""
    docs = {k: v.__doc__ or v.func.__doc__ for k, v in vars(ScaleSchedule).items() if isinstance(v, FOLLOWS)}
    return "\n".join(["- `lengths`: (l_1, …, l_K)", *(f"- `{name}`: {_text(text)}" for name, text in docs.items())])


def public(_: str = "") -> str:
    """The names that ``import trajgen`` offers."""
    rows = []
    for name in trajgen.__all__:
        exported = getattr(trajgen, name)
        home = f"{exported.__module__}.{name}"
        rows.append(f"- [`trajgen.{name}`][{home}]: {_text(first_sentence(exported))}")
    return "\n".join(rows)


def error_classes(_: str = "") -> str:
    """The exceptions that a user can mend."""
    classes = [each for each in vars(errors).values() if inspect.isclass(each) and each.__module__ == errors.__name__]
    return "\n".join(f"- `{each.__name__}`: {_text(first_sentence(each))}" for each in classes)


def zoo(_: str = "") -> str:
    """The planners of the zoo with the scores that were measured."""
    rows = []
    for name, card in zoo_files().items():
        figures = json.loads((card.parent / "evaluation.json").read_text(encoding="utf-8"))
        normalized = figures["normalized"]
        low, high = normalized["ci95"]
        ratio = figures["ratio_to_controller"]
        cells = [
            f"`zoo/{name}`",
            f"{figures['return']['mean']:.0f}",
            "" if ratio is None else f"{ratio:.2f}",
            f"{normalized['mean']:.1f} [{low:.1f}, {high:.1f}]",
            f"{figures['success']:.0%}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    head = "| planner | return | of the controller's | normalized by D4RL's bounds | success |"
    return "\n".join([head, "|---|---:|---:|---:|---:|", *rows])


def modules(page: Path) -> list[str]:
    """The modules that a page of the API documents."""
    return re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE)


def first_sentence(documented: Any) -> str:
    """The first paragraph of a docstring."""
    return (inspect.getdoc(documented) or "").split("\n\n")[0]


TABLES: dict[str, Callable[[str], str]] = {
    "protocol": protocol,
    "components": components,
    "kinds": kinds,
    "catalogue": catalogue_table.table,
    "settings": settings,
    "letters": letters,
    "scales": scales,
    "public": public,
    "errors": error_classes,
    "zoo": zoo,
}


def fresh(text: str) -> str:
    """A page's text with its tables as the code has them now."""
    return MARKED.sub(lambda m: f"{m[1]}{TABLES[m[2]](m[3] or '')}\n{m[4]}" if m[2] in TABLES else m[0], text)


def _values(option: str, annotation: Any, default: Any) -> str:
    """An option with its default, as it is typed, and what else it can be: names, and other types."""
    needed = default is dataclasses.MISSING
    value = "" if needed else default if isinstance(default, str) else _plain(default)
    others = [each for each in _choices(annotation) if each not in (f"`{value}`", type(default).__name__)]
    return ", ".join([f"`{option}`" if needed else f"`{option}={value}`", *others])


def _choices(annotation: Any) -> Iterator[str]:
    origin, of = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        yield from (choice for each in of for choice in _choices(each))
    elif origin is typing.Literal:
        yield from (f"`{name}`" for name in of)
    else:
        yield "`null`" if annotation is type(None) else _type(annotation)


def _type(annotation: Any) -> str:
    """A type in a word, as ``trajgen list KIND/NAME`` has it."""
    text = describe(annotation).replace("a list of ", "list of ").replace("one of ", "")
    for type_, words in WORDS.items():
        text = text.replace(words, "null" if type_ is type(None) else type_.__name__)
    return text


def _plain(value: Any) -> str:
    """A default as it is written in a recipe."""
    if dataclasses.is_dataclass(value):
        return "{}"
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def _text(text: str) -> str:
    text = re.sub(r"``(.+?)``", r"`\1`", " ".join(text.split()))
    return text.replace("\u0302_", "\u0302\\_")  # an index after a hat would begin emphasis


def main() -> None:
    """Writes the tables of all pages."""
    for path in PAGES.values():
        text = path.read_text(encoding="utf-8")
        if (now := fresh(text)) != text:
            path.write_text(now, encoding="utf-8")
            print(f"wrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


if __name__ == "__main__":
    main()
