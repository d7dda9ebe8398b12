"""Runs: a folder that holds one training, what it was, and what came of it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trajgen.config import Config
from trajgen.core.errors import CheckpointError, ConfigError
from trajgen.core.options import structure
from trajgen.core.registry import load_entry_points, load_imports
from trajgen.core.types import Space

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from trajgen.data.worlds import World
    from trajgen.policies.receding_horizon import RecedingHorizonPolicy

ROOT = Path("runs")
NOT_LOSSES = ("stage", "stage_index", "step", "seconds", "windows_per_second", "gradient_norm")
"""Entries of a line of metrics.jsonl that are neither losses nor usage."""
CONDITIONS = 256
"""First states from which the condition error is measured."""
PACKAGES = (
    "trajgen",
    "torch",
    "timm",
    "vector-quantize-pytorch",
    "hydra-core",
    "minari",
    "gymnasium",
    "gymnasium-robotics",
    "mujoco",
    "numpy",
)


def train(config: Config, console: Console, command: str | None = None) -> Path:
    """Makes the data if need be, trains, evaluates, draws, and returns the run folder.

    Args:
        config: of the run.
        console: where progress is shown.
        command: that asked for it, to be written into the summary.

    Raises:
        TrajgenError: for anything that the person can mend, before training where it can be known.
    """
    from trajgen.core.types import Stage
    from trajgen.engine.loop import Training
    from trajgen.engine.runtime import choose_device, seed_step

    device = choose_device(config.device)
    prepare_imports(config.imports)
    dry_run(config)
    folder = find_folder(config)
    episodes = load_episodes(config, console)
    from trajgen.data.windows import Windows, fit_normaliser

    seed_step(config.seed, -1)
    planner = build_planner(config, episodes.space)
    normaliser: Any = planner.normaliser
    normaliser.load_state_dict(fit_normaliser(episodes, config.data).state_dict())
    planner.to(device)
    source = Windows(episodes, config.data, normaliser, device, config.seed)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {**config.to_plain(), "space": asdict(episodes.space), "command": command})
    write_json(folder / "versions.json", versions())
    console.print(f"[bold]{config.recipe}[/] on {config.data.id}: {len(source):,} windows, {device}, {folder}")
    stages: list[Stage] = planner.stages()  # type: ignore[operator]
    training = Training(planner, stages, source, config.engine, folder, config.seed, device, console)
    training.run(resume=config.resume)
    evaluate(folder, console, device=config.device, imports=config.imports)
    return folder


def prepare_imports(modules: tuple[str, ...]) -> None:
    """Imports what registers components of the user's own."""
    load_entry_points()
    load_imports(modules)


def build_planner(config: Config, space: Space) -> nn.Module:
    """The planner of a configuration, with fresh weights."""
    from trajgen.assemble import assemble

    return assemble(
        config.components,
        space,
        horizon=config.data.horizon,
        chunk=config.data.chunk,
        power=config.data.power,
        goals=config.data.goals != "none",
    )


def dry_run(config: Config) -> None:
    """Builds the composition at made-up dimensions, so that what cannot work is refused before data are made."""
    space = Space(state_dim=4, action_dim=2, goal_dim=2)
    planner: Any = build_planner(config, space)
    names = [stage.name for stage in planner.stages()]
    for name in names:
        config.engine.stage(name, names)
    config.policy.check(config.data.chunk)


def load_episodes(config: Config, console: Console) -> Any:
    """The data set of a configuration, made first where a maker can."""
    from trajgen.data import makers, minari, store

    options = config.data
    maker = makers.MAKERS.get(options.maker or "")
    if maker and maker.id == options.id and not store.folder(options.id).is_dir():
        console.print(f"Making the data set {options.id} (once; 'trajgen data list' shows it) …")
        makers.make(maker.name)
    return minari.load(options.id, options)


def find_folder(config: Config) -> Path:
    """The folder of a new run, which need not exist, or the one to go on with.

    Raises:
        ConfigError: if the folder belongs to another configuration, or holds a run that was not to be resumed.
    """
    name = f"{config.recipe}-{config.data.id.removesuffix('-v0').rpartition('/')[2]}-s{config.seed}"
    taken = sorted(ROOT.glob(f"{name}*"), key=lambda path: path.stat().st_mtime)
    if config.run_dir is not None:
        folder = Path(config.run_dir)
    elif config.resume:
        same = [path for path in taken if _identity(path) == config.identity()]
        if not same:
            raise ConfigError(
                "There is a run to go on with.",
                expected=f"a folder {ROOT / name}* with this configuration",
                got=", ".join(map(str, taken)) or "none",
                fix="the same command as before, with resume=true; or run_dir=DIR",
            )
        folder = same[-1]
    else:
        free = (ROOT / (name if n == 1 else f"{name}-{n}") for n in range(1, 10**6))
        folder = next(path for path in free if not path.exists())
    found = _identity(folder) if folder.exists() else None
    if found is not None and found != config.identity():
        differing = sorted(k for k in {*found, *config.identity()} if found.get(k) != config.identity().get(k))
        raise ConfigError(
            "A run folder belongs to one configuration.",
            expected=f"the configuration in {folder / 'config.json'}",
            got=f"another {', '.join(differing)}",
            fix="run_dir=ANOTHER, or the options that the folder was made with",
        )
    if folder.exists() and any(folder.iterdir()) and not (config.resume and found is not None):
        raise ConfigError(
            "A run folder is empty, or is a run to go on with.",
            expected="a new folder, or resume=true",
            got=f"{folder} holds {', '.join(sorted(p.name for p in folder.iterdir())[:4])}",
            fix="resume=true to go on with it, or run_dir=ANOTHER",
        )
    return folder


def _identity(folder: Path) -> dict[str, Any] | None:
    """What the run in a folder trains, or None if there is none."""
    if not (folder / "config.json").exists():
        return None
    return load_config(folder)[0].identity()


def load_config(folder: Path) -> tuple[Config, Space]:
    """The configuration and the space of a run folder.

    Raises:
        CheckpointError: if the folder is not that of a run.
    """
    plain = read_json(folder / "config.json")
    plain.pop("command", None)
    space = structure(Space, plain.pop("space", {}), "space")
    return Config.from_plain(plain), space


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
    planner = build_planner(config, space).to(choose_device(device))
    load_weights(planner, Checkpoints(folder / "checkpoints").newest(), without=_swapped(folder, config))
    normaliser: Any = planner.normaliser
    return RecedingHorizonPolicy(
        planner, normaliser, space, config.policy, discount=config.data.discount, chunk=config.data.chunk
    )


def _swapped(folder: Path, config: Config) -> tuple[str, ...]:
    """The kinds of component that differ from those the run was trained with."""
    trained = load_config(folder)[0].components
    return tuple(kind for kind, node in config.components.items() if node["name"] != trained[kind]["name"])


def merged(plain: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values with changes laid over them; a component that is named anew replaces the old one whole."""
    result = dict(plain)
    for key, value in changes.items():
        old = result.get(key)
        swapped = isinstance(value, Mapping) and "name" in value and isinstance(old, Mapping)
        if (
            isinstance(value, Mapping)
            and isinstance(old, Mapping)
            and not (swapped and value["name"] != old.get("name"))
        ):
            result[key] = merged(old, value)
        else:
            result[key] = value
    return result


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
    policy = load_policy(folder, device=device, imports=imports, overrides=overrides)
    world = world_for(config.data)
    with console.status("evaluating"):
        result = play(policy, world, config.evaluation)
    seeds = range(config.evaluation.seed, config.evaluation.seed + CONDITIONS)
    figures = result.to_dict() | {"condition_error": condition_error(policy, world, seeds)}
    if overrides:
        figures["overrides"] = dict(overrides)
    out = out or (_free_folder(folder / "evaluations") if overrides else folder)
    out.mkdir(parents=True, exist_ok=True)
    write_evaluation(out / "evaluation.json", figures)
    plots = draw_run(out, folder / "metrics.jsonl", policy, world, result, config.evaluation.seed)
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
    """Draws plans from one state into ``plots/sample.png``, and returns and prints their condition error."""
    from trajgen.data.worlds import world_for
    from trajgen.evaluation.rollout import environments
    from trajgen.pictures import draw_plans

    policy = load_policy(folder, device=device, imports=imports, overrides=overrides)
    config, space = load_config(folder)
    world = world_for(config.data)
    with environments(world, 1) as (environment,):
        observation = environment.reset(seed=request.seed)[0]
    if request.goal is not None and space.goal_key is None:
        raise ConfigError(
            "Only a run that plans for goals can be given one.",
            expected="no goal=…",
            got=f"goal={list(request.goal)}",
            fix="leave it out",
        )
    for key, values in ((space.state_key, request.state), (space.goal_key, request.goal)):
        if values is not None and key is not None:
            observation[key] = np.asarray(values, dtype=np.float32)
        elif values is not None:
            observation = np.asarray(values, dtype=np.float32)
    cond, plan, refinements = policy.preview([observation] * request.plans, request.returns)
    if plan.trajectory is None:
        return {}
    errors = policy.condition_error(cond, plan.trajectory)
    path = folder / "plots" / "sample.png"
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


def versions() -> dict[str, str]:
    """The packages that a result depends on, and Python."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def condition_error(policy: RecedingHorizonPolicy, world: World, seeds: range) -> dict[str, float]:
    """How far decoded plans start from what was asked, over first states and goals of the world."""
    from trajgen.evaluation.rollout import environments

    with environments(world, 1) as (environment,):
        seen = [environment.reset(seed=seed)[0] for seed in seeds]
    cond, plan, _ = policy.preview(seen)
    return {} if plan.trajectory is None else policy.condition_error(cond, plan.trajectory)


def _free_folder(parent: Path) -> Path:
    return next(path for path in (parent / str(n) for n in range(1, 10**6)) if not path.exists())


def write_summary(folder: Path, out: Path, config: Config, figures: dict[str, Any], plots: list[str]) -> None:
    """The run of ``folder`` on one page in ``out``."""
    from trajgen.evaluation.report import summary_markdown

    text = summary_markdown(
        config.to_plain(),
        figures,
        _stages(folder / "metrics.jsonl"),
        plots,
        versions=read_json(folder / "versions.json"),
        command=read_json(folder / "config.json").get("command"),
    )
    (out / "summary.md").write_text(text, encoding="utf-8")


def _stages(path: Path) -> list[dict[str, Any]]:
    """What became of each stage, from its lines in metrics.jsonl; a resumed stage counts its seconds anew."""
    from trajgen.evaluation.plots import read_metrics

    stages = []
    for name, group in groupby(read_metrics(path) if path.exists() else [], key=lambda line: line["stage"]):
        lines = list(group)
        clock = [line["seconds"] for line in lines]
        seconds = sum(now for now, then in zip(clock, [*clock[1:], 0.0], strict=True) if then < now)
        figures = {k: v for k, v in lines[-1].items() if k not in NOT_LOSSES}
        stages.append(
            {
                "name": name,
                "steps": lines[-1]["step"],
                "minutes": seconds / 60,
                "losses": {k: v for k, v in figures.items() if "/" not in k},
                "usage": {k.removeprefix("usage/"): v for k, v in figures.items() if k.startswith("usage/")},
            }
        )
    return stages


def write_json(path: Path, values: Any) -> None:
    """Writes plain values, whole or not at all."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a run folder as a dictionary.

    Raises:
        CheckpointError: if it is missing or damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            "The files of a run folder are plain JSON, and whole.",
            expected=f"{path.name}, as 'trajgen train' wrote it",
            got=f"{path}: {error}",
            fix="run=DIR of a run that 'trajgen train' made",
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(
            "The JSON files of a run folder are dictionaries.",
            expected=f"{path.name}, as 'trajgen train' wrote it",
            got=f"{path}: {type(values).__name__}",
            fix="run=DIR of a run that 'trajgen train' made",
        )
    return values
