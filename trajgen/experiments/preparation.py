"""Preparing a training: the data set, its windows, and a planner with fresh weights."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trajgen.config import Config
from trajgen.core.errors import ConfigError
from trajgen.core.protocols import ChoosesScales
from trajgen.core.registry import component, load_entry_points, load_imports
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Space
from trajgen.experiments.starting import add_lora, checkpoint_of, require_same_offsets, stages_of, start_from

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from torch import nn

    from trajgen.data.windows import Windows

SAMPLE = (4, 1024)
"""Batches and windows per batch from which scales are chosen."""


def prepare(config: Config, device: torch.device, console: Console) -> tuple[Any, Windows, Space]:
    """A planner with fresh weights and the normalizer of its data, the windows to train on, and their space."""
    from trajgen.data.stitching import with_stitched

    episodes = with_stitched(with_scales(config, load_episodes(config, console), console), config.data)
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


def with_scales(config: Config, episodes: Any, console: Console, resumed: Space | None = None) -> Any:
    """The episodes, whose space has the lengths of scales that the schedule chooses for them, if it is one that does.

    Args:
        config: of the run.
        episodes: the data.
        console: shows what was chosen.
        resumed: the space of the run that is resumed, whose lengths are kept.
    """
    import torch

    from trajgen.data.windows import Windows, fit_normalizer

    planner: Any = build_planner(config, episodes.space) if _chooses_scales(config) else None
    if planner is None:
        return episodes
    if resumed is not None:
        return replace(episodes, space=replace(episodes.space, scale_lengths=resumed.scale_lengths))
    fit_normalizer(episodes, config.data, planner.normalizer)
    windows = Windows(episodes, config.data, planner.normalizer, "cpu", config.seed)
    with torch.no_grad():
        x = torch.cat([planner.view(windows.batch(step, SAMPLE[1])) for step in range(SAMPLE[0])])
    tokenizer = planner.tokenizer
    lengths, why = tokenizer.schedule.choose(x, tokenizer.code_dim, math.log2(tokenizer.vocabulary))
    console.print(f"Scales of these data: {ScaleSchedule(lengths)}, {why}.", markup=False, highlight=False)
    return replace(episodes, space=replace(episodes.space, scale_lengths=lengths))


def _chooses_scales(config: Config) -> bool:
    node = config.components.get("schedule")
    return node is not None and hasattr(component("schedule", node["name"]), "choose")


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

    space = Space(state_dim=4, action_dim=2, goal_dim=2, agents=2)
    planner: Any = build_planner(config, space)
    if _chooses_scales(config):
        _require_chooser(config, planner)
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


def _require_chooser(config: Config, planner: Any) -> None:
    """Raises a `ConfigError` unless a planner has one tokenizer with a codebook, which a schedule can be chosen for."""
    tokenizer: Any = getattr(planner, "tokenizer", None)
    has_codes = getattr(tokenizer, "vocabulary", None) is not None
    if not has_codes or not isinstance(tokenizer.schedule, ChoosesScales):
        raise ConfigError(
            "Scales are chosen for the codes of one tokenizer.",
            got=f"schedule={config.components['schedule']['name']} with planner={config.components['planner']['name']}",
            fix="recipe=mage, or schedule=geometric",
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
