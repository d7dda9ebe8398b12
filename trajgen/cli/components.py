"""``trajgen list``, ``new`` and ``check``: components, as they are and as one writes them."""

from __future__ import annotations

import ast
import keyword
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import typer

from trajgen.cli.app import Words, command
from trajgen.cli.overrides import parse, read
from trajgen.core.errors import ConfigError, TrajgenError
from trajgen.core.registry import KINDS, check_kind, load_entry_points, load_imports, names, spec

FILES = {
    "recipe": "train recipe=",
    "study": "study study=",
    "search": "search search=",
    "data": "train data=",
    "zoo": "evaluate run=zoo/",
}
"""What lies in files, and the command that takes one by its name."""
PLURALS = {"recipes": "recipe", "studies": "study", "searches": "search"}
PLACEHOLDER = "mine"
RECIPES = {
    "encoder": "mage data=pointmaze/umaze-pixels",
    "tokenizer": "flat_ar",
    "critic": "mage_critic",
    "planner": "bc",
}
"""The recipe in which a template works as it is, where that is not mage, and its data if they need images."""
STYLES = {"passed": "green", "failed": "bold red", "not applicable": "dim"}


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """Options of ``trajgen list``."""

    imports: tuple[str, ...] = ()
    """Modules that register own components."""


@dataclass(frozen=True, kw_only=True)
class NewOptions(ListOptions):
    """Options of ``trajgen new``."""

    file: Path | None = None
    """File that is written, below this folder; by default NAME.py. Nothing is overwritten."""


@dataclass(frozen=True, kw_only=True)
class CheckOptions(ListOptions):
    """Options of ``trajgen check``."""

    recipe: str | None = None
    """Composition in which the component is tried, at small sizes; by default the first that accepts it."""


@command("list", ListOptions, "list prior/transformer", positional="listed")
def list_(words: Words) -> None:
    """Show recipes, studies, searches, data and components.

    Nothing lists all; recipes, studies, searches, data or zoo (trained planners) those; KIND its components; KIND/NAME
    the options of one.
    """
    from rich.console import Console
    from rich.markup import escape

    which = [word for word in words if "=" not in word]
    options, _ = read([word for word in words if "=" in word], ListOptions, ())
    load_entry_points()
    load_imports(options.imports)
    console = Console(soft_wrap=True, highlight=False)
    listed = [PLURALS.get(word, word) for word in which]
    for what in listed:
        if what not in FILES and (fix := _elsewhere(what)):
            raise ConfigError(f"'trajgen list {what}' lists nothing.", fix=fix)
    for what in listed or (*FILES, *KINDS):
        kind, _, name = what.partition("/")
        if what in FILES:
            _print_files(console, what)
        elif name:
            _print_component(console, spec(kind, name), options.imports)
        else:
            check_kind(kind)
            console.print(f"\n[bold]{kind}[/]  {KINDS[kind]}")
            for component in (spec(kind, name) for name in names(kind)):
                _print_entry(console, f"[cyan]{component.name}[/]{escape(_signature(component))}", 2, 8)
                _print_entry(console, escape(component.summary), 6, 6)


def _elsewhere(what: str) -> str:
    """Where to read about something of which a list has the name alone, or a component without its kind."""
    from trajgen.config import data_files, recipe_files

    group, _, name = what.rpartition("/") if what.startswith(("recipe/", "recipes/")) else ("", "", what)
    if group or name in recipe_files():
        return f"trajgen train recipe={name} --cfg job"
    if (name := what.removeprefix("data/")) in data_files():
        return f"trajgen data info {name}"
    return " or ".join(f"trajgen list {kind}/{what}" for kind in KINDS if what in names(kind))


@command("new", NewOptions, "new prior gru")
def new(
    kind: Annotated[str, typer.Argument(metavar="KIND", autocompletion=lambda: [*KINDS])],
    name: Annotated[str, typer.Argument(metavar="NAME")],
    words: Words,
) -> None:
    """Write a small component that works, to be changed into your own.

    Recipes will name it NAME (prior=gru). It is commented, and passes 'trajgen check'.
    """
    options, _ = read(words, NewOptions, ())
    load_entry_points()
    load_imports(options.imports)
    check_kind(kind)
    _check_name(kind, name)
    path = options.file or Path(f"{name}.py")
    module = _module(path, kind)
    template = Path(__file__).parents[1] / "templates" / f"{kind}.py"
    camel = "".join(part[:1].upper() + part[1:] for part in name.split("_"))
    text = re.sub(rf"\b{PLACEHOLDER}\b", name, template.read_text(encoding="utf-8"))
    text = re.sub(rf"\b{PLACEHOLDER.capitalize()}(?=[A-Z])", camel, text)
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
    print(f"Wrote {path}. Next:\n")
    print(f"  trajgen check {kind}/{name} 'imports=[{module}]'")
    print(f"  trajgen list {kind}/{name} 'imports=[{module}]'")
    print(f"  trajgen train recipe={RECIPES.get(kind, 'mage')} {kind}={name} 'imports=[{module}]'")


def _components() -> list[str]:
    return [f"{kind}/{name}" for kind in KINDS for name in names(kind)]


@command("check", CheckOptions, "check prior/gru 'imports=[gru]' prior.width=8", groups=(*KINDS, "data"))
def check(
    component: Annotated[str, typer.Argument(metavar="KIND/NAME", autocompletion=_components)], words: Words
) -> None:
    """Test what a component of its kind promises.

    Shapes, gradients, reproducible samples, teacher forcing equal to stepwise prediction, … For each that fails it says
    what was expected, what was found, and where to look; the exit code is 1 then. Components that need each other are
    named together, and tested in one composition: prior/flow sampler/euler.
    """
    together = [component, *(word for word in words if "=" not in word)]
    parts = [(kind, name) for kind, _, name in (word.partition("/") for word in together)]
    options, rest = read([word for word in words if "=" in word], CheckOptions, (*KINDS, "data"))
    _import((*options.imports, *_recipe_imports(options.recipe)))
    for (_, name), word in zip(parts, together, strict=True):
        if not name or "=" in word:
            of_name = [each for each in _components() if each.endswith(f"/{word}")] or ["prior/transformer"]
            raise ConfigError("A component is written KIND/NAME.", got=word, fix=f"trajgen check {of_name[0]}")
    for kind, name in parts:
        spec(kind, name)  # an unknown one is refused before torch is imported
    from rich.console import Console

    from trajgen import testing

    pair = [f"{kind}={name}" for kind, name in parts] if len(parts) > 1 else []
    reports = [testing.check(kind, name, options.recipe, parse([*pair, *rest])) for kind, name in parts]
    for report in reports:
        _print_report(Console(soft_wrap=True, highlight=False), report)
    broken = [report for report in reports if report.failed]
    if broken:
        errors = [result.error for report in broken for result in report.failed if result.error]
        raise TrajgenError(
            "; ".join(
                f"{report.kind} '{report.name}' breaks {len(report.failed)} of {len(report.results)} contracts: "
                + "; ".join(result.promise for result in report.failed)
                for report in broken
            ),
            fix="see above" + (" (--debug: traceback)" if errors else ""),
        ) from (errors[0] if errors else None)


def _signature(component: Any) -> str:
    options = [f"{option.name}={option.default!r}" for option in component.options]
    return f"({', '.join([*component.wiring, *(['*'] if options else []), *options])})"


def _print_component(console: Any, component: Any, modules: Sequence[str]) -> None:
    from rich.markup import escape

    from trajgen.core.tables import Table

    kind, name, docs = component.kind, component.name, _argument_docs(component)
    console.print(f"[bold]{kind}={name}[/]  ({component.module}.{component.attribute})\n{escape(component.summary)}\n")
    rows = [
        (f"{kind}.{each.name}", each.annotation, repr(each.default), docs.get(each.name, ""))
        for each in component.options
    ]
    table = Table(("option", "type", "default", "what it is"), rows, numeric=False)
    console.print(table.rich() if rows else "It has no options.")
    if component.wiring:
        console.print(f"\nGiven by the composition: {', '.join(component.wiring)}")
        for argument in (argument for argument in component.wiring if argument in docs):
            console.print(f"  [cyan]{argument}[/]  {escape(docs[argument])}")
    imports = f" 'imports=[{','.join(modules)}]'" if modules else ""
    console.print(escape(f"\n  trajgen check {kind}/{name}{imports}    trajgen train {kind}={name}{imports}"))


def _argument_docs(component: Any) -> dict[str, str]:
    """What the docstring says of each argument, read from the source: importing it could import torch."""
    module = find_spec(component.module)
    source = Path(module.origin) if module and module.origin else None
    if source is None or not source.is_file():
        return {}
    body = ast.parse(source.read_text(encoding="utf-8")).body
    nodes = [n for n in body if isinstance(n, (ast.ClassDef, ast.FunctionDef)) and n.name == component.attribute]
    text = (ast.get_docstring(nodes[0]) or "") if nodes else ""
    arguments = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)+)", text, re.MULTILINE)
    entries = re.split(r"^[ ]{4}(?=\S)", arguments[1], flags=re.MULTILINE) if arguments else []
    pairs = [entry.partition(":") for entry in entries if ":" in entry]
    return {name.strip(): " ".join(doc.split()) for names, _, doc in pairs for name in names.split(",")}


def _print_files(console: Any, what: str) -> None:
    from rich.markup import escape

    from trajgen import config

    files: dict[str, Path] = getattr(config, f"{what}_files")()
    console.print(f"\n[bold]{what}[/]  trajgen {FILES[what]}NAME")
    for name, path in files.items():
        _print_entry(console, f"[cyan]{name}[/]  {escape(_about(path))}", 2, 6)


def _print_entry(console: Any, markup: str, first: int, others: int) -> None:
    """Prints an entry indented by ``first``; on a terminal its further lines by ``others``, elsewhere in one line."""
    from rich.text import Text

    text = Text.from_markup(markup)
    lines = text.wrap(console, console.width - max(first, others)) if console.is_terminal else [text]
    for number, line in enumerate(lines):
        console.print(Text(" " * (others if number else first)) + line)


def _about(path: Path) -> str:
    """The first two sentences of the comment at the head of a file."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    sentences = re.split(r"(?<=[.?!:]) (?=[A-Z])", " ".join(line.lstrip("# ") for line in lines))
    names = sentences[0].endswith(":")  # "MAGE: Multi-scale …" is one sentence
    return " ".join(sentences[: 2 + names])


def _check_name(kind: str, name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        valid = re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_0123456789") or f"my_{kind}"
        fix = f"trajgen new {kind} {valid if not keyword.iskeyword(valid) else f'my_{valid}'}"
        raise ConfigError(f"A component's name is a Python name in lower case, not '{name}'.", fix=fix)
    if name in names(kind):
        raise ConfigError(f"There is a {kind} '{name}' already.", fix=f"trajgen new {kind} my_{name}")


def _module(path: Path, kind: str) -> str:
    """The dotted name by which a new file can be imported from here.

    Raises:
        ConfigError: if the file exists, its folder does not, or no import statement could name it.
    """
    if path.exists():
        other = path.with_name(f"{path.stem}_{kind}.py")
        raise ConfigError(f"A file is never overwritten: {path}.", fix=f"file={other}")
    inside = path.resolve().is_relative_to(Path.cwd())
    parts = path.resolve().relative_to(Path.cwd()).with_suffix("").parts if inside else ()
    if path.suffix != ".py" or not parts or not all(p.isidentifier() and not keyword.iskeyword(p) for p in parts):
        raise ConfigError(f"No import statement here can name {path}.", fix=f"file=my_{kind}.py")
    if not path.parent.is_dir():
        raise ConfigError(f"There is no folder {path.parent}.", fix=f"mkdir -p {path.parent}")
    if not (Path.cwd() / parts[0]).is_dir() and (parts[0] in sys.stdlib_module_names or find_spec(parts[0])):
        other = path.with_name(f"my_{path.name}")
        raise ConfigError(f"'import {parts[0]}' finds another module first.", got=str(path), fix=f"file={other}")
    return ".".join(parts)


def _recipe_imports(recipe: str | None) -> list[str]:
    """The modules that a recipe of one's own names."""
    if recipe is None or not recipe.endswith((".yaml", ".yml")):
        return []
    from trajgen.config import read_options

    return list(read_options("recipe", Path(recipe)).get("imports") or [])


def _import(modules: Sequence[str]) -> None:
    """Imports the modules that are checked; what they raise is an error with its place, and needs no traceback."""
    try:
        load_entry_points()
        load_imports(modules)
    except TrajgenError:
        raise
    except Exception as error:
        from trajgen.testing.contract import describe_exception

        raise ConfigError("A module of components cannot be imported.", got=describe_exception(error, None)) from error


def _print_report(console: Any, report: Any) -> None:
    from rich.text import Text

    from trajgen.core.tables import Table

    rows = []
    for result in report.results:
        note = f" ({result.message})" if result.outcome == "not applicable" else ""
        rows.append((Text(result.outcome, STYLES[result.outcome]), Text.assemble(result.promise, (note, "dim"))))
    table = Table(("outcome", "check"), rows, numeric=False)
    console.print(table.rich(f"{report.kind}/{report.name} in {report.composition}"))
    if report.sizes:
        console.print(Text(f"at small sizes: {report.sizes}", style="dim"))
    for result in report.failed:
        console.print(Text(f"\n✗ {result.promise}", style="bold red"))
        console.print(Text("\n".join(f"  {line}" for line in result.message.splitlines())))
    if not report.failed:
        num_passed = sum(result.outcome == "passed" for result in report.results)
        console.print(f"[green]✓[/] all {num_passed} contracts that apply are kept")
