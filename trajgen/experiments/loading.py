"""Loading a policy, or what pictures are drawn of, from a run folder."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajgen.config import Config, merged
from trajgen.core.errors import CheckpointError, ConfigError, TrajgenError
from trajgen.core.options import flat, nested
from trajgen.core.registry import KINDS
from trajgen.core.types import Space
from trajgen.data import store
from trajgen.data.options import DataOptions
from trajgen.experiments.preparation import build_planner, prepare_imports
from trajgen.experiments.run_folder import load_config, recorded_env
from trajgen.experiments.zoo import local_folder

if TYPE_CHECKING:
    from torch import nn

    from trajgen.policies.receding_horizon import RecedingHorizonPolicy
    from trajgen.viz.run import Run


SLACK = 2**28
"""Bytes that a model may need beyond its weights, for masks and tables."""
ACTING = ("data", "policy", "evaluation")
"""Sections of options that matter once a run is trained."""
INSTEAD = {"seed": "policy.seed", "device": "the argument device", "imports": "the argument imports"}
"""What is meant by options that matter to a training alone."""
OF_EPISODES = ("id", "env_id", "max_episode_steps")
"""Options of the data that say what the episodes of a trained run are."""
SIMULATED, REPLAYED = ("env_options", "shift", "resets", "success", "bounds", "goal_radius"), ("val_fraction",)
"""The same of episodes that are played in an environment, and of recorded ones that are replayed."""


def load_policy(
    run: str | os.PathLike[str],
    *,
    device: str = "auto",
    imports: tuple[str, ...] = (),
    overrides: Mapping[str, Any] | None = None,
) -> RecedingHorizonPolicy:
    """A trained policy, ready to act.

    Nothing in the folder is executed: weights are safetensors, and the configuration names registered components alone.

    Args:
        run: the run folder, ``zoo/NAME`` of the trained planners that come with trajgen, or ``hf://USER/NAME`` on the
            Hugging Face Hub.
        device: auto, cpu, cuda or cuda:N.
        imports: modules that register components; those that the folder names are not imported by themselves.
        overrides: plain values that replace those of the run, nested or as on the command line:
            ``{"policy.replan_interval": 1}`` or ``{"sampler": "greedy"}``.

    Returns:
        A policy with ``reset``, ``act`` and ``observe`` (`trajgen.core.planning.Policy`).

    Raises:
        CheckpointError: if the folder or its newest checkpoint cannot be read or do not fit.
        ConfigError: if an override does not fit, matters to a training alone, or is of the data, and says nothing of
            episodes.
        DataError: if it names a data set that is not on this machine.
    """
    from trajgen.engine.checkpoint import Checkpoints, load_weights
    from trajgen.engine.device import choose_device, fits_into_memory
    from trajgen.nn.low_rank import merge_adapters
    from trajgen.policies.receding_horizon import RecedingHorizonPolicy

    folder = local_folder(run)
    config, space = load_run(folder, imports, overrides)
    _refuse_idle(overrides or {})
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoint = checkpoints.best() if config.policy.weights == "best" else checkpoints.newest()
    if not checkpoints.finished:
        warnings.warn(
            f"{folder} is not trained to its end, and acts with {checkpoint.name}; the command that trained it "
            "finishes it with resume=true",
            stacklevel=2,
        )
    planner, chosen = _rebuild(config, space, checkpoint), choose_device(device)
    with fits_into_memory(chosen, f"the model of {folder}"):
        planner.to(chosen)
        try:
            load_weights(planner, checkpoint, without=_swapped(folder, config))
        except CheckpointError as error:
            keys = [key for key, _ in flat(nested((overrides or {}).items())) if not key.startswith("policy.")]
            if not keys:
                raise
            fix = f"leave out what changes the weights: {', '.join(keys)}"
            raise CheckpointError(error.rule, got=error.got, fix=fix) from error
        merge_adapters(planner)
    normalizer: Any = planner.normalizer
    return RecedingHorizonPolicy(
        planner, normalizer, space, config.policy, discount=config.data.discount, chunk=config.data.chunk
    )


def load_run(
    folder: Path, imports: tuple[str, ...] = (), overrides: Mapping[str, Any] | None = None
) -> tuple[Config, Space]:
    """The configuration of a run folder with overrides, and its space; see `load_policy`."""
    prepare_imports(imports)
    config, space = load_config(folder)
    if overrides:
        trained, config = config, Config.from_plain(merged(config.to_plain(), nested(overrides.items())))
        _check_data(folder, trained.data, config.data)
    return config, space


def _refuse_idle(overrides: Mapping[str, Any]) -> None:
    """Refuses overrides of what matters to a training alone, or that an argument or another option says."""
    if idle := [key for key in nested(overrides.items()) if key not in (*KINDS, *ACTING)]:
        raise ConfigError(
            "Of a trained run components and the options of data, policy and evaluation are replaced.",
            got=", ".join(idle),
            fix=INSTEAD.get(idle[0], f"leave {idle[0]} out"),
        )


def _check_data(folder: Path, trained: DataOptions, data: DataOptions) -> None:
    """Refuses other data options than those of the training that change nothing, or spoil figures, in its episodes."""
    names = [field.name for field in fields(data) if getattr(data, field.name) != getattr(trained, field.name)]
    if "id" in names and not store.folder(data.id).is_dir():
        raise store.missing(data.id)
    if not {*names} - {*OF_EPISODES}:
        return
    from trajgen.envs.replay import is_replayed

    possible = OF_EPISODES + (REPLAYED if is_replayed(data, recorded_env(folder)) else SIMULATED)
    for name in names:
        if name not in possible:
            needs_env = "; or data.env_id=ID of an environment" if name in SIMULATED else ""
            raise ConfigError(
                "Of the data's options a trained run takes those that its episodes depend on.",
                expected=", ".join(f"data.{each}" for each in possible),
                got=f"data.{name}",
                fix=f"leave data.{name} out{needs_env}",
            )


def _rebuild(config: Config, space: Space, checkpoint: Path) -> nn.Module:
    """Builds the planner of a run folder, and refuses it if it is much larger than the checkpoint."""
    from trajgen.engine.storage import read_header
    from trajgen.security import allocating_at_most

    _, shapes = read_header(checkpoint)
    try:
        with allocating_at_most(4 * checkpoint.stat().st_size + SLACK, 20 * len(shapes) + 10_000):
            return build_planner(config, space)
    except TrajgenError:
        raise
    except Exception as error:  # a component may do anything with sizes that it was never tried with
        raise CheckpointError(
            f"The configuration of the run folder does not belong to {checkpoint}.",
            got=f"{type(error).__name__}: {str(error)[:200]}",
            fix="use the config.json of its own run folder",
        ) from error


def _swapped(folder: Path, config: Config) -> tuple[str, ...]:
    """The kinds of component that differ from those that were trained."""
    trained = load_config(folder)[0].components
    return tuple(k for k, node in config.components.items() if k in trained and node["name"] != trained[k]["name"])


def open_run(
    folder: Path, *, device: str = "auto", imports: tuple[str, ...] = (), overrides: Mapping[str, Any] | None = None
) -> Run:
    """Opens a run folder with the arguments of `load_policy`; nothing of it is executed or loaded yet.

    Raises:
        CheckpointError: if the folder is not that of a run.
    """
    from trajgen.viz.run import Run

    changes = nested((overrides or {}).items())
    config, _ = load_run(folder, imports, changes)

    def load(more: Mapping[str, Any]) -> RecedingHorizonPolicy:
        return load_policy(folder, device=device, imports=imports, overrides=merged(changes, more) or None)

    return Run(folder, config, load, partial(recorded_env, folder))
