"""``trajgen data``: list, info, make, get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trajgen.cli.words import key_values
from trajgen.core.errors import ConfigError, nearest
from trajgen.core.options import structure


@dataclass(frozen=True)
class MakeOptions:
    """Options of ``trajgen data make``."""

    steps: int | None = None
    seed: int = 0
    force: bool = False


@dataclass(frozen=True)
class GetOptions:
    """Options of ``trajgen data get``."""

    force: bool = False


DATA_HELP = """trajgen data list                    data sets on this machine, and those that can be made here
trajgen data info ID                 what a data set holds
trajgen data make NAME [steps=N] [seed=S] [force=true]
trajgen data get ID [force=true]     download a Minari data set

Data sets are kept by Minari: in $MINARI_DATASETS_PATH, else ~/.minari/datasets."""


def data(words: list[str]) -> None:
    actions = ("list", "info", "make", "get")
    if not words or words[0] in ("-h", "--help") or "--help" in words:
        print(DATA_HELP)
        return
    action, rest = words[0], words[1:]
    if action not in actions:
        raise ConfigError(
            f"There is no 'trajgen data {action}'.",
            expected=", ".join(actions),
            got=f"trajgen data {action}",
            fix=nearest(action, actions),
        )
    if action == "list":
        _list_data()
        return
    if not rest or "=" in rest[0]:
        raise ConfigError(
            f"'trajgen data {action}' needs a name.",
            expected=f"trajgen data {action} NAME",
            got=" ".join(["trajgen data", *words]),
            fix="'trajgen data list' shows all",
        )
    from trajgen.data import makers, minari

    name, options = rest[0], key_values(rest[1:])
    if action == "make":
        id = makers.make(name, **vars(structure(MakeOptions, options, "")))
        print(f"Made {id}.  trajgen data info {id}")
    elif action == "get":
        minari.download(name, force=structure(GetOptions, options, "").force)
        print(f"Downloaded {name}.  trajgen data info {name}")
    else:
        _print_info(minari.describe(name))


def _list_data() -> None:
    from rich.console import Console
    from rich.table import Table

    from trajgen.data import makers, store

    local = store.local_sets()
    table = Table("id", "episodes", "steps", "MB", "", title=f"On this machine ({store.root()})", title_justify="left")
    for found in local:
        table.add_row(
            found.id, *(_cell(v) for v in (found.episodes, found.steps, found.megabytes)), found.problem or ""
        )
    console = Console()
    console.print(table)
    here = {found.id for found in local}
    table = Table("name", "what", "id", title="Can be made: trajgen data make NAME", title_justify="left")
    for name, maker in makers.MAKERS.items():
        table.add_row(name, maker.description, f"{maker.id} (made)" if maker.id in here else maker.id)
    console.print(table)


def _print_info(about: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("field", "value", show_header=False)
    for key, value in about.items():
        table.add_row(key, str(value))
    Console().print(table)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.0f}"
    return f"{value:,}" if isinstance(value, int) else "?"
