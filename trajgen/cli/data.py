"""``trajgen data``: list, info, make, record, get, import, encode."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trajgen.cli.app import Words, app, command, group
from trajgen.cli.overrides import options_of, read
from trajgen.core.errors import ConfigError, DataError, nearest, printable
from trajgen.data.options import EnvShift
from trajgen.experiments.options import EncodeOptions, RecordOptions
from trajgen.importing import ImportOptions

if TYPE_CHECKING:
    from trajgen.data.catalogue import Task


@dataclass(frozen=True)
class GetOptions:
    """Options of ``trajgen data get``."""

    force: bool = False
    """Replace a data set that is there."""


@dataclass(frozen=True)
class MakeOptions(GetOptions):
    """Options of ``trajgen data make``."""

    steps: int | None = None
    """Environment steps; by default those of the data set."""
    seed: int = 0
    """Seed of the episodes."""
    map: tuple[tuple[int, ...], ...] | None = None
    """Of 'pointmaze', rows of a maze of your own: 1 is a wall, 0 is free, as map=[[1,1,1,1],[1,0,0,1],[1,1,1,1]]."""
    shift: EnvShift | None = None
    """How the environment differs from its own, as 'shift={gear: 0.3}'; also mass, friction, damping, blocked."""
    id: str | None = None
    """Of the data set; null is trajgen/NAME-v0, or with a map or a shift own/pointmaze-v0."""


data = group("List, describe, make, record, download and import data sets.")
app.add_typer(data, name="data")


def _makers() -> list[str]:
    return ["pointmaze", *sorted({task.options.maker for task in catalogue().values() if task.options.maker})]


@data.command("list")
def list_data() -> None:
    """All tasks, and the data sets on this machine.

    Minari keeps data sets in $MINARI_DATASETS_PATH, or in ~/.minari/datasets.
    """
    from trajgen.core.tables import Table
    from trajgen.core.terminal import Terminal
    from trajgen.data import store

    local = store.local_sets()
    rows = [
        (each.id, *map(_text, (each.episodes, each.steps, round(each.megabytes))), each.problem or "") for each in local
    ]
    table = Table(("id", "episodes", "steps", "MB", "problem"), rows, numeric=False).filled()
    Terminal().print(table.rich(f"On this machine ({store.root()})"))
    ids = [each.id for each in local]
    lines = [("task", "here", "id")]
    for task in catalogue().values():
        others = ", ".join(f"data.id={id}" for id in task.stand_ins(ids))
        lines.append((task.name, "yes" if task.options.id in ids else "no", others or task.options.id))
    widths = [max(len(line[column]) for line in lines) for column in range(2)]
    print("\nTasks, for trajgen train data=TASK; trajgen data info TASK says how to get its set")
    for line in lines:  # plain lines, which can be searched
        print("  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[2]]))


@data.command("info")
def info(name: Annotated[str, typer.Argument(metavar="NAME", autocompletion=lambda: [*catalogue()])]) -> None:
    """What a task is and how it is scored; what a data set holds."""
    from trajgen.data import store

    task = catalogue().get(name)
    ids = [each.id for each in store.local_sets()]
    close = nearest(name, [*catalogue(), *ids])
    if task is None and name not in ids and close.startswith("did"):
        raise DataError(
            f"There is no task and no data set '{name}' here.", fix=f"{close} (trajgen data get ID downloads one)"
        )
    if task is not None:
        from trajgen.data.catalogue import facts

        others = [f"data.id={id}" for id in task.stand_ins(ids)]
        rows = facts(task) | ({"stand in for it here": ", ".join(others)} if others else {})
        train = rows.pop("train")
        _print_table(rows)
        print(f"\n{train}\n")  # in one line, to be copied
        if task.options.id not in ids:
            return
    id = name if task is None else task.options.id
    store.require_here(id, None)
    from trajgen.data import minari

    described = minari.describe(id)
    if "env" in described:
        from trajgen.envs.eval_env import IN_ANOTHER_MAZE, is_in_another_maze

        described |= {"note": f"the set {IN_ANOTHER_MAZE}"} if is_in_another_maze(id) else {}
    _print_table(described)


@command("data make", MakeOptions, "data make pointmaze/umaze-dwell steps=100000", to=data)
def make(name: Annotated[str, typer.Argument(metavar="NAME", autocompletion=_makers)], words: Words) -> None:
    """Record a data set with a controller."""
    options, _ = read(words, MakeOptions, ())
    from trajgen.envs import makers

    if name in catalogue() and name not in makers.MAKERS:
        fix = f"trajgen data info {name} says how to get it"
        raise ConfigError(f"The set of {name} is not one that trajgen makes.", fix=fix)
    id = makers.make(name, **vars(options))
    print(f"Made {id}.  trajgen data info {id}")
    if options.map is not None or options.shift is not None:
        _print_preset(id, f"defaults: [/data/pointmaze/_pointmaze]\ndata: {{id: {id}}}")


@command("data record", RecordOptions, "data record env=Pendulum-v1 episodes=200", to=data)
def record_data(words: Words) -> None:
    """Record a policy in any Gymnasium environment: random actions, a trained run, or one of your own.

    Each episode is a function of its seed. The same command continues a recording that was stopped.
    """
    options, _ = read(words, RecordOptions, ())
    _check_new(options.name, force=options.force)
    from trajgen.data import minari
    from trajgen.data.presets import entries_of, preset_text
    from trajgen.envs.gym import OGBENCH
    from trajgen.experiments.recording import record

    id = record(options)
    print(f"Recorded {id}.  trajgen data info {id}")
    longest = minari.describe(id)["episode_steps"]["longest"]
    entries = entries_of(minari.open_dataset(id).observation_space)
    if options.env.startswith(OGBENCH):
        entries["env_id"] = options.env  # which has its goals by this name alone
    module = options.env.rpartition(":")[0]  # which registers it, and is imported by its name alone
    _print_preset(id, preset_text(id, longest, entries).rstrip(), f" imports=[{module}]" if module else "")


@command("data get", GetOptions, "data get D4RL/pointmaze/umaze-v2", to=data)
def get(name: Annotated[str, typer.Argument(metavar="ID")], words: Words) -> None:
    """Download a Minari data set."""
    options, _ = read(words, GetOptions, ())
    _check_new(name, force=options.force)
    from trajgen.data import minari

    minari.download(name, force=options.force)
    print(f"Downloaded {name}.  trajgen data info {name}")


@command("data import", ImportOptions, "data import demonstrations.hdf5 id=mine/name-v0", to=data)
def import_data(source: Annotated[str, typer.Argument(metavar="SOURCE")], words: Words) -> None:
    """Write data of another format as a Minari data set."""
    if source.partition("=")[0] in options_of(ImportOptions) and not Path(source).exists():
        raise ConfigError("'trajgen data import' needs a source.", fix="name the file or folder first")
    options, _ = read(words, ImportOptions, ())
    from trajgen.importing import from_path

    imported = from_path(source, options)
    counts = f"{imported.episodes:,} episodes, {imported.steps:,} steps"
    print(f"Imported {imported.id}: {counts}; the task ended {imported.terminated:,}.")
    if imported.about:
        print(printable(imported.about))
    _print_preset(imported.id, imported.preset.rstrip())
    if options.env is None:
        print(
            "\nIt names no environment: actions are compared with the recorded ones, and data.env_id=ID gives scores."
        )


READ_AS = ("id", "state_key", "image_key")
"""Options of data that ``trajgen data encode`` takes by their short names."""


@command(
    "data encode",
    EncodeOptions,
    "data encode id=my/arm-v0 image_key=front new_id=my/coded-v0",
    groups=("encoder", "data", "engine"),
    to=data,
)
def encode_data(words: Words) -> None:
    """Store the features of a data set's images, once, as a data set of vectors.

    The data set is named by data=TASK, or by id=ID with image_key=ENTRY and state_key=ENTRY of its observations. The
    encoder is trained first, if it has something to learn: engine.stages.encoder.steps=N. It is stored beside the
    features, so that a policy that is trained on them acts on images.
    """
    options, rest = read(words, EncodeOptions, ("encoder", "data", "engine", "seed", "device", "imports", *READ_AS))
    import yaml
    from rich.console import Console

    from trajgen.config import compose, options_by_recipe
    from trajgen.experiments.encoding import encode

    renamed = [f"data.{word}" if word.partition("=")[0] in READ_AS else word for word in rest]
    with TemporaryDirectory() as folder:
        if not any(word.startswith("data=") for word in renamed):  # a set of one's own, by no task's options
            no_options = Path(folder) / "no_options.yaml"
            no_options.write_text('{"data": {"id": "???"}}', encoding="utf-8")
            renamed.append(f"data={no_options}")
        config, by_recipe = compose(["recipe=bc", *renamed]), options_by_recipe(renamed)
        plain = compose(["recipe=mage", "task_options=false", *renamed])  # bc has a chunk of its own
    preset = encode(replace(config, data=plain.data), options, Console())
    encoder = ("encoder", "engine.stages.encoder.")
    recipes = {recipe: [word for word in words if not word.startswith(encoder)] for recipe, words in by_recipe.items()}
    preset |= {"recipes": {recipe: words for recipe, words in recipes.items() if words}}
    print(f"Encoded {options.new_id}.  trajgen data info {options.new_id}")
    _print_preset(options.new_id, yaml.safe_dump({k: v for k, v in preset.items() if v}, sort_keys=False).rstrip())


def _check_new(id: str, *, force: bool) -> None:
    """Refuses what is no id of a data set, or one that is taken, before torch is imported."""
    from trajgen.data import store

    store.folder(id)
    if not force:
        store.refuse_existing(id)


def catalogue() -> dict[str, Task]:
    """All tasks, by the name of their preset."""
    from trajgen.config import data_files, read_options
    from trajgen.data.catalogue import read_task

    def first_line(path: Path) -> str:
        return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")

    return {name: read_task(name, first_line(path), read_options("data", path)) for name, path in data_files().items()}


def _print_preset(id: str, preset: str, words: str = "") -> None:
    """Prints a preset, the file that it belongs into, and the command that trains with it, which has more words."""
    name = id.rpartition("/")[2].rpartition("-v")[0] or "my_data"
    print(f"A preset for it, {name}.yaml for 'trajgen train data={name}.yaml{words}':\n\n{preset}")


def _print_table(rows: dict[str, Any]) -> None:
    from trajgen.core.tables import Table
    from trajgen.core.terminal import Terminal

    cells = [(key, _text(value)) for key, value in rows.items()]
    Terminal().print(Table(("", ""), cells, numeric=False).rich())


def _text(value: object) -> str:
    """A value as one reads it: numbers with separators, the entries of a dictionary side by side."""
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_text(each)}" for key, each in value.items())
    if isinstance(value, int | float):
        return f"{value:,.1f}".removesuffix(".0") if abs(value) >= 10 else f"{value:.3g}"
    return str(value)
