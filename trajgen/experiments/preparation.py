"""Preparing a training: the data set, its windows, and a planner with fresh weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trajgen.config import Config
from trajgen.core.errors import ConfigError
from trajgen.core.registry import load_entry_points, load_imports
from trajgen.core.types import Space
from trajgen.experiments.starting import add_lora, checkpoint_of, require_same_offsets, stages_of, start_from

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from torch import nn

    from trajgen.data.windows import Windows


def prepare(config: Config, device: torch.device, console: Console) -> tuple[Any, Windows, Space]:
    """A planner with fresh weights and the normalizer of its data, the windows to train on, and their space."""
    episodes = load_episodes(config, console)
    return (*ready(config, episodes, device, console), episodes.space)


def ready(config: Config, episodes: Any, device: torch.device, console: Console | None = None) -> tuple[Any, Windows]:
    """A planner to be trained on these episodes, and their windows.

    Its weights are fresh and its normalizer that of the episodes, but for what ``config.init`` gives.
    """
    from trajgen.data.windows import Windows, fit_normalizer
    from trajgen.engine.device import fits_into_memory
    from trajgen.engine.step import seed_step

    seed_step(config.seed, -1)
    planner: Any = build_planner(config, episodes.space)
    fit_normalizer(episodes, config.data, planner.normalizer)
    if console is not None:
        for line in planner.normalizer.remarks():
            console.print(f"{line}.", markup=False)
    if config.init is not None:
        require_same_offsets(config.init, episodes.space)
        note = start_from(planner, config.init)
        if console is not None:
            console.print(note, markup=False, highlight=False)
    with fits_into_memory(device, f"a model of {sum(p.numel() for p in planner.parameters()):,} weights"):
        planner.to(device)
        return planner, Windows(episodes, config.data, planner.normalizer, device, config.seed)


def prepare_imports(modules: tuple[str, ...]) -> None:
    """Imports modules and entry points that register components."""
    load_entry_points()
    load_imports(modules)


def build_planner(config: Config, space: Space) -> nn.Module:
    """The planner of a configuration, with fresh weights, and with the adapters that are to be trained."""
    from trajgen.assemble import WindowShape, assemble

    data = config.data
    window = WindowShape(
        horizon=data.horizon,
        stride=data.stride,
        chunk=data.chunk,
        discount=data.discount,
        return_power=data.return_power,
        goals=data.goals != "none",
        goal_state=data.goal_state,
        goal_radius=data.goal_radius,
        terminate_at_goal=data.terminate_at_goal,
    )
    planner = assemble(config.components, space, window)
    add_lora(planner, config)
    return planner


def dry_run(config: Config) -> None:
    """Builds the planner at small dimensions, so that what cannot work is refused before data are loaded."""
    from trajgen.engine.distributed import world_size

    space = Space(state_dim=4, action_dim=2, goal_dim=2)
    planner: Any = build_planner(config, space)
    config.engine.check_batch_sizes(stages_of(planner, config.train_only), world_size())
    if config.init is not None:
        checkpoint_of(config.init)
    config.policy.steps(planner, config.data.chunk)
    if config.policy.weights == "best" and not config.data.val_fraction:
        raise ConfigError(
            "The best weights are chosen on validation episodes, of which there are none.",
            got="policy.weights=best and data.val_fraction=0",
            fix="data.val_fraction=0.1, or policy.weights=last",
        )


def load_episodes(config: Config, console: Console) -> Any:
    """The data set of a configuration, which is made first if it is missing and has a maker."""
    from trajgen.data import minari, store
    from trajgen.envs import makers

    options = config.data
    maker = makers.MAKERS.get(options.maker or "")
    if maker and maker.id == options.id and not store.folder(options.id).is_dir():
        with store.making(options.id):
            if not store.folder(options.id).is_dir():  # another training may have made it meanwhile
                console.print(f"Making the data set {options.id} (once; 'trajgen data list' shows it) …")
                makers.make(maker.name)
    return minari.load(options.id, options)
