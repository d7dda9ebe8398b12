"""Data of other formats: what is imported is what the source holds, in whatever format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import formats
import numpy as np
import pytest
import tiny
import torch

from trajgen.cli import main
from trajgen.config import compose
from trajgen.core.errors import ConfigError, DataError
from trajgen.data import minari, store
from trajgen.data.episodes import Episodes
from trajgen.data.options import DataOptions
from trajgen.experiments.preparation import ready
from trajgen.importing import ImportOptions, detect, from_arrays, from_path

ID = "mine/points-v0"


def load(goals: str = "none") -> Episodes:
    keys: dict[str, Any] = {"state_key": "observation", "goal_key": "desired_goal", "achieved_key": "achieved_goal"}
    return minari.load(ID, DataOptions(id=ID, goals=goals, **(keys if goals != "none" else {})))


def imported(path: Path, **options: Any) -> Episodes:
    """The episodes of an import without images, which have tests of their own."""
    from_path(path, ImportOptions(id=ID, **({"images": ()} | options)))
    return load()


def states(episodes: Episodes, number: int) -> np.ndarray:
    return episodes.states[episodes.starts[number] : episodes.ends[number] + 1]


def check_whole(episodes: Episodes, *, rewards: bool = True, terminated: Any = formats.TERMINATED) -> None:
    """All steps and all final observations are there."""
    assert episodes.lengths.tolist() == [*formats.LENGTHS] and episodes.terminated.tolist() == [*terminated]
    for number, episode in enumerate(formats.episodes()):
        first, last = episodes.starts[number], episodes.ends[number]
        assert np.array_equal(states(episodes, number), episode["observations"])
        assert np.array_equal(episodes.actions[first:last], episode["actions"])
        assert np.array_equal(episodes.rewards[first:last], episode["rewards"] if rewards else np.zeros(last - first))


def check_auto(episodes: Episodes) -> None:
    """No final observations in the source: after a timeout a step less, after a terminal the observation again."""
    assert episodes.lengths.tolist() == [4, 4, 5] and episodes.terminated.tolist() == [*formats.TERMINATED]
    for number, episode in enumerate(formats.episodes()):
        recorded, steps, first = episode["observations"][:-1], episodes.lengths[number], episodes.starts[number]
        assert np.array_equal(states(episodes, number), np.concatenate([recorded, recorded[-1:]])[: steps + 1])
        assert np.array_equal(episodes.rewards[first : first + steps], episode["rewards"][:steps])
        assert np.array_equal(episodes.actions[first : first + steps], episode["actions"][:steps])


def lerobot(folder: Path, version: int = 2) -> Path:
    pytest.importorskip("pyarrow", reason="parquet is read by pyarrow: pip install 'trajgen[lerobot]'")
    return formats.lerobot(folder, version)


@pytest.mark.parametrize("write", [formats.d4rl, formats.robomimic, formats.npz_folder])
def test_a_source_with_final_observations_is_whole(write: Any, tmp_path: Path) -> None:
    check_whole(imported(write(tmp_path)))


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: formats.d4rl(folder, final=False),
        lambda folder: formats.robomimic(folder, final=False),
        lerobot,
        lambda folder: lerobot(folder, 3),
    ],
    ids=["d4rl", "robomimic", "lerobot2", "lerobot3"],
)
def test_a_source_without_final_observations(write: Any, tmp_path: Path) -> None:
    check_auto(imported(write(tmp_path)))


def test_the_last_step_is_dropped_or_its_observation_repeated(tmp_path: Path) -> None:
    path = formats.d4rl(tmp_path, final=False)
    dropped = imported(path, final="drop")
    assert dropped.lengths.tolist() == [4, 3, 5]
    assert not dropped.terminated.any()  # the step that ended the task is gone
    repeated = imported(path, final="repeat", force=True)
    assert repeated.lengths.tolist() == [5, 4, 6] and repeated.terminated.tolist() == [False, True, False]
    assert (states(repeated, 0)[-1] == states(repeated, 0)[-2]).all()


def test_goals_are_measured_against_a_part_of_the_state_and_minari_reads_them(tmp_path: Path) -> None:
    import minari as library

    from_path(formats.d4rl(tmp_path), ImportOptions(id=ID, goal="infos/goal", achieved=(0, 1)))
    loaded = load("hindsight")
    assert loaded.goals is not None and loaded.achieved is not None
    assert np.array_equal(loaded.achieved, loaded.states[:, :2])
    for number, episode in enumerate(formats.episodes()):
        assert np.array_equal(loaded.goals[loaded.starts[number] : loaded.ends[number] + 1], episode["goals"])
    dataset = library.load_dataset(ID)
    assert dataset.total_steps == 15
    assert dataset.observation_space.contains({k: v[0] for k, v in dataset[0].observations.items()})


def test_without_goals_the_goal_is_where_an_episode_ended(tmp_path: Path) -> None:
    result = from_path(formats.ogbench(tmp_path), ImportOptions(id=ID, rewards="zero", achieved=(0, 1)))
    assert "goals: hindsight" in result.preset and "relabel_ratio: 1.0" in result.preset
    loaded = load("hindsight")
    assert loaded.goals is not None
    for first, last in zip(loaded.starts, loaded.ends, strict=True):
        assert (loaded.goals[first : last + 1] == loaded.states[last, :2]).all()


def test_robomimic_takes_the_entries_that_are_named_in_their_order(tmp_path: Path) -> None:
    loaded = imported(formats.robomimic(tmp_path), state=("object", "a_place"))
    assert np.array_equal(states(loaded, 0), formats.episodes()[0]["observations"][:, [2, 0, 1]])


@pytest.mark.parametrize("form", ["downloaded", "compact"])
def test_ogbench_marks_final_observations_and_ends_by_timeouts(form: str, tmp_path: Path) -> None:
    path = formats.ogbench(tmp_path, form)
    with pytest.raises(DataError, match="rewards=zero"):
        imported(path)
    check_whole(imported(path, rewards="zero"), rewards=False, terminated=[False] * 3)


def test_ogbench_with_next_observations(tmp_path: Path) -> None:
    check_whole(imported(formats.ogbench(tmp_path, "transitions"), ends="timeout"), terminated=[False] * 3)


def test_arrays_from_python() -> None:
    episodes = [{**e, "terminals": e["terminated"] & (np.arange(len(e["actions"])) == len(e["actions"]) - 1)}
                for e in formats.episodes()]  # fmt: skip
    for episode in episodes:
        del episode["terminated"]
    result = from_arrays(ID, iter(episodes))
    assert (result.episodes, result.steps, result.terminated) == (3, 15, 1)
    check_whole(load())
    for episode in episodes:  # next observations in place of one more, and columns of one number
        rows = episode["observations"]
        episode |= {"observations": rows[:-1], "next_observations": rows[1:], "rewards": episode["rewards"][:, None]}
    from_arrays(ID, episodes, force=True)
    check_whole(load())


def test_rewards_of_demonstrations_come_last_and_episodes_can_be_left_out(tmp_path: Path) -> None:
    path = formats.npz_folder(tmp_path, rewards=None)
    loaded = imported(path, rewards="last", ends="terminal")
    assert loaded.rewards.tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    assert loaded.terminated.all()
    assert imported(path, rewards="last", skip=(0, 2), force=True).lengths.tolist() == [4]


def test_the_environment_must_fit_and_gives_the_bounds_of_the_actions(tmp_path: Path) -> None:
    path = formats.d4rl(tmp_path)
    assert imported(path).space.action_low == (-1.0, -1.0)
    actions = formats.table(final=True)["actions"] * np.array([4.0, 1.0])
    space = imported(formats.d4rl(tmp_path, actions=actions), force=True).space
    assert space.action_low == pytest.approx(actions.min(0)) and space.action_high == pytest.approx(actions.max(0))
    with pytest.raises(DataError, match="a Box of 2 real numbers"):
        imported(path, env="Pendulum-v1", force=True)  # three observations, but one action
    with pytest.raises(DataError, match="known to Gymnasium"):
        imported(path, env="Pendulun-v1", force=True)
    one = formats.table(final=True)["actions"][:, :1]
    with pytest.raises(DataError, match="outside of the environment's box"):
        imported(formats.d4rl(tmp_path, actions=3 * one), env="Pendulum-v1", force=True)
    space = imported(formats.d4rl(tmp_path, actions=one), env="Pendulum-v1", force=True).space
    assert space.action_low == (-2.0,) and minari.describe(ID)["eval_env"] == "Pendulum-v1"


@pytest.mark.usefixtures("undrawn")
def test_a_set_without_an_environment_is_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    from_path(formats.npz_folder(tmp_path), ImportOptions(id=ID))
    (tmp_path / "points.yaml").write_text(f"data: {{id: {ID}, horizon: 2, stride: 1, chunk: 2}}")
    main(["train", "recipe=bc", "data=points.yaml", "engine.budget=0.001", "device=cpu", "run_dir=here"])
    assert "there will be no score: data.env_id=ID" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "here" / "checkpoints" / "final.safetensors").exists()
    assert "action_error" in json.loads((tmp_path / "here" / "evaluation.json").read_text())


def test_formats_are_recognized(tmp_path: Path) -> None:
    assert detect(formats.d4rl(tmp_path)) == "d4rl"
    assert detect(formats.robomimic(tmp_path)) == "robomimic"
    assert detect(formats.npz_folder(tmp_path)) == detect(formats.ogbench(tmp_path)) == "npz"
    (tmp_path / "robot" / "meta").mkdir(parents=True)
    (tmp_path / "robot" / "meta" / "info.json").write_text("{}")
    assert detect(tmp_path / "robot") == "lerobot"


def test_the_command_shows_what_was_imported_and_a_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = formats.d4rl(tmp_path)
    main(["data", "import", str(path), f"id={ID}", "goal=infos/goal", "achieved=[0,1]"])
    shown = capsys.readouterr().out
    assert "3 episodes, 15 steps" in shown and "achieved_key: achieved_goal" in shown and "data.env_id=" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([f"id={ID}", "formt=npz"], "did you mean 'format'"),
        ([f"id={ID}", "format=csv"], "'d4rl'"),
        (["id=nameless"], "namespace/name-v0"),
        ([f"id={ID}"], "must be there"),
        ([f"id={ID}", "episode_steps=0"], "at least 2"),
        ([f"id={ID}", "reward=r", "rewards=zero"], "contradicts"),
    ],
)
def test_wrong_words_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "import", "a.hdf5", *words])
    assert message in capsys.readouterr().err


def test_a_wrong_id_or_option_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    for id in ("../name-v0", "t/x-v0", "name"):  # Minari's list breaks on a namespace of one letter
        with pytest.raises(DataError, match="namespace/name-v0"):
            from_path(tmp_path / "absent", ImportOptions(id=id))
        with pytest.raises(DataError, match="namespace/name-v0"):
            from_arrays(id, [])
    with pytest.raises(ConfigError, match="did you mean 'rewards'"):
        from_arrays(ID, [], reward_s="zero")


def test_a_set_is_replaced_only_when_asked_and_only_by_a_whole_one(tmp_path: Path) -> None:
    path = formats.npz_folder(tmp_path)
    check_whole(imported(path))
    for again in (lambda: from_path(path, ImportOptions(id=ID)), lambda: from_arrays(ID, formats.episodes())):
        with pytest.raises(DataError, match="force=true"):
            again()
    np.savez(path / "001.npz", observations=np.zeros((2, 9)), actions=np.zeros((1, 2)), rewards=np.zeros(1))
    with pytest.raises(DataError, match="episode 1"):
        from_path(path, ImportOptions(id=ID, force=True))
    check_whole(load())
    assert imported(path, force=True, skip=(1,)).lengths.tolist() == [5, 6]
    assert [loaded.problem for loaded in store.local_sets()] == [None]


# --- where episodes end ----------------------------------------------------------------------------------------------

TERMINAL, TIMEOUT, ANY = (formats.ends(name) for name in ("terminal", "timeout", "any"))


@pytest.mark.parametrize(
    ("marks", "options", "terminated"),
    [
        ({"timeouts": TIMEOUT & (np.arange(15) < 9)}, {}, formats.TERMINATED),  # the last episode goes on
        ({"terminals": None, "terminated": TERMINAL}, {}, formats.TERMINATED),
        ({"timeouts": None, "truncated": TIMEOUT}, {}, formats.TERMINATED),
        ({"timeouts": None, "episode_terminals": ANY}, {}, formats.TERMINATED),
        ({"timeouts": None, "episode_ends": np.cumsum(formats.LENGTHS)}, {}, formats.TERMINATED),
        ({"timeouts": None, "episode_index": np.repeat(range(3), formats.LENGTHS)}, {}, formats.TERMINATED),
        ({"terminals": None, "dones": ANY}, {}, formats.TERMINATED),  # what is no timeout ended the task
        ({"terminals": None, "timeouts": None, "dones": ANY}, {"ends": "terminal"}, (True,) * 3),
        ({"terminals": None, "timeouts": None, "ends": ANY}, {"ends": "timeout"}, (False,) * 3),
        ({"terminals": TERMINAL | (np.arange(15) >= 12)}, {"cut": "timeouts"}, (False, False)),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("final", [True, False])
def test_marks_of_any_name_end_episodes(marks: Any, options: Any, terminated: Any, final: bool, tmp_path: Path) -> None:
    loaded = imported(formats.d4rl(tmp_path, final=final, **marks), final="repeat", **options)
    if options.get("cut") == "timeouts":
        assert loaded.lengths.tolist() == [5, 10]  # the terminals, of one row and of a cluster, do not cut
    else:
        assert loaded.lengths.tolist() == [*formats.LENGTHS] and loaded.terminated.tolist() == [*terminated]


def test_next_observations_show_timeouts_that_were_lost(tmp_path: Path) -> None:
    check_whole(imported(formats.d4rl(tmp_path, timeouts=None)))
    check_whole(imported(formats.d4rl(tmp_path, timeouts=None, terminals=None), force=True), terminated=(False,) * 3)
    loaded = imported(formats.d4rl(tmp_path, timeouts=None), force=True, cut="marks")
    assert loaded.lengths.tolist() == [9, 6]


def test_next_observations_show_more_than_one_episode() -> None:
    rows = np.arange(10.0)[:, None] + 9 * (np.arange(10)[:, None] > 4)
    after = rows[1:].copy()
    episode = {"observations": rows[:-1], "actions": np.sin(rows[:-1]), "rewards": np.zeros(9)}
    from_arrays(ID, [{**episode, "next_observations": after}])
    after[4] = 5
    with pytest.raises(DataError, match="episode 0, row 4"):
        from_arrays(ID, [{**episode, "next_observations": after}], force=True)


def test_a_table_without_ends_is_cut_by_a_number_of_rows(tmp_path: Path) -> None:
    path = formats.d4rl(tmp_path, final=False, timeouts=None, terminals=np.zeros(15))
    with pytest.warns(UserWarning, match="read as one episode; episode_steps=1000 cuts"):
        assert imported(path).lengths.tolist() == [14]
    path = formats.d4rl(tmp_path, final=False, timeouts=None, terminals=None)
    with pytest.raises(DataError, match="episode_steps"):
        imported(path, force=True)
    assert imported(path, episode_steps=5, final="repeat", force=True).lengths.tolist() == [5, 5, 5]
    assert imported(path, cut="marks", force=True).lengths.tolist() == [14]
    terminal = formats.d4rl(tmp_path, final=False, timeouts=None)  # nine rows up to the terminal, and six after it
    assert imported(terminal, episode_steps=5, final="repeat", force=True).lengths.tolist() == [5, 4, 5, 1]


def test_timeouts_in_two_rows_are_an_episode_of_one_step(tmp_path: Path) -> None:
    ends = np.isin(np.arange(15), (7, 8, 14))
    path = formats.d4rl(tmp_path, final=False, terminals=np.zeros(15), timeouts=ends)
    with pytest.raises(DataError, match=r"skip=\[1\]"):
        imported(path)
    assert imported(path, skip=(1,)).lengths.tolist() == [7, 5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terminals": TERMINAL | (np.arange(15) == 6)}, "row 6: the next row is its next observation"),
        ({"final": False, "terminals": TERMINAL | (np.arange(15) == 7)}, "row 7: the next row is marked too"),
        ({"terminals": None, "timeouts": None, "dones": ANY}, "not why"),
        ({"observations": formats.table(final=True)["observations"][::-1]}, "row 0: the next row is not its"),
        ({"timeouts": np.cumsum(formats.LENGTHS)}, "field 'timeouts'"),
        ({"terminals": np.array([0, 0, 0, 2] + [0] * 11)}, "'terminals', row 3"),
    ],
)
def test_marks_that_the_table_contradicts_are_named(changes: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        imported(formats.d4rl(tmp_path, **changes))


def test_one_episode_with_a_mark_without_a_reason_needs_one() -> None:
    episode = {"observations": np.zeros((3, 2)), "actions": np.full((2, 1), 0.5), "rewards": np.zeros(2)}
    marked = {**episode, "dones": np.array([0, 1])}
    with pytest.raises(DataError, match="not why"):
        from_arrays(ID, [marked])
    assert from_arrays(ID, [marked], ends="timeout").terminated == 0
    assert from_arrays(ID, [{**marked, "truncated": np.array([0, 0])}], force=True).terminated == 1


# --- numbers that are no actions, or are lost ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool, np.float32])
def test_whole_numbers_are_discrete_actions_unless_said_otherwise(dtype: Any) -> None:
    actions = (np.arange(8) % 4).astype(dtype)
    episode = {"observations": np.zeros((9, 2)), "actions": actions, "rewards": np.zeros(8)}
    with pytest.raises(DataError, match="actions=continuous"):
        from_arrays(ID, [episode])
    assert from_arrays(ID, [episode], actions="continuous").steps == 8


# --- what else a source holds ----------------------------------------------------------------------------------------


def test_images_and_texts_beside_the_numbers_are_left_out(tmp_path: Path) -> None:
    path = formats.robomimic(tmp_path)
    with __import__("h5py").File(path, "r+") as file:  # far larger in memory than the file
        file["data/demo_0/obs"].create_dataset(
            "video", shape=(5, 4096, 4096, 3), dtype="u1", chunks=(1, 4096, 4096, 3), compression="gzip"
        )
    check_whole(imported(path))
    assert from_path(path, ImportOptions(id=ID, force=True)).about == "state: a_place, object; images: camera"
    path = formats.ogbench(tmp_path)
    with np.load(path) as file:
        np.savez(path, **file, task=np.array("navigate"), note=np.array([{}], object))
    result = from_path(path, ImportOptions(id=ID, rewards="zero", force=True))
    assert "task, note" in result.about and result.steps == 15


@pytest.mark.parametrize(
    ("steps", "lines"),
    [
        (300, []),
        (100, ["stride: 3"]),
        (26, ["horizon: 16", "stride: 1"]),
        (12, ["horizon: 8", "stride: 1"]),
        (6, ["horizon: 4", "stride: 2"]),
        (2, ["horizon: 2", "stride: 2"]),
        (1, ["horizon: 2", "stride: 1"]),
    ],
)
@pytest.mark.parametrize("achieved", [None, (0, 1)])
def test_the_preset_that_is_printed_trains_as_it_is(
    steps: int, lines: list[str], achieved: tuple[int, int] | None, tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    episode = {"observations": draw.normal(size=(steps + 1, 2)), "actions": draw.normal(size=(steps, 1))}
    result = from_arrays(ID, [{**episode, "rewards": np.ones(steps)}], achieved=achieved)
    assert [line.strip() for line in result.preset.splitlines()][1 : 2 + len(lines)] == [f"id: {ID}", *lines]
    path = tmp_path / "own.yaml"
    path.write_text(result.preset)
    small = [word for word in tiny.TRAIN if word.startswith(("tokenizer.", "prior.", "decoder.", "action.", "cond"))]
    config = compose([f"data={path}", *small])
    planner, windows = ready(config, minari.load(ID, config.data), torch.device("cpu"))
    batch = windows.batch(0, 2)
    assert all(torch.isfinite(stage.loss(batch)["total"]) for stage in planner.stages())
