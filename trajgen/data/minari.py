"""Minari data sets: read into episodes, written whole, described, downloaded."""

from __future__ import annotations

import importlib.metadata
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trajgen.core.choices import one_hot
from trajgen.core.errors import ConfigError, DataError
from trajgen.core.observations import Key, entry, join_images
from trajgen.core.types import Space
from trajgen.data import store
from trajgen.data.episodes import IMAGES, Episode, Episodes, Rounding, collect_centered
from trajgen.data.hdf5 import READ_ERRORS, EpisodeFile
from trajgen.data.mapped import FOLDER, is_large, key_of, map_episodes, size_of
from trajgen.data.options import DataOptions
from trajgen.data.returns import score_episodes
from trajgen.data.spaces import TEAM, limit_actions, space_of
from trajgen.data.store import local_sets
from trajgen.security import memory_limit

__all__ = ["describe", "download", "load", "local_sets", "save"]

FILE = "main_data.hdf5"
"""The episodes of a set in HDF5, in the folder of its data."""
DESCRIPTION = ("description", "algorithm_name", "author", "minari_version", "ref_min_score", "ref_max_score", TEAM)
"""Entries of the metadata that are shown as they are."""


def load(id: str, options: DataOptions) -> Episodes:
    """Reads a data set of this machine, checking every episode.

    Raises:
        DataError: if the set is missing, damaged, empty, not valid, or has no box of actions.
        ConfigError: if an observation key of the options does not fit the data.
    """
    dataset = open_dataset(id)
    space = space_of(id, dataset, options)
    entries: dict[str, Key] = {"states": options.state_key if space.encoded else space.state_key}
    entries |= {IMAGES: space.image_key} if space.image_shape and not space.encoded else {}
    if options.goals != "none":
        entries |= {"goals": options.goal_key} if options.goal_key else {}
        entries |= {"achieved": options.achieved_key} if options.achieved_key else {}
    path = store.folder(id) / "data" / FILE
    if not path.exists():  # Minari has another format, which only Minari reads
        if options.memory_map:
            raise ConfigError(f"Only data sets in HDF5 can be mapped, and {id!r} has no file {path.name}.",
                              fix="data.memory_map=false")  # fmt: skip

        def read() -> Iterator[Episode]:
            return _stream(id, space, (_episode(raw, entries) for raw in dataset.iterate_episodes()))

        return limit_actions(collect_centered(read, partial(_collect, id, None), space, options.goal_state), options)
    file = EpisodeFile(path, dataset.total_episodes, entries)
    with _readable(id):
        rows = file.rows
        if size_of(rows, space) > 2 * memory_limit(path.stat().st_size):
            raise ValueError("its arrays would take more memory than it can hold")

    def read_file() -> Iterator[Episode]:
        return _stream(id, space, file.episodes())

    if is_large(rows, space) if options.memory_map is None else options.memory_map:
        folder = store.folder(id) / FOLDER / key_of(entries)
        episodes = map_episodes(folder, path, read_file, rows=rows, name=id, space=space, goal_state=options.goal_state)
    else:
        episodes = collect_centered(read_file, partial(_collect, id, rows), space, options.goal_state)
    return limit_actions(episodes, options)


def _collect(id: str, rows: int | None, raw: Iterable[Episode], space: Space, rounding: Rounding) -> Episodes:
    return Episodes.collect(raw, name=id, space=space, rows=rows, rounding=rounding)


def save(
    id: str,
    episodes: Iterable[Mapping[str, Any]],
    *,
    env_spec: Any,
    eval_env_spec: Any,
    observation_space: Any,
    action_space: Any,
    description: str,
    algorithm: str,
    team: Sequence[Mapping[str, Any]] | None = None,
    force: bool = False,
    write_extra: Callable[[Path], dict[str, Any]] | None = None,
) -> None:
    """Writes episodes as a Minari HDF5 data set, which appears under its name only when it is complete.

    Args:
        episodes: for each episode the entries of Minari's EpisodeBuffer; read once, as a stream.
        env_spec, eval_env_spec: Gymnasium specs of the recorded and of the evaluation environment, or None.
        team: of several agents whose observations and actions are side by side, each one's name and widths.
        force: replace a data set of the same name.
        write_extra: writes files into the folder of the data, and returns further metadata.

    Raises:
        DataError: if the name is taken and ``force`` is not set.
    """
    from minari.data_collector.episode_buffer import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    if not force:
        store.refuse_existing(id)
    with store.staging() as base:
        data = store.folder(id, base) / "data"
        data.mkdir(parents=True)
        storage = MinariStorage.new(
            data, observation_space, action_space, env_spec, data_format="hdf5", jpeg_encoding=False
        )
        version = importlib.metadata.version("minari")
        about = {"dataset_id": id, "minari_version": version, "description": description, "algorithm_name": algorithm}
        if eval_env_spec is not None:
            about["eval_env_spec"] = eval_env_spec.to_json()
        if team is not None:
            about[TEAM] = json.dumps(list(team))
        storage.update_metadata(about if write_extra is None else about | write_extra(data))
        storage.update_episodes(EpisodeBuffer(**episode) for episode in episodes)
        store.publish(id, base, force=force)


def describe(id: str) -> dict[str, Any]:
    """Facts about a data set of this machine: sizes, spaces, environments, origin.

    Raises:
        DataError: if the set is missing or damaged.
    """
    dataset = open_dataset(id)
    with _readable(id):
        episodes = dataset.storage.get_episode_metadata(dataset.episode_indices)
        lengths = [int(episode["total_steps"]) for episode in episodes] if dataset.total_episodes else []
        about = dataset.storage.metadata
        path, returns = store.folder(id) / "data" / FILE, np.zeros(0)
        if lengths and path.exists():
            returns = EpisodeFile(path, len(lengths), {}).returns()
        elif lengths:  # Minari has another format, which only Minari reads
            returns = np.array([np.sum(episode.rewards) for episode in dataset.iterate_episodes()])
        earned = score_episodes(returns, np.array(lengths)) if lengths else {}
    specs = {"env": dataset.env_spec, "eval_env": dataset._eval_env_spec or dataset.env_spec}
    shown = {name: about[name] for name in DESCRIPTION if about.get(name) is not None}
    return {
        "id": id,
        "episodes": len(lengths),
        "steps": int(sum(lengths)),
        "episode_steps": {
            "shortest": int(min(lengths, default=0)),
            "median": float(np.median(lengths)) if lengths else 0.0,
            "longest": int(max(lengths, default=0)),
        },
        **({"returns": {key: round(earned[key], 3) for key in ("mean", "best_tenth")}} if earned else {}),
        "observation_space": str(dataset.observation_space),
        "action_space": str(dataset.action_space),
        **{name: spec.id for name, spec in specs.items() if spec is not None},
        **{name: sorted(value) if isinstance(value, set) else value for name, value in shown.items()},
        "megabytes": next((each.megabytes for each in local_sets() if each.id == id), 0.0),
        "folder": str(store.folder(id)),
    }


def download(id: str, *, force: bool = False) -> None:
    """Fetches a data set from Minari's server; it appears under its name only when it is complete.

    Raises:
        DataError: if the server cannot be reached, or does not have the set.
        ConfigError: if the package that talks to the server is not installed.
    """
    import minari

    if not force:
        store.refuse_existing(id)
    _require_server()
    with store.staging() as base:
        before = os.environ.get("MINARI_DATASETS_PATH")
        os.environ["MINARI_DATASETS_PATH"] = str(base)  # the only way to tell Minari where to put it
        try:
            minari.download_dataset(id)
        except ImportError as error:
            raise ConfigError(
                f"Downloads need Minari's remote storage: {error}", fix="pip install 'minari[hf]'"
            ) from error
        except Exception as error:  # the storage back ends raise errors of their own libraries
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            fix = "see https://minari.farama.org for the ids that there are"
            raise DataError(f"The server does not give the data set {id!r}.", got=text, fix=fix) from error
        finally:
            if before is None:
                del os.environ["MINARI_DATASETS_PATH"]
            else:
                os.environ["MINARI_DATASETS_PATH"] = before
        for part in local_sets(base):  # a combined set brings the sets that it is made of
            if part.id == id or not store.folder(part.id).exists():
                store.publish(part.id, base, force=force)


def open_dataset(id: str) -> Any:
    """Minari's own object of a data set, with its metadata checked.

    Raises:
        DataError: if the set is missing or damaged.
    """
    if not store.folder(id).is_dir():
        raise store.missing(id)
    store.metadata(id)
    from minari import MinariDataset

    with _readable(id):
        return MinariDataset(store.folder(id) / "data")


@contextmanager
def _readable(id: str) -> Iterator[None]:
    """Turns what reading a damaged file raises into an error that names the data set."""
    try:
        yield
    except READ_ERRORS as error:
        raise store.damaged(id, error) from error


def _stream(id: str, space: Space, episodes: Iterator[Episode]) -> Iterator[Episode]:
    while True:
        with _readable(id):
            episode = next(episodes, None)
            if episode is not None and space.choices:
                episode = replace(episode, actions=one_hot(episode.actions, space.choices))
        if episode is None:
            return
        yield episode


def _episode(raw: Any, entries: Mapping[str, Key]) -> Episode:
    return Episode(
        actions=raw.actions,
        rewards=raw.rewards[:, 0] if raw.rewards.shape[1:] == (1,) else raw.rewards,
        terminated=bool(len(raw.terminations) and raw.terminations[-1]),
        **{field: _observed(raw, field, key) for field, key in entries.items()},
    )


def _observed(raw: Any, field: str, key: Key) -> Any:
    if field == IMAGES:
        return join_images(raw.observations, key)
    return np.zeros((len(raw.rewards) + 1, 0), np.float32) if key == () else entry(raw.observations, key)


def _require_server() -> None:
    """Asks the default server for a sign of life, since Minari would try for half a minute."""
    if not os.environ.get("MINARI_REMOTE", "hf://").startswith("hf://"):
        return
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(address, timeout=5.0).close()
    except urllib.error.HTTPError:
        return  # it answers
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise DataError(
            f"A download needs a connection to {address}: {reason}.",
            fix="connect to the network, or make a data set here: trajgen data make pointmaze/umaze-dwell",
        ) from error
