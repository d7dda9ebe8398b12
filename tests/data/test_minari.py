"""Minari sets: written whole or not at all, read with every fault named."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest
from small_sets import episode, save, unbounded

from trajgen.core.errors import ConfigError, DataError
from trajgen.data import minari, store
from trajgen.data.options import DataOptions

ID = "tests/line-v0"
DICT = unbounded({"state": 2, "goal": 2, "here": 2})


def raw(steps: int, terminated: bool = False, **changes: Any) -> dict[str, Any]:
    rows = np.arange(2.0 * (steps + 1)).reshape(-1, 2)
    observations = {"state": rows, "goal": rows + 1, "here": rows + 2}
    return episode(observations, np.ones((steps, 1), np.float32), np.arange(1.0, steps + 1), terminated) | changes


def write(episodes: Any, **changes: Any) -> None:
    save(ID, episodes, changes.pop("observations", DICT), changes.pop("actions", 1), **changes)


def options(**changes: Any) -> DataOptions:
    keys: dict[str, Any] = {"state_key": "state", "goal_key": "goal", "achieved_key": "here", "goals": "hindsight"}
    return DataOptions(id=ID, **(keys | changes))


def test_what_is_written_is_read() -> None:
    write([raw(3), raw(2, terminated=True)])
    episodes = minari.load(ID, options())
    assert episodes.lengths.tolist() == [3, 2]
    assert episodes.terminated.tolist() == [False, True]
    assert episodes.rewards.tolist() == [1, 2, 3, 0, 1, 2, 0]
    assert episodes.goals is not None and episodes.achieved is not None
    assert (episodes.goals == episodes.states + 1).all() and (episodes.achieved == episodes.states + 2).all()
    space = episodes.space
    assert (space.state_dim, space.action_dim, space.goal_dim, space.goal_key) == (2, 1, 2, "goal")
    assert (space.action_low, space.action_high) == ((-1.0,), (1.0,))
    without = minari.load(ID, options(goals="none"))
    assert without.goals is None and without.space.goal_dim == 0 and without.space.goal_key is None


def test_minari_itself_reads_the_set() -> None:
    import minari as library

    write([raw(3)])
    assert library.load_dataset(ID).total_steps == 3
    assert list(library.list_local_datasets()) == [ID]


def test_an_interrupted_write_leaves_nothing(root: Path) -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield raw(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(broken())
    assert list(root.rglob("*.hdf5")) == [] and store.local_sets() == []
    write([raw(3)])  # the same command works again
    with pytest.raises(KeyboardInterrupt):
        write(broken(), force=True)
    assert minari.load(ID, options()).steps == 3  # and the old set survives a failed replacement


def test_nothing_is_overwritten_unasked() -> None:
    write([raw(3)])
    with pytest.raises(DataError, match="force=true"):
        write(pytest.fail("recorded in vain") for _ in range(1))
    assert minari.load(ID, options()).steps == 3
    write([raw(4)], force=True)
    assert minari.load(ID, options()).steps == 4


def test_of_two_that_write_the_same_set_the_first_wins() -> None:
    def overtaken() -> Iterator[dict[str, Any]]:
        write([raw(3)])
        yield raw(4)

    with pytest.raises(DataError, match="force=true"):
        write(overtaken())
    assert minari.load(ID, options()).steps == 3


def test_leftovers_of_a_killed_process_are_hidden_and_swept(root: Path) -> None:
    for name, age in (("old", 2 * store.DAY), ("young", 60)):
        left = root / f"{store.STAGING}{name}"
        (left / ID / "data").mkdir(parents=True)
        os.utime(left, (time.time() - age,) * 2)
    assert store.local_sets() == []
    write([raw(3)])
    assert [path.name for path in root.glob(".*")] == [f"{store.STAGING}young"]


def test_a_missing_set_names_the_nearest_and_the_command() -> None:
    write([raw(3)])
    with pytest.raises(DataError) as caught:
        minari.load("tests/lime-v0", options())
    assert caught.value.fix == f"did you mean '{ID}'? Or trajgen data get tests/lime-v0"
    with pytest.raises(DataError, match="trajgen data make pointmaze/umaze-dwell"):
        minari.load("trajgen/pointmaze/umaze-dwell-v0", options())


@pytest.mark.parametrize(
    "id",
    ["no-version", "../line-v0", "/line-v0", "a//b-v0", "", "line-v0/..", "a b-v0", "data/a-v0", "it/data/a-v0"],
)
def test_a_malformed_id_is_refused_and_leaves_no_folder(id: str, root: Path) -> None:
    with pytest.raises(DataError, match="namespace/name-v0"):
        minari.load(id, options())
    assert not root.exists()


def delete_field(file: Path) -> None:
    with h5py.File(file, "a") as content:
        del content["episode_1/observations/here"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
        delete_field,
        lambda file: file.with_name("metadata.json").write_text('{"total_episodes": '),
        Path.unlink,
    ],
    ids=["cut off", "without a field", "garbled metadata", "without data"],
)
def test_a_damaged_set_is_an_error_that_names_it(damage: Any, root: Path) -> None:
    write([raw(3), raw(4)])
    damage(root / ID / "data" / "main_data.hdf5")
    with pytest.raises(DataError) as caught:
        minari.load(ID, options())
    assert repr(ID) in str(caught.value.got) and "force" in str(caught.value.fix)


def test_rewards_may_be_a_column() -> None:
    write([raw(3, rewards=np.array([[1.0], [2.0], [3.0]]))])
    assert minari.load(ID, options()).rewards.tolist() == [1, 2, 3, 0]


def test_only_hdf5_is_mapped(root: Path) -> None:
    write([raw(3)])
    (root / ID / "data" / "main_data.hdf5").unlink()
    with pytest.raises((ConfigError, DataError)):
        minari.load(ID, options(memory_map=True))


def test_an_empty_set_is_refused() -> None:
    write([])
    with pytest.raises(DataError, match="at least one episode"):
        minari.load(ID, options())
    assert minari.describe(ID)["episodes"] == 0


def test_a_bad_episode_is_named() -> None:
    write([raw(3), raw(3, rewards=np.array([0.0, np.nan, 0.0]))])
    with pytest.raises(DataError, match=r"'tests/line-v0', episode 1, field 'rewards', row 1"):
        minari.load(ID, options())


def test_discrete_actions_that_do_not_count_from_0_are_refused() -> None:
    discrete = gymnasium.spaces.Discrete(3, start=1)
    write([raw(3, actions=np.zeros(3, np.int64))], actions=discrete)
    with pytest.raises(DataError, match="Discrete"):
        minari.load(ID, options())


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"state_key": "stat"}, "'state'"), ({"state_key": None}, "choose one of"), ({"goal_key": "gaol"}, "'goal'")],
)
def test_observation_keys_must_fit(changes: dict[str, Any], words: str) -> None:
    write([raw(3)])
    with pytest.raises(ConfigError) as caught:
        minari.load(ID, options(**changes))
    assert words in str(caught.value.expected)


def test_an_array_observation_has_no_keys() -> None:
    write([raw(3, observations=np.zeros((4, 2)))], observations=2)
    assert minari.load(ID, options(state_key=None, goals="none")).space.state_dim == 2
    with pytest.raises(ConfigError, match="observation is an array"):
        minari.load(ID, options(goals="none"))


def test_a_broken_folder_is_listed_and_breaks_nothing(root: Path) -> None:
    write([raw(3)])
    (root / "bad name" / "data").mkdir(parents=True)
    (root / "tests" / "half-v0" / "data").mkdir(parents=True)
    alien = root / "tests" / "alien-v0" / "data"
    alien.mkdir(parents=True)
    alien.joinpath("metadata.json").write_text(json.dumps({"total_episodes": 1, "total_steps": 2}))
    entries = {entry.id: entry for entry in minari.local_sets()}
    assert set(entries) == {ID, "bad name", "tests/half-v0", "tests/alien-v0"}
    assert entries[ID].problem is None and (entries[ID].episodes, entries[ID].steps) == (1, 3)
    assert all(entry.problem for id, entry in entries.items() if id != ID)


def test_a_set_describes_itself() -> None:
    write([raw(3), raw(5)])
    about = minari.describe(ID)
    assert (about["episodes"], about["steps"]) == (2, 8)
    assert about["episode_steps"] == {"shortest": 3, "median": 4.0, "longest": 5}
    assert about["eval_env"] == "Pendulum-v1" and about["description"] == "a line"
    json.dumps(about)


@pytest.mark.filterwarnings("ignore:.*is set to None", "ignore:env_spec is None")
def test_a_set_that_only_minari_reads_describes_itself() -> None:
    pytest.importorskip("pyarrow", reason="Arrow is read by pyarrow: pip install 'trajgen[lerobot]'")
    import minari as farama
    from minari.data_collector.episode_buffer import EpisodeBuffer

    episodes = [EpisodeBuffer(**episode(np.zeros((n + 1, 2)), np.zeros((n, 1)), np.arange(n))) for n in (3, 5)]
    spaces = {"observation_space": unbounded(2), "action_space": unbounded(1)}
    farama.create_dataset_from_buffers(ID, episodes, data_format="arrow", **spaces)
    about = minari.describe(ID)
    assert (about["episodes"], about["steps"], about["returns"]) == (2, 8, {"mean": 6.5, "best_tenth": 10.0})


def test_a_download_without_a_connection_fails_shortly(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match="connection"):
        minari.download("D4RL/pointmaze/umaze-v2")
    assert store.local_sets() == []


def test_a_download_appears_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    import minari as library

    write([raw(3)])
    moved = root.parent / "kept"
    store.folder(ID).rename(moved)

    def fetch(id: str, broken: bool) -> None:
        folder = Path(os.environ["MINARI_DATASETS_PATH"]) / id
        assert folder.is_relative_to(root) and folder != store.folder(id, root)
        folder.mkdir(parents=True)
        if broken:
            raise OSError("connection lost")
        moved.rename(folder / "moved")
        (folder / "moved" / "data").rename(folder / "data")

    monkeypatch.setenv("MINARI_REMOTE", "gcp://elsewhere")
    monkeypatch.setattr(library, "download_dataset", lambda id: fetch(id, True))
    with pytest.raises(DataError, match="connection lost"):
        minari.download(ID)
    assert not store.folder(ID).exists() and os.environ["MINARI_DATASETS_PATH"] == str(root)
    monkeypatch.setattr(library, "download_dataset", lambda id: fetch(id, False))
    minari.download(ID)
    assert minari.load(ID, options()).steps == 3
