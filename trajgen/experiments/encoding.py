"""Data sets whose images are encoded once and stored as features, with the encoder beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from trajgen.config import Config
from trajgen.core.errors import ConfigError
from trajgen.core.observations import as_keys, nested_entries
from trajgen.core.types import Space
from trajgen.data.options import DataOptions
from trajgen.data.spaces import Features, leaves_of
from trajgen.evaluation.evaluate import EvaluationOptions
from trajgen.experiments.options import EncodeOptions
from trajgen.experiments.preparation import load_episodes, prepare_imports, ready, with_features

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from torch import nn

    from trajgen.data.episodes import Episodes
    from trajgen.data.hdf5 import EpisodeFile

WEIGHTS = "encoder.safetensors"
"""The file of the encoder's weights in the folder of an encoded data set."""
NOT_OF_FEATURES = ("maker", "image_key")
"""Options of the data with the images that the encoded set does not take."""
SAME = ("author", "author_email", "ref_min_score", "ref_max_score")
"""Entries of the metadata that the encoded set takes from the one with the images."""
SLACK = 2**28
"""Bytes that an encoder may need beyond its weights."""
STATE, OTHER_STATE = "observation", "state"
"""The entry of the vectors with the features, and its name where another entry has that."""


def encode(config: Config, options: EncodeOptions, console: Console) -> dict[str, Any]:
    """Trains the encoder of a data set, if it has something to learn, and stores features in the place of images.

    Args:
        config: whose data hold images; of its stages, that of the encoder alone is trained.
        options: of the new set.
        console: for progress.

    Returns:
        A preset that reads the new set as the one with the images was read, and evaluates alike.

    Raises:
        DataError: if the new id is taken, or the data cannot be read.
        ConfigError: if the data have no images or are not in HDF5, or the encoder does not fit them.
    """
    from gymnasium import spaces

    from trajgen.data import minari, store
    from trajgen.data.encoding import encoded
    from trajgen.data.hdf5 import EpisodeFile
    from trajgen.engine.checkpoint import Checkpoints
    from trajgen.engine.device import choose_device

    store.folder(options.new_id)
    if not options.force:
        store.refuse_existing(options.new_id)
    prepare_imports(config.imports)
    device = choose_device(config.device)
    episodes = with_features(config, load_episodes(config, console))
    if episodes.images is None:
        raise ConfigError(
            "The data have no images to encode.",
            got=config.data.id,
            fix="data.image_key=ENTRY of the observations; 'trajgen data info' shows them",
        )
    path = store.folder(config.data.id) / "data" / minari.FILE
    if not path.exists():
        raise ConfigError(f"Only data sets in HDF5 can be encoded, and {config.data.id!r} has no file {path.name}.")
    windows = replace(config.data, horizon=2, chunk=1, stride=config.data.strides[0])  # which short episodes have too
    pairs = replace(config, data=windows)
    planner, source = ready(pairs, episodes, device)
    _train(pairs, planner, source, device, console)
    features = encoded(episodes, planner.encoder.eval(), device)

    def write_extra(folder: Path) -> dict[str, Any]:
        Checkpoints(folder).save_weights(planner.encoder, WEIGHTS)
        names = [field.name for field in fields(Features) if field.name != "source"]
        images = {name: getattr(features.space, name) for name in names} | {"source": config.data.id}
        return {"images": images} | {name: about[name] for name in SAME if name in about}

    dataset = minari.open_dataset(config.data.id)
    about = dataset.storage.metadata
    state, entries = _entries(features.space, dataset.observation_space)
    file = EpisodeFile(path, len(features), {})
    minari.save(
        options.new_id,
        _buffers(features, entries, state, file),
        env_spec=dataset.env_spec,
        eval_env_spec=dataset._eval_env_spec,
        observation_space=nested_entries(entries, spaces.Dict) if len(entries) > 1 else entries[state],
        action_space=dataset.action_space,
        description=f"Images of {config.data.id} as {features.space.feature_dim} features.",
        algorithm=str(about.get("algorithm_name", "")),
        force=options.force,
        write_extra=write_extra,
    )
    data = {k: v for k, v in _changed(config.data, DataOptions(id="")).items() if k not in NOT_OF_FEATURES}
    read_as = {"id": options.new_id, "state_key": state if len(entries) > 1 else None}
    return {"data": data | read_as, "evaluation": _changed(config.evaluation, EvaluationOptions())}


def load_encoder(encoder: nn.Module, id: str) -> None:
    """Loads the weights with which a data set was encoded.

    Raises:
        CheckpointError: if they cannot be read, or do not fit.
    """
    from trajgen.data import store
    from trajgen.engine.checkpoint import load_weights

    load_weights(encoder, store.folder(id) / "data" / WEIGHTS)


def check_encoder(space: Space, id: str) -> None:
    """Refuses an encoded data set whose encoder cannot be built, or is much larger than its weights.

    Raises:
        DataError: if it is.
    """
    from trajgen.assemble import build_encoder
    from trajgen.data import store
    from trajgen.security import allocating_at_most

    path = store.folder(id) / "data" / WEIGHTS
    try:
        with allocating_at_most(4 * path.stat().st_size + SLACK, 100_000):
            build_encoder(space.encoder, space)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise store.damaged(id, f"its encoder: {error}") from error


def _train(config: Config, planner: Any, source: Any, device: torch.device, console: Console) -> None:
    from trajgen.engine.loop import Training
    from trajgen.experiments.starting import stages_of

    stages = stages_of(planner, ())[:1]
    if not stages[0].parameters:
        return
    engine = replace(config.engine, stages={k: v for k, v in config.engine.stages.items() if k == stages[0].name})
    with TemporaryDirectory() as folder:
        Training(planner, stages, source, engine, Path(folder), config.seed, device, console).run()


def _buffers(episodes: Episodes, entries: Mapping[str, Any], state: str, file: EpisodeFile) -> Iterator[dict[str, Any]]:
    """The entries of Minari's EpisodeBuffer for each episode; what is not encoded is read again as it is stored.

    Args:
        episodes: with features.
        entries: the spaces of the new observations by path.
        state: the path of the vectors with the features.
        file: of the data set with the images.
    """
    offset = np.asarray(episodes.space.state_offset or 0.0)
    others = [name for name in entries if name != state]
    for number, (first, last) in enumerate(zip(episodes.starts, episodes.ends, strict=True)):
        stored = file.arrays(number, ["actions", "rewards", *(f"observations/{name}" for name in others)])
        states = (episodes.states[first : last + 1] + offset).astype(entries[state].dtype)
        leaves = {state: states, **{name: stored[f"observations/{name}"] for name in others}}
        is_last = np.arange(last - first) == last - first - 1
        yield {
            "observations": nested_entries(leaves, dict) if others else states,
            "actions": stored["actions"],
            "rewards": stored["rewards"],
            "terminations": is_last & episodes.terminated[number],
            "truncations": is_last & ~episodes.terminated[number],
        }


def _entries(space: Space, observations: Any) -> tuple[str, dict[str, Any]]:
    """The path of the vectors with the features, and the spaces of all new entries, which are the other old vectors."""
    from gymnasium import spaces

    used = {*as_keys(space.state_key), *as_keys(space.image_key)}
    leaves = leaves_of(observations) if isinstance(observations, spaces.Dict) else {}
    others = {str(name): leaf for name, leaf in leaves.items() if name not in used and len(leaf.shape or ()) == 1}
    state = OTHER_STATE if STATE in others else STATE
    dtype = np.float64 if space.state_offset else np.float32
    return state, {state: spaces.Box(-np.inf, np.inf, (space.state_dim,), dtype), **others}


def _changed(options: DataOptions | EvaluationOptions, usual: DataOptions | EvaluationOptions) -> dict[str, Any]:
    """The options that are not the usual ones, as plain values."""
    plain, usual_plain = asdict(options), asdict(usual)
    changed: dict[str, Any] = json.loads(json.dumps({k: v for k, v in plain.items() if v != usual_plain[k]}))
    return changed
