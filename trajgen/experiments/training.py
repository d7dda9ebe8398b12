"""Training a run: from a configuration to its folder, evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajgen.config import Config
from trajgen.core.errors import DataError
from trajgen.core.types import Space
from trajgen.experiments.evaluating import evaluate
from trajgen.experiments.preparation import dry_run, load_episodes, prepare_imports, ready, windows_of
from trajgen.experiments.run_folder import (
    find_folder,
    read_json,
    require_free,
    versions,
    write_config,
    write_json,
)
from trajgen.experiments.run_lock import locked

if TYPE_CHECKING:
    from rich.console import Console


def train(config: Config, console: Console, command: str | None = None) -> Path:
    """Makes the data if need be, trains, evaluates, draws, and returns the run folder.

    Of several processes that a launcher started, the first one alone decides, writes and evaluates.

    Args:
        config: of the run.
        console: where progress is shown.
        command: that asked for it, to be written into the summary.

    Raises:
        TrajgenError: for anything that the person can mend, before training where it can be known.
    """
    from trajgen.engine.checkpoint import Checkpoints, on_disk
    from trajgen.engine.distributed import agree, in_turn, join, leads, leave, world
    from trajgen.engine.loop import Interrupted, Training
    from trajgen.envs.eval_env import has_eval_env, make_eval_env

    device = join(config.device)
    first = leads()
    console = console if first else _silent()
    prepare_imports(config.imports)
    folder = agree(lambda: _checked_folder(config))
    episodes = in_turn(lambda: load_episodes(config, console))
    data, acts = _same_data(folder, episodes), has_eval_env(config.data)
    planner, source = ready(config, episodes, device)
    if acts:
        agree(lambda: make_eval_env(config.data).require_fits(episodes.space))
    with on_disk(folder.parent, Checkpoints(folder / "checkpoints")), ExitStack() as stack:
        agree(lambda: stack.enter_context(_begun(folder, config, data, episodes.space, command)))
        company = f", {world()} processes" if world() > 1 else ""
        said = f"[bold]{config.recipe}[/] on {config.data.id}: {len(source):,} windows, {device}{company}, {folder}"
        console.print(said)
        stages = planner.stages()
        val_source = windows_of(config, episodes, planner, device, "val") if config.data.val_fraction else None
        training = Training(planner, stages, source, config.engine, folder, config.seed, device, console, val_source)
        try:
            training.run(resume=config.resume)
        except Interrupted:  # all of them, at the same step
            leave()
            raise
        leave()
        if first and acts:
            evaluate(folder, console, device=config.device, imports=config.imports)
        elif first:
            console.print(f"{config.data.id} names no world, so the policy is not evaluated: data.env_id=ID names one.")
    return folder


def _silent() -> Console:
    from rich.console import Console

    return Console(quiet=True)


def _checked_folder(config: Config) -> Path:
    """The folder of a run whose composition has been tried."""
    from trajgen.engine.loggers import check_loggers
    from trajgen.engine.runtime import check_compiler

    check_loggers(config.engine.log)
    if config.engine.compile:
        check_compiler()
    dry_run(config)
    return find_folder(config)


def _same_data(folder: Path, episodes: Any) -> dict[str, Any]:
    """The fingerprint of the data, which is that of the run to go on with, and the same for all processes.

    Raises:
        DataError: if it is not.
    """
    from trajgen.data.fingerprint import fingerprint, require_same
    from trajgen.engine.distributed import agree, rank

    data = fingerprint(episodes)

    def compared() -> dict[str, Any]:
        if (folder / "data.json").exists():  # a run from before fingerprints is given one
            require_same(read_json(folder / "data.json"), data)
        return data

    if agree(compared) != data:
        raise DataError(
            "Processes that train together read the same data.",
            expected="the data set of the first process",
            got=f"another one for process {rank()}: {data['id']}, {data['episodes']} episodes, {data['steps']} steps",
            fix="MINARI_DATASETS_PATH on a disk that all machines share, or the same copy on each",
        )
    return data


@contextmanager
def _begun(folder: Path, config: Config, data: Mapping[str, Any], space: Space, command: str | None) -> Iterator[None]:
    """Holds the folder of a run, and writes down what is to be trained in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        require_free(folder, config)  # another process may have been faster
        write_json(folder / "data.json", data)
        write_config(folder, config, space, command)
        write_json(folder / "versions.json", versions())
        yield
