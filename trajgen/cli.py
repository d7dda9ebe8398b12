"""The command line: ``trajgen COMMAND key=value …``."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from trajgen import __version__
from trajgen.core.errors import ConfigError, TrajgenError, nearest
from trajgen.core.options import convert, structure

USAGE = f"""trajgen {__version__}: generative trajectory models for offline reinforcement learning

  trajgen train recipe=mage                     make data, train, evaluate, draw
  trajgen train recipe=mage data=pointmaze/medium-dwell seed=1 tokenizer.codebook_size=256
  trajgen train -m seed=0,1,2                   several runs, one after the other
  trajgen evaluate run=DIR                      play in the world, score, draw
  trajgen sample run=DIR                        plans for one state, and their condition error
  trajgen data make pointmaze/umaze-dwell       record a data set (also: list, info ID, get ID)
  trajgen list [KIND[/NAME]]                    components, their options and defaults; recipes; data

A component is swapped by name (sampler=greedy), its options follow a dot (sampler.guidance=1).
'trajgen COMMAND --help' says more. --debug shows the traceback of an error."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command, and ends with exit code 0, 1 for an error of the person's, or 130 for an interruption."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words or os.environ.get("HYDRA_FULL_ERROR") == "1"
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return
    if words[0] in ("--version", "version"):
        print(__version__)
        return
    commands: dict[str, Callable[[list[str]], None]] = {
        "train": _train,
        "evaluate": _evaluate,
        "sample": _sample,
        "data": _data,
        "list": _list,
    }
    try:
        if words[0] not in commands:
            raise ConfigError(
                f"There is no command '{words[0]}'.",
                expected=", ".join(commands),
                got=f"trajgen {words[0]}",
                fix=nearest(words[0], commands),
            )
        commands[words[0]](words[1:])
    except TrajgenError as error:
        if debug:
            raise
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        raise SystemExit(0) from None


# --- train ---------------------------------------------------------------------------------------------------------

TRAIN_HELP = """trajgen train [recipe=NAME] [data=NAME] [KIND=NAME] [key=value …]

  recipe=NAME|FILE.yaml    see 'trajgen list recipes'
  data=NAME|FILE.yaml      see 'trajgen list data'
  engine.budget=2          twice the steps of every stage
  run_dir=DIR              where the run is kept (runs/RECIPE-DATA-sSEED if not given)
  resume=true              go on with an interrupted run
  device=cpu|cuda|auto
  imports=[my_lab.parts]   own modules that register components

Hydra composes: '--cfg job' prints the whole configuration, '-m seed=0,1,2' runs a sweep,
'--hydra-help' says more."""


def _train(words: list[str]) -> None:
    if "--help" in words or "-h" in words:
        print(TRAIN_HELP)
        return
    from trajgen import config
    from trajgen.core.registry import load_imports

    own: dict[str, list[Path]] = {"recipe": [], "data": []}
    for number, word in enumerate(words):
        key, _, value = word.partition("=")
        if key == "imports":
            load_imports(name.strip(" '\"") for name in value.strip("[]").split(",") if name.strip())
        if key in own and value.endswith((".yaml", ".yml")):
            own[key].append(Path(value))
            load_imports(config.read_yaml(Path(value)).get("imports") or [])
            words[number] = f"{key}={Path(value).stem}"
    config.store_groups(own["recipe"], own["data"])
    config.check_choices(words, own["recipe"], own["data"])
    _hydra_main(words)


def _hydra_main(words: list[str]) -> None:
    """Runs Hydra's own main, so that sweeps, launchers, --cfg and completion stay; its errors become ours."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf.errors import OmegaConfBaseException

    from trajgen import config

    failed: list[TrajgenError] = []

    def job(composed: Any) -> None:
        try:
            _train_one(config.from_hydra(composed), HydraConfig.get().overrides.task)
        except TrajgenError as error:
            if HydraConfig.get().mode is not RunMode.RUN:  # of a sweep, perhaps in another process
                raise
            failed.append(error)  # raised past Hydra, which would add words of its own

    decorated = hydra.main(version_base="1.3", config_path=None, config_name=config.ROOT)(job)
    before, sys.argv = sys.argv, ["trajgen train", *words]
    full = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print a short traceback and exit on its own
    try:
        decorated()
        if failed:
            raise failed[0]
    except (HydraException, OmegaConfBaseException) as error:
        raise config.explain(error, words) from error
    finally:
        sys.argv = before
        os.environ.pop("HYDRA_FULL_ERROR") if full is None else os.environ.update(HYDRA_FULL_ERROR=full)


def _train_one(config: Any, overrides: Sequence[str]) -> None:
    from rich.console import Console

    from trajgen import runs
    from trajgen.engine.loop import Interrupted

    try:
        runs.train(config, Console(), shlex.join(["trajgen", "train", *overrides]))
    except Interrupted as stopped:
        print(f"{stopped}\nThe same command with resume=true goes on.", file=sys.stderr)
        raise SystemExit(130) from None


# --- evaluate and sample -------------------------------------------------------------------------------------------

EVALUATE_HELP = """trajgen evaluate run=DIR [key=value …]

  evaluation.episodes=48   evaluation.seed=0 (of the first episode)
  policy.replan=4          environment steps between plans
  sampler=greedy           any sampler; sampler.temperature=0.5, sampler.guidance=1
  target=constant target.value=50
  device=auto
  imports=[my_lab.parts]
  out=DIR                  where evaluation.json, plots/ and summary.md are written: the run folder, or,
                           where an option is changed, a new folder evaluations/N in it"""

SAMPLE_HELP = """trajgen sample run=DIR [key=value …]

  seed=0                   episode whose first state and goal the plans are made for
  state=[x,y,vx,vy]        another state to plan from; goal=[x,y] another goal
  return=50                return-to-go to ask for (discounted, the data's units); the target's own if not given
  plans=8                  how many plans
  sampler=…                as for 'trajgen evaluate'

Draws the plans after each scale into plots/, and prints the condition error."""


def _evaluate(words: list[str]) -> None:
    if "--help" in words or "-h" in words:
        print(EVALUATE_HELP)
        return
    from rich.console import Console

    from trajgen import runs

    values = _key_values(words)
    folder, device, imports = _run_arguments(values)
    out = values.pop("out", None)
    runs.evaluate(
        folder,
        Console(),
        device=device,
        imports=imports,
        overrides=values,
        out=None if out is None else Path(str(out)),
    )


def _sample(words: list[str]) -> None:
    if "--help" in words or "-h" in words:
        print(SAMPLE_HELP)
        return
    from rich.console import Console

    from trajgen import runs

    values = _key_values(words)
    folder, device, imports = _run_arguments(values)
    if "return" in values:  # a word that Python keeps for itself
        values["returns"] = values.pop("return")
    own = {f.name: values.pop(f.name) for f in fields(runs.SampleRequest) if f.name in values}
    request = structure(runs.SampleRequest, own, "")
    runs.sample(folder, Console(), request, device=device, imports=imports, overrides=values)


def _run_arguments(values: dict[str, Any]) -> tuple[Path, str, tuple[str, ...]]:
    """Takes run, device and imports out of the values."""
    if "run" not in values:
        raise ConfigError(
            "Which run?", expected="run=DIR", got="no run=…", fix="run=runs/mage-umaze-dwell-s0, for example"
        )
    folder = Path(str(values.pop("run")))
    if not folder.is_dir():
        beside = [path.name for path in folder.parent.glob("*/")]
        raise ConfigError(
            "There is no such run folder.",
            expected="a folder that 'trajgen train' made",
            got=f"run={folder}",
            fix=nearest(folder.name, beside) if beside else "train first: trajgen train recipe=mage",
        )
    return folder, str(values.pop("device", "auto")), _imports(values)


def _imports(values: dict[str, Any]) -> tuple[str, ...]:
    """Takes the modules of imports=[…] out of the values."""
    modules: tuple[str, ...] = convert(values.pop("imports", ()), tuple[str, ...], "imports")
    return modules


def _key_values(words: list[str]) -> dict[str, Any]:
    """``a.b=1`` as ``{"a": {"b": 1}}``; a component named alone, ``sampler=greedy``, as ``{"name": "greedy"}``."""
    import yaml

    from trajgen.core.registry import KINDS

    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(
                "Options are written key=value.",
                expected="key=value",
                got=word,
                fix="for example evaluation.episodes=12",
            )
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"The value of '{key}' cannot be read.",
                expected="a number, a name, true, false, null or [a, list]",
                got=word,
                fix="close every bracket and quote",
            ) from error
        node, *path = values, *key.split(".")
        for part in path[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError("An option is a value or a group, not both.", got=word)
        if len(path) == 1 and key in KINDS and isinstance(value, str):
            node.setdefault(key, {})["name"] = value
        else:
            node[path[-1]] = value
    return values


# --- data ----------------------------------------------------------------------------------------------------------


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


def _data(words: list[str]) -> None:
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

    name, options = rest[0], _key_values(rest[1:])
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


# --- list ----------------------------------------------------------------------------------------------------------


def _list(words: list[str]) -> None:
    from rich.console import Console

    from trajgen.core.registry import KINDS, check_kind, load_entry_points, load_imports, names, spec

    load_entry_points()
    values = _key_values([word for word in words if "=" in word])
    load_imports(_imports(values))
    which = [word for word in words if "=" not in word]
    console = Console(soft_wrap=True, highlight=False)
    if not which:
        _print_files(console, "recipe")
        _print_files(console, "data")
    elif which[0] in ("recipe", "recipes", "data"):
        _print_files(console, which[0].removesuffix("s"))
        return
    kind, _, name = which[0].partition("/") if which else ("", "", "")
    if name:
        _print_component(console, spec(kind, name))
        return
    if kind:
        check_kind(kind)
    for each in [kind] if kind else KINDS:
        console.print(f"\n[bold]{each}[/]  {KINDS[each]}")
        for found in (spec(each, n) for n in names(each)):
            options = ", ".join(f"{o.name}={o.default!r}" for o in found.options)
            console.print(f"  [cyan]{found.name}[/]  {found.summary}", f"      {options}" * bool(options), sep="\n")


def _print_component(console: Any, found: Any) -> None:
    from rich.table import Table

    console.print(f"[bold]{found.kind}={found.name}[/]  ({found.module}.{found.attribute})\n{found.summary}")
    table = Table("option", "type", "default")
    for option in found.options:
        table.add_row(f"{found.kind}.{option.name}", option.annotation, repr(option.default))
    console.print(table)
    if found.wiring:
        console.print(f"Given by the composition: {', '.join(found.wiring)}")


def _print_files(console: Any, what: str) -> None:
    from trajgen.config import data_files, recipe_files

    files = recipe_files() if what == "recipe" else data_files()
    console.print(f"\n[bold]{what}[/]  trajgen train {what}=NAME")
    for name, path in files.items():
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        console.print(f"  [cyan]{name}[/]  {first.removeprefix('#').strip() if first.startswith('#') else ''}")
