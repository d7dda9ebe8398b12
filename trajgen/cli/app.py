"""The Typer application, and how a command takes ``key=value`` words: explained, completed and parsed alike."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from trajgen import __version__
from trajgen.cli.completion import COMMANDS, Command, complete
from trajgen.cli.overrides import dashed, options_of
from trajgen.core.registry import KINDS

SETTINGS = {"help_option_names": ["--help", "-h"]}
WIDTH, INDENT = max(48, min(76, shutil.get_terminal_size().columns - 2)), 24
"""Columns of the table of options in a help text, and of its first column."""
HELP = """Generative trajectory models for offline reinforcement learning.

\b
  trajgen train recipe=mage data=pointmaze/medium-dwell seed=1
  trajgen evaluate run=runs/mage-umaze-dwell-s0 sampler=greedy

Options are written key=value. A component is swapped by its name (sampler=top_p), and its options follow a dot
(sampler.p=0.8). 'trajgen COMMAND --help' shows the options of a command.
"""

Words = Annotated[
    list[str], typer.Argument(metavar="KEY=VALUE", hidden=True, autocompletion=complete, default_factory=list)
]
"""The ``key=value`` words of a command."""


def group(help: str) -> typer.Typer:
    """An application or a group of commands. Its help is plain text: importing rich's would double the time."""
    return typer.Typer(
        help=help,
        short_help=help.partition("\n")[0],  # which is not cut off, unlike one that is made from the help
        rich_markup_mode=None,
        context_settings=SETTINGS,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
    )


app = group(HELP)


def command(
    path: str, options: type, example: str, *, groups: tuple[str, ...] = (), positional: str = "", to: typer.Typer = app
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a function as a command; its docstring and those of its options are the help.

    Args:
        path: of the command, as ``data make``.
        options: dataclass of its options.
        example: arguments of ``trajgen``.
        groups: components and other groups of options that it takes besides.
        positional: what words without ``=`` are, for completion: listed or folders.
        to: application or group that the command is added to.
    """
    COMMANDS[path] = Command(options, groups, positional)
    rows = [(option.label, option.doc) for option in options_of(options).values()]
    if {*groups} >= {*KINDS}:
        others = ", or of data, policy, engine or evaluation." if "data" in groups else "."
        rows += [("KIND=NAME", "Another component; see 'trajgen list'.")]
        rows += [("GROUP.OPTION=VALUE", f"An option of a component{others}")]
    elif groups:
        also = "Also return_target, and" if "return_target" in groups else "Another one, and"
        rows += [(f"{groups[0]}=NAME", f"{also} options after a dot: {'., '.join(groups)}.")]

    def add(function: Callable[..., None]) -> Callable[..., None]:
        first, _, more = (function.__doc__ or "").partition("\n")
        table = "\n".join(["\b", *(_row(*row) for row in rows)])
        text = "\n\n".join([first, textwrap.dedent(more).strip(), table, f"\b\nExample: trajgen {example}"])
        to.command(path.split()[-1], help=text, short_help=first, context_settings=SETTINGS)(function)
        return function

    return add


def refuse_dashes(words: Sequence[str]) -> None:
    """Raises a `ConfigError` for an option that is written as a flag, ``--recipe mage``."""
    path = next((path for path in (" ".join(words[:2]), words[0] if words else "") if path in COMMANDS), None)
    if path is not None:
        dashed(words, options_of(COMMANDS[path].options), COMMANDS[path].groups)


def _row(label: str, doc: str) -> str:
    text = textwrap.fill(doc, WIDTH, initial_indent=" " * INDENT, subsequent_indent=" " * INDENT)
    return f"{label:<{INDENT}}{text[INDENT:]}" if len(label) < INDENT - 1 else f"{label}\n{text}"


def _print_version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback(help=HELP)
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; after any command.")] = False,
) -> None:
    """Declares the options before the command; ``main`` reads --debug wherever it stands."""
