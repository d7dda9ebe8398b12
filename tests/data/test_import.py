"""Data of other formats: what is imported is what the source holds, whatever it is written in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import formats
import gymnasium
import numpy as np
import pytest

from trajgen.cli import main
from trajgen.core.errors import ConfigError, DataError
from trajgen.data import minari, store
from trajgen.data.episodes import Episodes
from trajgen.data.importing import ImportOptions, detect, from_arrays, from_path
from trajgen.data.options import DataOptions

ID = "mine/points-v0"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    return tmp_path / "sets"


def imported(path: Path, **changes: Any) -> Episodes:
    from_path(path, ImportOptions(id=ID, **changes))
    return load(goals="goal" in changes)


def load(*, goals: bool = False) -> Episodes:
    keys: dict[str, Any] = {"state_key": "observation", "goal_key": "desired_goal", "goals": "dataset"} if goals else {}
    return minari.load(ID, DataOptions(id=ID, **keys))


def observed(episodes: Episodes, number: int) -> np.ndarray:
    return episodes.states[episodes.starts[number] : episodes.ends[number] + 1]


def check_whole(found: Episodes, *, rewards: bool = True, terminated: Any = formats.TERMINATED) -> None:
    """All steps and all final observations are there."""
    assert found.lengths.tolist() == [*formats.LENGTHS] and found.terminated.tolist() == [*terminated]
    for number, known in enumerate(formats.episodes()):
        first, last = found.starts[number], found.ends[number]
        assert np.array_equal(observed(found, number), known["observations"])
        assert np.array_equal(found.actions[first:last], known["actions"])
        assert np.array_equal(found.rewards[first:last], known["rewards"] if rewards else np.zeros(last - first))


def check_auto(found: Episodes) -> None:
    """No final observations in the source: after a timeout a step less, after a terminal the observation again."""
    assert found.lengths.tolist() == [4, 4, 5] and found.terminated.tolist() == [*formats.TERMINATED]
    for number, known in enumerate(formats.episodes()):
        states, steps = known["observations"][:-1], found.lengths[number]
        assert np.array_equal(observed(found, number), np.concatenate([states, states[-1:]])[: steps + 1])
        first = found.starts[number]
        assert np.array_equal(found.rewards[first : first + steps], known["rewards"][:steps])
        assert np.array_equal(found.actions[first : first + steps], known["actions"][:steps])


def test_d4rl_with_next_observations_is_whole(tmp_path: Path) -> None:
    check_whole(imported(formats.d4rl(tmp_path)))


def test_d4rl_without_next_observations(tmp_path: Path) -> None:
    check_auto(imported(formats.d4rl(tmp_path, final=False)))


def test_the_last_step_is_dropped_or_its_observation_repeated_on_demand(tmp_path: Path) -> None:
    path = formats.d4rl(tmp_path, final=False)
    dropped = imported(path, final="drop")
    assert dropped.lengths.tolist() == [4, 3, 5]
    assert not dropped.terminated.any()  # the step that ended the task is gone
    repeated = imported(path, final="repeat", force=True)
    assert repeated.lengths.tolist() == [5, 4, 6] and repeated.terminated.tolist() == [False, True, False]
    assert (observed(repeated, 0)[-1] == observed(repeated, 0)[-2]).all()


def test_d4rl_goals_are_measured_against_a_part_of_the_state(tmp_path: Path) -> None:
    from_path(formats.d4rl(tmp_path), ImportOptions(id=ID, goal="infos/goal", achieved=(0, 1)))
    keys: dict[str, Any] = {"goal_key": "desired_goal", "achieved_key": "achieved_goal", "goals": "hindsight"}
    found = minari.load(ID, DataOptions(id=ID, state_key="observation", **keys))
    assert found.goals is not None and found.achieved is not None
    assert np.array_equal(found.achieved, found.states[:, :2])
    for number, known in enumerate(formats.episodes()):
        assert np.array_equal(found.goals[found.starts[number] : found.ends[number] + 1], known["goals"])


def test_a_table_that_goes_on_at_its_end_is_a_timeout(tmp_path: Path) -> None:
    ends = formats.ends("timeout")
    ends[-1] = False
    assert imported(formats.d4rl(tmp_path, timeouts=ends)).terminated.tolist() == [False, True, False]


def test_a_table_without_ends_is_cut_by_a_number_of_rows(tmp_path: Path) -> None:
    path = formats.d4rl(tmp_path, timeouts=None, terminals=None)
    with pytest.raises(DataError, match="episode_steps"):
        imported(path)
    assert imported(path, episode_steps=5).lengths.tolist() == [5, 5, 5]
    terminal = formats.d4rl(tmp_path, timeouts=None)  # nine rows up to the terminal, and six after it
    assert imported(terminal, episode_steps=5, force=True).lengths.tolist() == [5, 4, 5, 1]


def test_robomimic_joins_its_vectors_and_leaves_images_out(tmp_path: Path) -> None:
    check_whole(imported(formats.robomimic(tmp_path)))


def test_robomimic_without_next_observations(tmp_path: Path) -> None:
    check_auto(imported(formats.robomimic(tmp_path, final=False)))


def test_robomimic_takes_the_entries_that_are_named_in_their_order(tmp_path: Path) -> None:
    found = imported(formats.robomimic(tmp_path), state=("object", "a_place"))
    known = formats.episodes()[0]["observations"]
    assert np.array_equal(observed(found, 0), known[:, [2, 0, 1]])


@pytest.mark.parametrize("version", [2, 3])
def test_lerobot(version: int, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="parquet is read by pyarrow: pip install 'trajgen[lerobot]'")
    path = formats.lerobot(tmp_path, version)
    made = from_path(path, ImportOptions(id=ID))
    assert "10 frames a second" in made.about
    check_auto(load())


def test_a_folder_of_npz(tmp_path: Path) -> None:
    check_whole(imported(formats.npz_folder(tmp_path)))


def test_a_folder_of_npz_with_goals(tmp_path: Path) -> None:
    found = imported(formats.npz_folder(tmp_path), goal="goals")
    assert found.goals is not None and np.array_equal(found.goals[:6], formats.episodes()[0]["goals"])


def test_ogbench_marks_final_observations_and_ends_by_timeouts(tmp_path: Path) -> None:
    path = formats.ogbench(tmp_path)
    with pytest.raises(DataError, match="rewards=zero"):
        imported(path)
    check_whole(imported(path, rewards="zero"), rewards=False, terminated=[False] * 3)


def test_without_goals_an_episode_was_on_its_way_to_where_it_ended(tmp_path: Path) -> None:
    """As OGBench's sets are read: every place that was reached may have been the goal."""
    made = from_path(formats.ogbench(tmp_path), ImportOptions(id=ID, rewards="zero", achieved=(0, 1)))
    assert "goals: hindsight" in made.lines and "relabel_ratio: 1.0" in made.lines
    keys: dict[str, Any] = {"goal_key": "desired_goal", "achieved_key": "achieved_goal", "goals": "hindsight"}
    found = minari.load(ID, DataOptions(id=ID, state_key="observation", **keys))
    assert found.goals is not None and found.achieved is not None
    for first, last in zip(found.starts, found.ends, strict=True):
        assert (found.goals[first : last + 1] == found.states[last, :2]).all()


def test_ogbench_with_next_observations(tmp_path: Path) -> None:
    found = imported(formats.ogbench(tmp_path, transitions=True), ends="timeout")
    check_whole(found, terminated=[False] * 3)


def test_arrays_from_python() -> None:
    known = [{**e, "terminals": np.arange(len(e["actions"])) == len(e["actions"]) - 1} for e in formats.episodes()]
    for episode in known:
        episode["terminals"] = episode["terminals"] & episode.pop("terminated")
    made = from_arrays(ID, iter(known))
    assert (made.episodes, made.steps, made.terminated) == (3, 15, 1)
    check_whole(load())


def test_arrays_may_have_next_observations_instead() -> None:
    known = [
        {
            "observations": e["observations"][:-1],
            "next_observations": e["observations"][1:],
            "actions": e["actions"],
            "rewards": e["rewards"],
        }
        for e in formats.episodes()
    ]
    from_arrays(ID, known)
    check_whole(load(), terminated=[False] * 3)


def test_columns_of_one_number_may_be_flat_or_not(tmp_path: Path) -> None:
    known = [{**e, "actions": e["actions"][:, 0], "rewards": e["rewards"][:, None]} for e in formats.episodes()]
    from_arrays(ID, known)
    found = load()
    assert found.space.action_dim == 1
    assert np.array_equal(found.rewards[:5], formats.episodes()[0]["rewards"])


def test_rewards_of_demonstrations_come_last(tmp_path: Path) -> None:
    found = imported(formats.npz_folder(tmp_path, rewards=None), rewards="last", ends="terminal")
    assert found.rewards.tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    assert found.terminated.all()


def test_episodes_can_be_left_out(tmp_path: Path) -> None:
    assert imported(formats.npz_folder(tmp_path), skip=(0, 2)).lengths.tolist() == [4]


def test_bounds_of_the_actions_follow_the_data(tmp_path: Path) -> None:
    assert imported(formats.d4rl(tmp_path)).space.action_low == (-1.0, -1.0)
    wide = formats.table(final=True)["actions"] * np.array([4.0, 1.0])
    space = imported(formats.d4rl(tmp_path, actions=wide), force=True).space
    assert space.action_low == pytest.approx(wide.min(0)) and space.action_high == pytest.approx(wide.max(0))


def test_the_world_is_named_and_must_fit(tmp_path: Path) -> None:
    path = formats.d4rl(tmp_path)
    with pytest.raises(DataError, match="actions like Box"):
        imported(path, env="Pendulum-v1")  # three observations, but one action
    assert store.local_sets() == []
    one = formats.d4rl(tmp_path, actions=formats.table(final=True)["actions"][:, :1])
    imported(one, env="Pendulum-v1")
    assert minari.describe(ID)["eval_env"] == "Pendulum-v1"
    with pytest.raises(DataError, match="known to Gymnasium"):
        imported(one, env="Pendulun-v1", force=True)
    imported(one, force=True)
    assert "eval_env" not in minari.describe(ID)


def test_a_world_with_more_entries_than_the_data_fits() -> None:
    from trajgen.envs.eval_env import _is_like as alike

    box = gymnasium.spaces.Box(-1, 1, (2,))
    own, more = gymnasium.spaces.Dict({"a": box}), gymnasium.spaces.Dict({"a": box, "b": box})
    assert alike(own, more) and not alike(more, own) and not alike(own, box)


def test_minari_itself_reads_what_was_imported(tmp_path: Path) -> None:
    import minari as library

    from_path(formats.d4rl(tmp_path), ImportOptions(id=ID, goal="infos/goal", achieved=(0, 1)))
    found = library.load_dataset(ID)
    assert found.total_steps == 15
    assert found.observation_space.contains({k: v[0] for k, v in found[0].observations.items()})


def test_a_set_without_a_world_is_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    from_path(formats.npz_folder(tmp_path), ImportOptions(id=ID))
    (tmp_path / "points.yaml").write_text(f"data: {{id: {ID}, horizon: 2, stride: 1, chunk: 2}}")
    small = ["engine.budget=0.001", "device=cpu"]
    main(["train", "recipe=bc", "data=points.yaml", *small, "run_dir=here"])
    assert "not evaluated: data.env_id=ID" in capsys.readouterr().out.replace("\n", " ")
    assert (tmp_path / "here" / "checkpoints" / "final.safetensors").exists()
    with pytest.raises(SystemExit):
        main(["evaluate", "run=here"])
    assert "data.env_id=ID" in capsys.readouterr().err


def test_formats_are_told_apart(tmp_path: Path) -> None:
    assert detect(formats.d4rl(tmp_path)) == "d4rl"
    assert detect(formats.robomimic(tmp_path)) == "robomimic"
    assert detect(formats.npz_folder(tmp_path)) == detect(formats.ogbench(tmp_path)) == "npz"
    (tmp_path / "robot" / "meta").mkdir(parents=True)
    (tmp_path / "robot" / "meta" / "info.json").write_text("{}")
    assert detect(tmp_path / "robot") == "lerobot"


def test_the_command_says_what_was_imported_and_how_it_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = formats.d4rl(tmp_path)
    main(["data", "import", str(path), f"id={ID}", "goal=infos/goal", "achieved=[0,1]"])
    said = capsys.readouterr().out
    assert "3 episodes, 15 steps; the task ended 1" in said
    assert "achieved_key: achieved_goal" in said and "data.env_id=" in said
    main(["data", "import", "--help"])
    said = capsys.readouterr().out
    assert all(f"  {name}" in said for name in ("id", "env=null", "final=auto", "skip=[]", "lerobot"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([f"id={ID}"], "needs a source"),
        (["a.hdf5"], "needs id"),
        (["a.hdf5", f"id={ID}", "formt=npz"], "did you mean 'format'"),
        (["a.hdf5", f"id={ID}", "format=csv"], "'d4rl'"),
        (["a.hdf5", "id=nameless"], "namespace/name-v0"),
        (["a.hdf5", f"id={ID}"], "must be there"),
        (["a.hdf5", f"id={ID}", "episode_steps=0"], "at least 2"),
    ],
)
def test_wrong_words_are_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "import", *words])
    assert said in capsys.readouterr().err


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="rewards"):
        ImportOptions(id=ID, reward="r", rewards="zero")
