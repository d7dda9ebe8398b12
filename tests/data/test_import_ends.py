"""Where episodes of one table end, by whatever the file shows of it, and said where nothing does; and with what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import formats
import numpy as np
import pytest

from trajgen.core.errors import DataError
from trajgen.data import minari
from trajgen.data.episodes import Episodes
from trajgen.data.options import DataOptions
from trajgen.importing import ImportOptions, from_arrays, from_path

ID = "mine/points-v0"


def check_refused(path: Path, *parts: str, **options: Any) -> None:
    with pytest.raises(DataError) as caught:
        from_path(path, ImportOptions(id=ID, **options))
    assert all(part in str(caught.value) for part in parts), caught.value


def lost(**columns: Any) -> dict[str, Any]:
    """A table of three episodes that marks no end, but for what these columns show."""
    arrays = formats.table(final=False)
    del arrays["timeouts"]
    return arrays | {"terminals": np.zeros(15), **columns}


STEPS = np.concatenate([np.arange(n) for n in formats.LENGTHS])
ENDS = formats.ends("any")
SHOWN: dict[str, dict[str, Any]] = {
    "first rows": {"is_first": STEPS == 0},
    "first rows by another name": {"episode_starts": (STEPS == 0).astype(np.float32)},
    "a count of steps": {"frame_index": STEPS},
    "a count from one": {"infos/elapsed_steps": STEPS + 1},
    "timeouts among the infos": {"infos/timeouts": ENDS},
    "gym's name": {"TimeLimit.truncated": ENDS},
    "capitals": {"Timeouts": ENDS},
    "half floats": {"timeouts": ENDS.astype(np.float16)},
    "numbers of episodes that are not sorted": {"episode_id": np.repeat([2, 0, 1], formats.LENGTHS)},
}


@pytest.mark.parametrize("kind", SHOWN)
def test_an_end_that_the_file_shows_in_another_way_is_an_end(kind: str, tmp_path: Path) -> None:
    path = formats.write_hdf5(tmp_path / "table.hdf5", lost(**SHOWN[kind]))
    from_path(path, ImportOptions(id=ID))
    lengths = minari.load(ID, DataOptions(id=ID)).lengths
    assert lengths.tolist() == [n - 1 for n in formats.LENGTHS]  # the final observations are not there


@pytest.mark.parametrize("form", ["hdf5", "npz"])
def test_next_obs_are_next_observations(form: str, tmp_path: Path) -> None:
    arrays = lost(terminals=ENDS, next_obs=formats.table(final=True)["next_observations"])
    path = tmp_path / f"table.{form}"
    write = formats.write_hdf5 if form == "hdf5" else lambda path, arrays: np.savez(path, **arrays)
    write(path, arrays)
    from_path(path, ImportOptions(id=ID))
    loaded = minari.load(ID, DataOptions(id=ID))
    assert loaded.lengths.tolist() == [*formats.LENGTHS] and loaded.terminated.all()
    assert np.array_equal(loaded.states, np.concatenate([episode["observations"] for episode in formats.episodes()]))
    write(path, arrays | {"terminals": ENDS | (np.arange(15) == 6)})
    check_refused(path, "row 6: the next row is its next observation", force=True)


def test_next_obs_of_arrays_follow_one_another() -> None:
    rows = np.arange(7.0)[:, None]
    episode = {"observations": rows[:-1], "actions": np.sin(rows[:-1]), "rewards": np.zeros(6), "next_obs": rows[1:]}
    from_arrays(ID, [episode])
    assert minari.load(ID, DataOptions(id=ID)).states[:, 0].tolist() == [*range(7)]
    with pytest.raises(DataError, match="episode 0, row 0: the next row"):
        from_arrays(ID, [episode | {"next_obs": rows[1:] + 1}], force=True)


def with_goals(path: Path, **options: Any) -> Episodes:
    """The episodes of an import, whose goals are where they ended."""
    from_path(path, ImportOptions(id=ID, images=(), **options))
    keys = {"state_key": "observation", "goal_key": "desired_goal", "achieved_key": "achieved_goal"}
    episodes = minari.load(ID, DataOptions(id=ID, goals="hindsight", **keys))
    assert episodes.goals is not None and episodes.achieved is not None
    assert np.array_equal(episodes.goals[episodes.starts], episodes.achieved[episodes.ends])
    return episodes


@pytest.mark.parametrize("ends", ["data", "timeout"])
def test_what_is_achieved_in_the_end_is_in_next_obs(ends: str, tmp_path: Path) -> None:
    episodes = with_goals(formats.robomimic(tmp_path), achieved="obs/a_place", ends=ends)
    assert episodes.lengths.tolist() == [*formats.LENGTHS]
    assert np.array_equal(episodes.achieved, episodes.states[:, :2])


def test_a_final_observation_is_of_one_time(tmp_path: Path) -> None:
    path = formats.d4rl(tmp_path, **{"infos/place": formats.table(final=True)["observations"][:, :2]})
    for final, lengths in {"auto": [4, 4, 5], "drop": [4, 3, 5], "repeat": [*formats.LENGTHS]}.items():
        episodes = with_goals(path, achieved="infos/place", final=final, force=True)  # next_observations have no place
        assert episodes.lengths.tolist() == lengths
        assert np.array_equal(episodes.achieved, episodes.states[:, :2])
    episodes = with_goals(path, achieved="observations", force=True)
    assert episodes.lengths.tolist() == [*formats.LENGTHS]
    assert np.array_equal(episodes.achieved, episodes.states)


def test_rows_that_are_taken_for_final_observations_are_said(tmp_path: Path) -> None:
    columns = lost(terminals=ENDS)
    np.savez(tmp_path / "one.npz", **columns)
    np.savez(tmp_path / "two.npz", **columns, timeouts=np.zeros(15))
    one, two = (from_path(tmp_path / f"{name}.npz", ImportOptions(id=f"mine/{name}-v0")) for name in ("one", "two"))
    assert "'terminals' marks are final observations, not steps" in one.about and one.steps == 15 - 3
    assert "final observations" not in two.about and two.steps == 15


def test_ends_without_a_reason_are_steps(tmp_path: Path) -> None:
    columns = lost(dones=ENDS, rewards=np.arange(15.0))
    del columns["terminals"]
    np.savez(tmp_path / "done.npz", **columns)
    check_refused(tmp_path / "done.npz", "ends=terminal or ends=timeout")
    assert from_path(tmp_path / "done.npz", ImportOptions(id=ID, ends="terminal")).terminated == 3
    loaded = minari.load(ID, DataOptions(id=ID))
    assert loaded.lengths.tolist() == [*formats.LENGTHS]
    assert loaded.rewards[loaded.ends - 1].tolist() == [*np.flatnonzero(ENDS)]


def test_numbers_of_episodes_that_are_mixed_are_refused(tmp_path: Path) -> None:
    path = formats.write_hdf5(tmp_path / "table.hdf5", lost(episode_id=np.arange(15) % 3))
    check_refused(path, "lie together", "row 3: episode_id 0 again")


def test_a_table_without_ends_is_said_to_jump(tmp_path: Path) -> None:
    walk = np.cumsum(np.full((15, 3), 0.1), 0) + 50 * (np.arange(15) > 4)[:, None]
    for states, words in ((walk, "jump after row 4"), (walk[:5].repeat(3, 0), "read as one episode; ")):
        path = formats.write_hdf5(tmp_path / "table.hdf5", lost(observations=states))
        with pytest.warns(UserWarning, match=words):
            from_path(path, ImportOptions(id=ID, force=True))


def test_terminals_that_are_timeouts_too_are_said(tmp_path: Path) -> None:
    path = formats.write_hdf5(tmp_path / "table.hdf5", lost(terminals=ENDS, timeouts=ENDS))
    with pytest.warns(UserWarning, match="its 3 timeouts as a terminal too"):
        from_path(path, ImportOptions(id=ID))


@pytest.mark.parametrize("codes", [np.eye(4), np.array([[0, 3], [1, 1], [2, 0], [0, 2]])], ids=["one-hot", "several"])
def test_discrete_actions_as_floats_are_refused(codes: np.ndarray, tmp_path: Path) -> None:
    arrays = formats.table(final=False) | {"actions": codes[np.arange(15) % 4].astype(np.float32)}
    path = formats.write_hdf5(tmp_path / "table.hdf5", arrays)
    check_refused(path, "discrete", "actions=continuous")
    from_path(path, ImportOptions(id=ID, actions="continuous"))


def test_a_compact_table_of_ogbench_is_one_in_hdf5_too(tmp_path: Path) -> None:
    arrays = formats.table(final=False)
    del arrays["timeouts"], arrays["rewards"]
    path = formats.write_hdf5(tmp_path / "table.hdf5", arrays | {"terminals": ENDS, "valids": ~ENDS})
    from_path(path, ImportOptions(id=ID, rewards="zero"))
    episodes = minari.load(ID, DataOptions(id=ID))
    assert episodes.lengths.tolist() == [n - 1 for n in formats.LENGTHS] and not episodes.terminated.any()


@pytest.mark.parametrize("name", ["table.hdf5", "table.npz", "robot/data/chunk-000/file-001.parquet"])
def test_a_pointer_of_git_lfs_is_named(name: str, tmp_path: Path) -> None:
    if name.startswith("robot"):
        pytest.importorskip("pyarrow", reason="parquet is read by pyarrow: pip install 'trajgen[lerobot]'")
        path = formats.lerobot(tmp_path, 3).rename(tmp_path / "robot")
    else:
        path = tmp_path / name
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 10\n")
    for form in ("auto", "lerobot" if name.startswith("robot") else "npz"):
        check_refused(path, "git lfs pull", Path(name).name, format=form)


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    arrays = {name: values[:0] for name, values in formats.table(final=False).items()}
    check_refused(formats.write_hdf5(tmp_path / "table.hdf5", arrays), "0 episodes")
