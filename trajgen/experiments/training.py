"""Training a run: from a configuration to an evaluated run folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajgen.config import Config
from trajgen.core.errors import DataError, TrajgenError
from trajgen.core.files import file_lock, read_json, write_json
from trajgen.core.types import Space
from trajgen.experiments.evaluating import evaluate
from trajgen.experiments.outlook import outlook
from trajgen.experiments.preparation import derived, dry_run, load_episodes, prepare_imports, ready
from trajgen.experiments.run_folder import (
    LOCK,
    find_folder,
    load_config,
    require_free,
    run_name,
    write_config,
)
from trajgen.experiments.starting import checkpoint_of, stages_of
from trajgen.experiments.versions import changed_versions, versions

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from trajgen.data.options import DataOptions

OTHER_ENTRIES = ("returns", "env")
"""Entries of data.json that are no part of the fingerprint."""


def train(config: Config, console: Console, command: str | None = None) -> Path:
    """Makes the data set if it is missing, trains, evaluates, draws, and returns the run folder.

    Of several processes that a launcher started, the first one alone decides, writes and evaluates.

    Args:
        config: of the run.
        console: for progress.
        command: to be written into the summary.

    Raises:
        TrajgenError: for anything that the user can mend, before training where possible.
    """
    from trajgen.engine.checkpoint import Checkpoints, disk_errors
    from trajgen.engine.distributed import (
        broadcast_decision,
        destroy_process_group,
        init_process_group,
        is_main_process,
        lost_peers,
        main_process_first,
        world_size,
    )
    from trajgen.engine.loop import StoppedError, Training
    from trajgen.envs.eval_env import has_eval_env, make_eval_env
    from trajgen.evaluation.on_data import require_no_env
    from trajgen.evaluation.protocol import require_playable

    device = init_process_group(config.device)
    first = is_main_process()
    console = console if first else _silent()
    with ExitStack() as stack:
        stack.enter_context(lost_peers())
        prepare_imports(config.imports)
        folder = broadcast_decision(lambda: _checked_folder(config, device))
        episodes = main_process_first(lambda: load_episodes(config, console))
        resumed = load_config(folder)[1] if config.resume and (folder / "config.json").exists() else None
        data, acts = _same_data(folder, episodes, config.data), has_eval_env(config.data)
        episodes = derived(config, episodes, console, resumed)
        planner, source = ready(_with_init(config, folder), episodes, device, console)
        if acts:
            broadcast_decision(lambda: require_playable(make_eval_env(config.data), config.evaluation, episodes.space))
        else:
            require_no_env(config.evaluation)
        stack.enter_context(disk_errors(folder.parent, Checkpoints(folder / "checkpoints")))
        broadcast_decision(lambda: stack.enter_context(_begun(folder, config, data, episodes.space, command, console)))
        company = f", {world_size()} processes" if world_size() > 1 else ""
        title = f"{config.recipe} on {config.data.id}: {len(source):,} windows, {device}{company}, {folder}"
        console.print(title, markup=False, highlight=False)
        if not acts:
            console.print("The data name no environment, so there will be no score: data.env_id=ID names one.")
        if config.run_dir is None and not config.resume and folder.name != run_name(config):
            console.print(f"{folder.with_name(run_name(config))} is there already, so this run has a new folder.")
        if first and not (config.resume and (folder / "checkpoints").is_dir()):
            console.print(outlook(config, planner, source, episodes.space, device), markup=False, highlight=False)
        stages = stages_of(planner, config.train_only)
        val_source = source.validation(episodes) if config.data.val_fraction else None
        training = Training(planner, stages, source, config.engine, folder, config.seed, device, console, val_source)
        try:
            training.run(resume=config.resume)
        except StoppedError:  # all of them, at the same step
            destroy_process_group()
            raise
        destroy_process_group()
        if first:
            evaluate(folder, console, device=config.device, imports=config.imports)
    return folder


def _silent() -> Console:
    from rich.console import Console

    return Console(quiet=True)


def _checked_folder(config: Config, device: torch.device) -> Path:
    """The folder of a run whose configuration works on a device."""
    from trajgen.engine.device import check_compiler
    from trajgen.engine.loggers import check_loggers

    check_loggers(config.engine.log)
    if config.engine.compile:
        check_compiler()
    folder = find_folder(config)
    dry_run(_with_init(config, folder), device)
    return folder


def _with_init(config: Config, folder: Path) -> Config:
    """The configuration with an ``init`` that is there: a run that goes on from a checkpoint needs no other run."""
    from trajgen.engine.checkpoint import Checkpoints

    checkpoints = Checkpoints(folder / "checkpoints")
    if not (config.resume and (checkpoints.finished or checkpoints.intermediate())):
        return config
    if config.init is None:
        return replace(config, init=str(folder)) if config.train_only else config
    try:
        checkpoint_of(config.init)
    except TrajgenError:
        return replace(config, init=str(folder))
    return config


def _same_data(folder: Path, episodes: Any, options: DataOptions) -> dict[str, Any]:
    """The fingerprint of the data, the resumed run's and that of all processes; what they earned; their environment.

    Raises:
        DataError: if it is not.
    """
    from trajgen.data.fingerprint import fingerprint, require_same
    from trajgen.data.returns import episode_returns, score_episodes
    from trajgen.engine.distributed import broadcast_decision, rank
    from trajgen.envs.eval_env import record_env

    data = fingerprint(episodes)

    def compared() -> dict[str, Any]:
        if (folder / "data.json").exists():  # a run from before fingerprints is given one
            require_same({k: v for k, v in read_json(folder / "data.json").items() if k not in OTHER_ENTRIES}, data)
        return data

    if broadcast_decision(compared) != data:
        raise DataError(
            "Processes that train together read the same data.",
            got=f"another set for process {rank()}: {data['id']}, {data['episodes']} episodes, {data['steps']} steps",
            fix="MINARI_DATASETS_PATH on a disk that all machines share, or the same copy on each",
        )
    env = record_env(options)
    returns = score_episodes(episode_returns(episodes), episodes.lengths)
    return {**data, "returns": returns, "env": None if env is None else asdict(env)}


@contextmanager
def _begun(
    folder: Path, config: Config, data: Mapping[str, Any], space: Space, command: str | None, console: Console
) -> Iterator[None]:
    """Locks the folder of a run, and writes its configuration; says which versions have changed since it was begun."""
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / LOCK):
        require_free(folder, config)  # another process may have been faster
        write_config(folder, config, space, command)  # the first file, so that a run that is killed here can be resumed
        write_json(folder / "data.json", data)
        if config.resume and (lines := changed_versions(folder)):
            text = f"The run was begun with other versions, with which its last bits may differ: {', '.join(lines)}."
            console.print(text, markup=False, highlight=False)
        write_json(folder / "versions.json", versions())
        yield
