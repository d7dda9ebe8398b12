"""Preparing a training: the data set, its windows, and a planner with fresh weights."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from trajgen.config import Config
from trajgen.core.checks import check_range
from trajgen.core.errors import ConfigError
from trajgen.core.planning import subgoal_of
from trajgen.core.protocols import ChoosesScales
from trajgen.core.registry import complete, component, load_entry_points, load_imports
from trajgen.core.schedule import ScaleSchedule
from trajgen.core.types import Space
from trajgen.experiments.run_folder import load_config
from trajgen.experiments.starting import (
    add_lora,
    checkpoint_of,
    require_same_offsets,
    require_same_windows,
    stages_of,
    start_from,
)
from trajgen.experiments.zoo import local_folder

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from torch import nn

    from trajgen.data.options import DataOptions
    from trajgen.data.windows import Windows

SMALL_IMAGE = (16, 16, 3)
SAMPLE = (4, 1024)
"""Batches and windows per batch from which scales are chosen."""
MOST_BATCHES = 16
"""Batches that are drawn so that as many windows have no padding."""
WINDOWS_PER_NUMBER = 4
"""The fewest windows for each number of a latent; second moments of fewer are noise."""


def prepare(config: Config, device: torch.device, console: Console) -> tuple[Any, Windows, Space]:
    """A planner with fresh weights and the normalizer of its data, the windows to train on, and their space."""
    episodes = derived(config, load_episodes(config, console), console)
    return (*ready(config, episodes, device, console), episodes.space)


def ready(config: Config, episodes: Any, device: torch.device, console: Console | None = None) -> tuple[Any, Windows]:
    """A planner to be trained on these episodes, which `derived` made ready, and their windows.

    Its weights are fresh and its normalizer that of the episodes, but for what ``config.init`` gives.
    """
    from trajgen.data.encoding import Unencoded
    from trajgen.data.starts import remark_on_starts
    from trajgen.data.windows import Windows, fit_normalizer
    from trajgen.engine.device import fits_into_memory
    from trajgen.engine.step import seed_step

    seed_step(config.seed, -1)
    planner: Any = build_planner(config, episodes.space)
    fit_normalizer(episodes, config.data, planner.normalizer)
    if episodes.space.image_shape:
        start_encoder(planner, episodes)
    if console is not None:
        remarks = planner.normalizer.remarks() if episodes.images is None else []  # which are not encoded yet
        for line in [*remarks, *filter(None, [remark_on_starts(episodes, config.data)])]:
            console.print(f"{line}.", markup=False, highlight=False)
    if config.init is not None:
        require_same_offsets(config.init, episodes.space)
        note = start_from(planner, config.init, config.train_only)
        if console is not None:
            console.print(note, markup=False, highlight=False)
    fit_subgoals(planner, episodes, config.data)
    with fits_into_memory(device, f"a model of {sum(p.numel() for p in planner.parameters()):,} weights"):
        planner.to(device)
        unencoded = None
        if episodes.images is not None:
            is_fitted = bool(planner.normalizer.state.mean[episodes.space.vector_dim :].any())  # by config.init
            normalizer = None if is_fitted else planner.normalizer
            unencoded = Unencoded(episodes, config.data, planner.encoder, device, normalizer)
        return planner, Windows(episodes, config.data, planner.normalizer, device, config.seed, unencoded)


def derived(config: Config, episodes: Any, console: Console, resumed: Space | None = None) -> Any:
    """The episodes with what a training derives of them: features, scales, the range of returns, stitched episodes.

    Args:
        config: of the run.
        episodes: the data.
        console: shows what was chosen.
        resumed: the space of the run that is resumed, whose scales and range of returns are kept.
    """
    from trajgen.data.return_range import with_return_range
    from trajgen.data.stitching import with_stitched

    episodes = with_stitched(with_scales(config, with_features(config, episodes), console, resumed), config.data)
    if resumed is None and config.init is None:
        return with_return_range(episodes, config.data)
    of_weights = resumed or load_config(local_folder(str(config.init)))[1]
    return replace(episodes, space=replace(episodes.space, return_range=of_weights.return_range))


def with_features(config: Config, episodes: Any) -> Any:
    """The episodes with room for the features of their images, if they have any.

    Raises:
        ConfigError: if there is an encoder for data without images, or another one than that of encoded data.
    """
    from trajgen.assemble import USUAL, build_encoder
    from trajgen.data.encoding import with_room
    from trajgen.experiments.encoding import check_encoder

    node = config.components.get("encoder")
    if node is not None and (not episodes.space.image_shape or episodes.space.encoded):
        state = "are encoded already" if episodes.space.encoded else "have no images that are read"
        raise ConfigError(
            "An encoder is for data with images.",
            got=f"encoder={node['name']}, and the data {config.data.id!r}, which {state}",
            fix="'~encoder'" + ("" if episodes.space.encoded else ", or data.image_key=ENTRY of the observations"),
        )
    if episodes.space.encoded:
        check_encoder(episodes.space, episodes.name)
    if episodes.images is None:
        return episodes
    if config.data.stitch or len(config.data.strides) > 1:
        raise ConfigError(
            "Data are stitched, and cut into windows of several strides, once they are encoded.",
            got=f"data.stitch={config.data.stitch} data.stride={config.data.stride} with images",
            fix=f"trajgen data encode data.id={config.data.id} new_id=…, or data.stitch=0 data.stride=8",
        )
    node = complete("encoder", node or {"name": USUAL["encoder"]})
    return with_room(episodes, build_encoder(node, episodes.space).features, node)


def fit_subgoals(planner: Any, episodes: Any, options: DataOptions) -> None:
    """Shows the component that gives a planner subgoals, if it has one, the positions of all training episodes."""
    from trajgen.data.starts import val_episodes

    subgoal = subgoal_of(planner)
    if subgoal is None:
        return
    positions = episodes.states[:, list(options.goal_state)] if episodes.achieved is None else episodes.achieved
    is_val = val_episodes(len(episodes) - episodes.stitched, options.val_fraction)
    is_used = np.append(~is_val, np.ones(episodes.stitched, dtype=bool))
    rows = episodes.lengths + 1
    subgoal.fit(positions[np.repeat(is_used, rows)], np.cumsum(rows[is_used]) - rows[is_used])


def start_encoder(planner: Any, episodes: Any) -> None:
    """Gives an encoder the weights that it starts from, or with which the data were encoded."""
    from trajgen.core.planning import HasInitialWeights
    from trajgen.experiments.encoding import load_encoder

    if episodes.space.encoded:
        load_encoder(planner.encoder, episodes.name)
    elif isinstance(planner.encoder, HasInitialWeights):
        planner.encoder.load_initial_weights()


def with_scales(config: Config, episodes: Any, console: Console, resumed: Space | None = None) -> Any:
    """The episodes, whose space has the lengths of scales that the schedule chooses for them, if it is one that does.

    Args:
        config: of the run.
        episodes: the data.
        console: shows what was chosen.
        resumed: the space of the run that is resumed, whose lengths are kept.
    """
    from trajgen.data.windows import Windows, fit_normalizer

    planner: Any = build_planner(config, episodes.space) if _chooses_scales(config) else None
    if planner is None:
        return episodes
    if episodes.images is not None:
        raise ConfigError(
            "Scales are chosen for features, and these data hold images.",
            got=f"schedule={config.components['schedule']['name']} for {config.data.id!r}",
            fix=f"trajgen data encode data.id={config.data.id} new_id=…, or schedule=geometric",
        )
    if resumed is not None:
        return _with_lengths(config, episodes, resumed.scale_lengths)
    fit_normalizer(episodes, config.data, planner.normalizer)
    tokenizer, windows = planner.tokenizer, Windows(episodes, config.data, planner.normalizer)  # the same for all seeds
    x = _views(planner, windows, WINDOWS_PER_NUMBER * tokenizer.latent_length * tokenizer.code_dim)
    lengths, why = tokenizer.schedule.choose(x, tokenizer.code_dim, math.log2(tokenizer.vocabulary))
    console.print(f"Scales of these data: {ScaleSchedule(lengths)}, {why}.", markup=False, highlight=False)
    return _with_lengths(config, episodes, lengths)


def _with_lengths(config: Config, episodes: Any, lengths: tuple[int, ...]) -> Any:
    """The episodes with the lengths of scales in their space; refused if plans with as many cannot be followed so."""
    space = replace(episodes.space, scale_lengths=lengths)
    config.policy.steps(build_planner(config, space), config.data.chunk)
    return replace(episodes, space=space)


def _views(planner: Any, windows: Windows, least: int) -> torch.Tensor:
    """What a tokenizer reads (W, T, D) of windows without padding, which is not reconstructed; of all if few have none.

    Args:
        planner: with the view.
        windows: that are drawn.
        least: the fewest windows without padding that are enough.
    """
    import torch

    batches, size = SAMPLE
    views: list[torch.Tensor] = []
    unpadded: list[torch.Tensor] = []
    while len(views) < MOST_BATCHES and sum(map(len, unpadded)) < batches * size:
        batch = windows.batch(len(views), size)
        with torch.no_grad():
            views.append(planner.view(batch))
        unpadded.append(views[-1][batch.mask.all(1)])
    has_enough = sum(map(len, unpadded)) >= least
    return torch.cat(unpadded if has_enough else views)[: batches * size]


def _chooses_scales(config: Config) -> bool:
    node = config.components.get("schedule")
    if node is None:
        return False
    schedule = component("schedule", node["name"])
    return inspect.isclass(schedule) and issubclass(schedule, ChoosesScales)


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
        relative_goals=data.relative_goals,
    )
    planner = assemble(config.components, space, window)
    add_lora(planner, config)
    return planner


def dry_run(config: Config, device: torch.device | None = None) -> None:
    """Builds the planner at small dimensions, so that what cannot work is refused before data are loaded.

    Args:
        config: of the run; where it goes on from a checkpoint, with an ``init`` that is there.
        device: on which it trains and acts, if it does so on this machine.
    """
    from trajgen.engine.distributed import world_size

    space = small_space(config)
    planner: Any = build_planner(config, space)
    if _chooses_scales(config):
        _require_chooser(config, planner)
    config.engine.check_batch_sizes(stages_of(planner, config.train_only), world_size())
    if config.train_only and config.init is None:
        raise ConfigError(
            "train_only leaves the other parts as they are, which without a run to start from are not trained.",
            got=f"train_only={','.join(config.train_only)} without init",
            fix="init=RUN, or leave train_only out",
        )
    if config.init is not None:
        checkpoint_of(config.init)
        if (local_folder(config.init) / "config.json").is_file():
            require_same_windows(config, planner)
    _check_policy(config, planner)
    config.policy.check_backend(planner, space, device)
    if config.policy.weights == "best" and not config.data.val_fraction:
        raise ConfigError(
            "The best weights are chosen on validation episodes, of which there are none.",
            got="policy.weights=best and data.val_fraction=0",
            fix="data.val_fraction=0.1, or policy.weights=last",
        )


def _check_policy(config: Config, planner: Any) -> None:
    """Raises a `ConfigError` if plans cannot be followed as the policy says, whichever scales are chosen."""
    policy = config.policy
    if policy.revise is None or not _chooses_scales(config):
        policy.steps(planner, config.data.chunk)
        return
    replace(policy, revise=2).steps(planner, config.data.chunk)
    check_range("policy.revise", policy.revise, 2, planner.tokenizer.latent_length, usual=2)


def small_space(config: Config) -> Space:
    """A space for trying out a composition before data are loaded, with images if it has an encoder of its own."""
    images = SMALL_IMAGE if "encoder" in config.components else ()
    goal_state = config.data.goal_state
    state_dim = max(4, 2 * (max(goal_state, default=0) // 2 + 1))  # even, for two agents
    return Space(state_dim=state_dim, action_dim=2, goal_dim=len(goal_state) or 2, agents=2, image_shape=images)


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
    if (maker := missing_maker(options)) is not None:
        with store.making(options.id):
            if not store.folder(options.id).is_dir():  # another training may have made it meanwhile
                console.print(f"Making the data set {options.id} (once; 'trajgen data list' shows it) …")
                makers.make(maker)
    return minari.load(options.id, options)


def missing_maker(options: DataOptions) -> str | None:
    """The name of what makes a data set that is not on this machine; None if it is, or nothing makes it."""
    from trajgen.data import store
    from trajgen.envs import makers

    maker = makers.MAKERS.get(options.maker or "")
    return maker.name if maker and maker.id == options.id and not store.folder(options.id).is_dir() else None
