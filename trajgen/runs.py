"""What is done with a run: train it, load its policy, evaluate it, draw samples from it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from trajgen.config import Config, merged
from trajgen.core.errors import CheckpointError, ConfigError, DataError, TrajgenError
from trajgen.core.observations import put
from trajgen.core.registry import load_entry_points, load_imports
from trajgen.core.types import Space
from trajgen.run_folder import (
    find_folder,
    free_path,
    load_config,
    read_json,
    require_free,
    trained_stages,
    versions,
    write_config,
    write_json,
    write_summary,
)
from trajgen.run_lock import locked

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from torch import nn

    from trajgen.data.windows import Windows
    from trajgen.data.worlds import World
    from trajgen.policies.receding_horizon import RecedingHorizonPolicy

CONDITIONS = 256
"""First states from which the condition error is measured."""
SLACK = 2**28
"""Bytes that a model may need beyond its weights: masks, waves, tables."""


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
    from trajgen.data.worlds import names_a_world
    from trajgen.engine.checkpoint import Checkpoints, on_disk
    from trajgen.engine.distributed import agree, in_turn, join, leads, leave, world
    from trajgen.engine.loop import Interrupted, Training

    device = join(config.device)
    first = leads()
    console = console if first else _silent()
    prepare_imports(config.imports)
    folder = agree(lambda: _checked_folder(config))
    episodes = in_turn(lambda: load_episodes(config, console))
    data, acts = _same_data(folder, episodes), names_a_world(config.data)
    planner, source = ready(config, episodes, device)
    with on_disk(folder.parent, Checkpoints(folder / "checkpoints")), ExitStack() as stack:
        agree(lambda: stack.enter_context(_begun(folder, config, data, episodes.space, command)))
        company = f", {world()} processes" if world() > 1 else ""
        said = f"[bold]{config.recipe}[/] on {config.data.id}: {len(source):,} windows, {device}{company}, {folder}"
        console.print(said)
        stages = planner.stages()
        held_out = windows_of(config, episodes, planner, device, "held_out") if config.data.held_out else None
        training = Training(planner, stages, source, config.engine, folder, config.seed, device, console, held_out)
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


def prepare(config: Config, device: torch.device, console: Console) -> tuple[Any, Windows, Space]:
    """What a training begins with: a fresh planner that knows its data's units, the windows, and their space."""
    episodes = load_episodes(config, console)
    return (*ready(config, episodes, device), episodes.space)


def ready(config: Config, episodes: Any, device: torch.device) -> tuple[Any, Windows]:
    """A fresh planner that knows the units of these episodes, and their windows."""
    from trajgen.data.windows import fit_normaliser
    from trajgen.engine.runtime import seed_step

    seed_step(config.seed, -1)
    planner: Any = build_planner(config, episodes.space)
    planner.normaliser.load_state_dict(fit_normaliser(episodes, config.data).state_dict())
    planner.to(device)
    return planner, windows_of(config, episodes, planner, device)


def windows_of(
    config: Config,
    episodes: Any,
    planner: Any,
    device: torch.device,
    part: Literal["training", "held_out"] = "training",
) -> Windows:
    """The windows of the episodes that are trained on, or of those that are held out, in the planner's units."""
    from trajgen.data.windows import Windows

    return Windows(episodes, config.data, planner.normaliser, device, config.seed, part)


def prepare_imports(modules: tuple[str, ...]) -> None:
    """Imports what registers components of the user's own."""
    load_entry_points()
    load_imports(modules)


def build_planner(config: Config, space: Space) -> nn.Module:
    """The planner of a configuration, with fresh weights."""
    from trajgen.assemble import WindowShape, assemble

    data = config.data
    window = WindowShape(
        horizon=data.horizon,
        stride=data.stride,
        chunk=data.chunk,
        discount=data.discount,
        power=data.power,
        goals=data.goals != "none",
        goal_state=data.goal_state,
    )
    return assemble(config.components, space, window)


def dry_run(config: Config) -> None:
    """Builds the composition at made-up dimensions, so that what cannot work is refused before data are made."""
    from trajgen.engine.distributed import world

    space = Space(state_dim=4, action_dim=2, goal_dim=2)
    planner: Any = build_planner(config, space)
    config.engine.check_shares(planner.stages(), world())
    config.policy.check(config.data.chunk, planner.history)
    if config.policy.weights == "best" and not config.data.held_out:
        raise ConfigError(
            "Which weights are best is seen on episodes that are not trained on.",
            expected="a share of them, such as data.held_out=0.1",
            got="policy.weights=best and data.held_out=0",
            fix="data.held_out=0.1, or policy.weights=last",
        )


def load_episodes(config: Config, console: Console) -> Any:
    """The data set of a configuration, made first where a maker can."""
    from trajgen.data import makers, minari, store

    options = config.data
    maker = makers.MAKERS.get(options.maker or "")
    if maker and maker.id == options.id and not store.folder(options.id).is_dir():
        console.print(f"Making the data set {options.id} (once; 'trajgen data list' shows it) …")
        makers.make(maker.name)
    return minari.load(options.id, options)


def load_policy(
    run: str | os.PathLike[str],
    *,
    device: str = "auto",
    imports: tuple[str, ...] = (),
    overrides: Mapping[str, Any] | None = None,
) -> RecedingHorizonPolicy:
    """A trained policy, ready to act.

    Nothing of the folder is executed: weights are read from safetensors, and the configuration can name only
    registered components.

    Args:
        run: the run folder.
        device: auto, cpu, cuda or cuda:N.
        imports: own modules that register components; those that the folder names are not imported unasked.
        overrides: plain values that replace those of the run, as ``{"policy": {"replan": 1}}`` or
            ``{"sampler": {"name": "greedy"}}``: for what matters when acting.

    Returns:
        A policy with ``reset``, ``act`` and ``observe`` (`trajgen.core.protocols.Policy`).

    Raises:
        CheckpointError: if the folder or its newest checkpoint cannot be read or do not fit.
        ConfigError: if an override does not fit.
    """
    from trajgen.engine.checkpoint import Checkpoints, load_weights
    from trajgen.engine.runtime import choose_device
    from trajgen.policies.receding_horizon import RecedingHorizonPolicy

    folder = Path(run)
    prepare_imports(imports)
    config, space = load_config(folder)
    if overrides:
        config = Config.from_plain(merged(config.to_plain(), overrides))
    checkpoints = Checkpoints(folder / "checkpoints")
    chosen = checkpoints.best() if config.policy.weights == "best" else checkpoints.newest()
    planner = _rebuild(config, space, chosen).to(choose_device(device))
    load_weights(planner, chosen, without=_swapped(folder, config))
    normaliser: Any = planner.normaliser
    return RecedingHorizonPolicy(
        planner, normaliser, space, config.policy, discount=config.data.discount, chunk=config.data.chunk
    )


def _rebuild(config: Config, space: Space, checkpoint: Path) -> nn.Module:
    """The planner of a run folder, refused while it is built if it grows far beyond the checkpoint it belongs to."""
    from trajgen.engine.runtime import allocating_at_most
    from trajgen.engine.storage import read_header

    _, shapes = read_header(checkpoint)
    try:
        with allocating_at_most(4 * checkpoint.stat().st_size + SLACK, 20 * len(shapes) + 10_000):
            return build_planner(config, space)
    except TrajgenError:
        raise
    except Exception as error:  # a component may do anything with sizes that nobody ever tried
        raise CheckpointError(
            "The configuration and the checkpoint of a run folder belong together.",
            expected=f"a model whose weights {checkpoint} holds",
            got=f"{type(error).__name__}: {str(error)[:200]}",
            fix="use the config.json of its own run folder",
        ) from error


def _swapped(folder: Path, config: Config) -> tuple[str, ...]:
    """The kinds of component that differ from those the run was trained with."""
    trained = load_config(folder)[0].components
    return tuple(k for k, node in config.components.items() if k in trained and node["name"] != trained[k]["name"])


def evaluate(
    folder: Path,
    console: Console,
    *,
    device: str = "auto",
    imports: tuple[str, ...] = (),
    overrides: Mapping[str, Any] | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Evaluates a run in its world, and writes evaluation.json, plots/ and summary.md.

    Args:
        folder: of the run.
        console: where figures are shown.
        device: auto, cpu, cuda or cuda:N.
        imports: own modules that register components.
        overrides: plain values that replace those of the run, as for `load_policy`.
        out: where the files are written; None for the run folder, or, where something is overridden, for a new
            folder ``evaluations/N`` in it, so that the run's own evaluation stays.
    """
    from trajgen.data.worlds import world_for
    from trajgen.evaluation.evaluate import evaluate as play
    from trajgen.evaluation.evaluate import write_evaluation
    from trajgen.evaluation.report import print_evaluation
    from trajgen.pictures import draw_run

    prepare_imports(imports)
    config, _ = load_config(folder)
    config = Config.from_plain(merged(config.to_plain(), overrides or {}))
    trained_stages(folder / "metrics.jsonl")  # refuses now what could not be drawn in the end
    policy = load_policy(folder, device=device, imports=imports, overrides=overrides)
    world = world_for(config.data)
    with console.status("evaluating"):
        result = play(policy, world, config.evaluation)
    seeds = range(config.evaluation.seed, config.evaluation.seed + CONDITIONS)
    figures = result.to_dict() | {"condition_error": condition_error(policy, world, seeds)}
    if overrides:
        figures["overrides"] = dict(overrides)
    out = out or (free_path(folder / "evaluations") if overrides else folder)
    out.mkdir(parents=True, exist_ok=True)
    write_evaluation(out / "evaluation.json", figures)
    seed, stride = config.evaluation.seed, config.data.stride
    plots = draw_run(out, folder / "metrics.jsonl", policy, world, result, seed, stride=stride)
    write_summary(folder, out, config, figures, plots)
    print_evaluation(figures, console)
    console.print(f"{out / 'summary.md'}", style="bold")
    return figures


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """Which plans ``trajgen sample`` draws."""

    seed: int = 0
    """Episode of the world whose first state and goal the plans are made for."""
    state: tuple[float, ...] | None = None
    """Another state to plan from, (S,)."""
    goal: tuple[float, ...] | None = None
    """Another goal, (G,)."""
    returns: float | None = None
    """Return-to-go to ask for, discounted, in the data's units; None for the policy's own target."""
    plans: int = 8
    """How many plans."""


def sample(
    folder: Path,
    console: Console,
    request: SampleRequest,
    *,
    device: str = "auto",
    imports: tuple[str, ...] = (),
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Draws plans from one state into a new ``plots/sample-N.png``, and returns and prints their condition error."""
    from trajgen.data.worlds import world_for
    from trajgen.evaluation.rollout import environments
    from trajgen.pictures import draw_plans

    policy = load_policy(folder, device=device, imports=imports, overrides=overrides)
    config, space = load_config(folder)
    world = world_for(config.data)
    with environments(world, 1) as (environment,):
        observation = world.reset(environment, request.seed)[0]
    if request.goal is not None and space.goal_key is None:
        raise ConfigError(
            "Only a run that plans for goals can be given one.",
            expected="no goal=…",
            got=f"goal={list(request.goal)}",
            fix="leave it out",
        )
    for key, values in ((space.state_key, request.state), (space.goal_key, request.goal)):
        if values is not None:
            observation = put(observation, key, np.asarray(values, dtype=np.float32))
    cond, plan, refinements = policy.preview([observation] * request.plans, request.returns)
    if plan.trajectory is None:
        console.print(f"Planner '{config.components['planner']['name']}' makes no trajectory that could be drawn.")
        return {}
    errors = policy.condition_error(cond, plan.trajectory)
    path = free_path(folder / "plots", "sample-{}.png")
    path.parent.mkdir(exist_ok=True)
    draw_plans(path, policy, world, observation, refinements)
    own = float(policy.normaliser.returns.inverse(cond.returns[:1]))
    console.print(f"{request.plans} plans, asked for a return-to-go of {own:.1f}: {path}")
    for name in ("state", "return"):
        if name in errors:
            console.print(
                f"condition error of the first {name}: {errors[name + '_units']:.3g} in the data's units, "
                f"{errors[name]:.3g} of its standard deviation (root mean square)"
            )
    return errors


def condition_error(policy: RecedingHorizonPolicy, world: World, seeds: range) -> dict[str, float]:
    """How far decoded plans start from what was asked, over first states and goals of the world."""
    from trajgen.evaluation.rollout import environments

    with environments(world, 1) as (environment,):
        seen = [world.reset(environment, seed)[0] for seed in seeds]
    cond, plan, _ = policy.preview(seen)
    return {} if plan.trajectory is None else policy.condition_error(cond, plan.trajectory)
