"""``trajgen check``: tries the contracts of a component, and says in plain words what is wrong."""

from __future__ import annotations

from typing import Any

from trajgen.cli.words import key_values, take_imports
from trajgen.core.errors import ConfigError, TrajgenError

CHECK_HELP = """trajgen check KIND/NAME [imports=[my_lab.parts]] [key=value …]

  imports=[my_lab.parts]   own modules that register components
  recipe=NAME|FILE.yaml    the composition in which the component is tried, at small sizes; if not given, the
                           first shipped recipe that accepts it
  prior.width=8            an option of the component, or of another part of the composition
  schedule=unit            another part

Tries what components of this kind promise: shapes, gradients, reproducible draws, teacher forcing equal to
stepwise prediction, … For each that fails it says what is wrong, what was expected and found, and where to look.
Exit code 1 if any fails; --debug adds the traceback of what the component raised."""

MARKS = {"passed": "green", "failed": "bold red", "not applicable": "dim"}


def check(words: list[str]) -> None:
    if "--help" in words or "-h" in words:
        print(CHECK_HELP)
        return
    which = [word for word in words if "=" not in word]
    kind, slash, name = which[0].partition("/") if len(which) == 1 else ("", "", "")
    if not slash or not name:
        raise ConfigError(
            "Which component is to be checked?",
            expected="trajgen check KIND/NAME",
            got=" ".join(["trajgen check", *words]),
            fix="for example trajgen check prior/transformer; 'trajgen list' shows all",
        )
    values = key_values([word for word in words if "=" in word])
    recipe = None if values.get("recipe") is None else str(values.pop("recipe"))
    _import((*take_imports(values), *_named_in(recipe)))
    from rich.console import Console

    from trajgen import testing

    report = testing.check(kind, name, recipe, values)
    console = Console(soft_wrap=True, highlight=False)
    _print(console, report)
    if report.failed:
        errors = [result.error for result in report.failed if result.error]
        raise TrajgenError(
            f"{kind} '{name}' breaks {len(report.failed)} of {len(report.results)} contracts: "
            + "; ".join(result.promise for result in report.failed),
            fix="see above, mend it, and give the same command again" + (" (--debug: traceback)" if errors else ""),
        ) from (errors[0] if errors else None)


def _named_in(recipe: str | None) -> list[str]:
    """The modules that a recipe of the person's own names."""
    if recipe is None or not recipe.endswith((".yaml", ".yml")):
        return []
    from pathlib import Path

    from trajgen.config import read_options

    return list(read_options("recipe", Path(recipe)).get("imports") or [])


def _import(modules: tuple[str, ...]) -> None:
    """Imports the modules to be checked; what they raise is the person's to mend, so it needs no traceback."""
    from trajgen.core.registry import load_entry_points, load_imports

    try:
        load_entry_points()
        load_imports(modules)
    except TrajgenError:
        raise
    except Exception as error:
        from trajgen.testing.contract import describe_exception

        raise ConfigError(
            "A module of components cannot be imported.",
            expected="a module that 'import' reads without an error",
            got=describe_exception(error, None),
            fix="mend that line",
        ) from error


def _print(console: Any, report: Any) -> None:
    from rich.text import Text

    from trajgen.viz.tables import Table

    rows = []
    for result in report.results:
        note = f" ({result.message})" if result.outcome == "not applicable" else ""
        rows.append((Text(result.outcome, MARKS[result.outcome]), Text.assemble(result.promise, (note, "dim"))))
    table = Table(("outcome", "check"), rows, numeric=False)
    console.print(table.rich(f"{report.kind}/{report.name} in {report.composition}"))
    for result in report.failed:
        console.print(Text(f"\n✗ {result.promise}", style="bold red"))
        console.print(Text("\n".join(f"  {line}" for line in result.message.splitlines())))
    if not report.failed:
        passed = sum(result.outcome == "passed" for result in report.results)
        console.print(f"[green]✓[/] all {passed} contracts that apply are kept")
