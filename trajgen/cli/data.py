"""``trajgen data``: list, info, make, get, import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajgen.cli.words import key_values
from trajgen.core.errors import ConfigError, nearest
from trajgen.core.options import structure

if TYPE_CHECKING:
    from trajgen.data.catalogue import Task


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


DATA_HELP = """trajgen data list                    the catalogue of tasks, and the data sets on this machine
trajgen data info TASK|ID            what a task asks and how it is scored; what a data set holds
trajgen data make NAME [steps=N] [seed=S] [force=true]
trajgen data get ID [force=true]     download a Minari data set
trajgen data import SOURCE id=ID     data of your own, in D4RL's, robomimic's, LeRobot's or numpy's format ('--help')

Data sets are kept by Minari: in $MINARI_DATASETS_PATH, else ~/.minari/datasets."""


def data(words: list[str]) -> None:
    actions = ("list", "info", "make", "get", "import")
    if words and words[0] == "import":
        from trajgen.cli.data_import import import_data

        import_data(words[1:])
        return
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
    from trajgen.data import minari
    from trajgen.envs import makers

    name, options = rest[0], key_values(rest[1:])
    if action == "make":
        id = makers.make(name, **vars(structure(MakeOptions, options, "")))
        print(f"Made {id}.  trajgen data info {id}")
    elif action == "get":
        minari.download(name, force=structure(GetOptions, options, "").force)
        print(f"Downloaded {name}.  trajgen data info {name}")
    elif name in (tasks := catalogue()):
        _print_task(tasks[name])
    else:
        _print_info(minari.describe(name))


def _list_data() -> None:
    from rich.console import Console

    from trajgen.data import store
    from trajgen.viz.tables import Table

    local = store.local_sets()
    console = Console()
    rows = [(each.id, *map(_cell, (each.episodes, each.steps, each.megabytes)), each.problem or "") for each in local]
    table = Table(("id", "episodes", "steps", "MB", ""), rows, numeric=False)
    console.print(table.rich(f"On this machine ({store.root()})"))
    here = [found.id for found in local]
    lines = [("task", "id", "here", "get")]
    for task in catalogue().values():
        others = ", ".join(f"data.id={id}" for id in task.stand_ins(here))
        lines.append((task.name, task.options.id, "yes" if task.options.id in here else others or "no", task.get))
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    print("\nTasks: trajgen train data=TASK; trajgen data info TASK")
    for line in lines:  # plain lines, to be searched
        print("  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[3]]))


def catalogue() -> dict[str, Task]:
    """All tasks, by the name of their preset."""
    from trajgen.config import data_files, read_options
    from trajgen.data.catalogue import read_task

    files = data_files()
    return {name: read_task(name, _first_line(path), read_options("data", path)) for name, path in files.items()}


def _first_line(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def _print_task(task: Task) -> None:
    """What the catalogue says of a task, and of its data set where it is on this machine."""
    from trajgen.data import minari, store
    from trajgen.data.catalogue import facts

    here = [found.id for found in store.local_sets()]
    others = [f"data.id={id}" for id in task.stand_ins(here)]
    told = facts(task) | ({"stand in for it here": ", ".join(others)} if others else {})
    train = told.pop("train")
    _print_info(told)
    print(f"\n{train}\n")  # in one line, to be copied
    if task.options.id in here:
        _print_info(minari.describe(task.options.id))


def _print_info(about: dict[str, Any]) -> None:
    from rich.console import Console

    from trajgen.viz.tables import Table

    rows = [(key, str(value)) for key, value in about.items()]
    Console().print(Table(("", ""), rows, numeric=False).rich())


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.0f}"
    return f"{value:,}" if isinstance(value, int) else "?"
