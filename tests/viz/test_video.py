"""``trajgen video``: the film shows the episode that was played, with the plans that were followed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image, ImageSequence
from torch import Tensor
from walks import Walk, walk_env

from trajgen.cli import main
from trajgen.core.errors import ConfigError, TrajgenError
from trajgen.policies.receding_horizon import RecedingHorizonPolicy
from trajgen.viz import film
from trajgen.viz.film import PlayedEpisode, TimedPlan, check_film, play, write_film

FreshRun = Callable[..., Path]
WALLS = [(0.0, 0.0, 4.0, 1.0), (0.0, 3.0, 4.0, 1.0), (0.0, 1.0, 1.0, 2.0), (3.0, 1.0, 1.0, 2.0)]


class Painted(Walk):
    """A walk whose pictures are as bright as its step."""

    render_mode = "rgb_array"

    def render(self) -> Any:
        return np.full((30, 41, 4), 10 * self.time, dtype=np.uint8)


class Halfway:
    """Subgoals halfway to the goal from the mean of the data's goals."""

    def __call__(self, state: Tensor, goal: Tensor) -> Tensor:
        return goal / 2

    def fit(self, positions: np.ndarray, starts: np.ndarray) -> None: ...


class Dark(Walk):
    """A walk without a display."""

    def render(self) -> Any:
        raise RuntimeError("an OpenGL platform library has not been loaded")


def test_an_episode_of_an_environment_that_renders_itself(walker: RecedingHorizonPolicy) -> None:
    trajectories = []
    walker.planner.action.register_forward_pre_hook(lambda _, inputs: trajectories.append(inputs[0].trajectory))
    episode = play(walker, walk_env(Painted), 4, interval=3)  # of 3 + 4 steps
    assert episode.states.shape == (8, 2) and episode.rewards.shape == (7,)
    np.testing.assert_array_equal(episode.states[:, 1], range(8))  # a walk's second state is its time
    np.testing.assert_allclose(np.diff(episode.states[:, 0]), episode.rewards, atol=1e-6)
    assert [frame[0, 0, 0] for frame in episode.frames] == [0, 30, 60, 70] and episode.frames[0].shape == (30, 41, 3)
    assert [plan.step for plan in episode.plans] == [0, 2, 4, 6]  # replan_interval=2
    assert episode.plan_at(0) is episode.plans[0] and episode.plan_at(3) is episode.plans[1]
    assert len(episode.plans[0].scales) == 3 and episode.plans[0].scales[-1].shape == (16, 2)
    view, norm = walker.planner.view, walker.normalizer
    for plan in episode.plans:  # its last scale is the trajectory of the codes that the policy acted on
        followed = norm.state.inverse(view.read(trajectories[plan.step], "state"))[0]
        np.testing.assert_allclose(plan.scales[-1], followed.numpy(), atol=1e-5)
    short = play(walker, walk_env(Painted), 4, steps=2, interval=3)
    assert len(short.rewards) == 2 and [frame[0, 0, 0] for frame in short.frames] == [0, 20]


def test_what_cannot_be_played_is_refused(walker: RecedingHorizonPolicy) -> None:
    eval_env = walk_env(Dark)
    with pytest.raises(ConfigError, match="OpenGL platform library") as error:
        play(walker, eval_env, 0)
    assert "MUJOCO_GL" in str(error.value.fix) and [env.time for env in eval_env.envs] == [0]  # not played
    with pytest.raises(TrajgenError, match="the simulation diverged") as failure:
        play(walker, walk_env(lambda: Painted(fails_at=3)), 3)
    assert "steps=1" in str(failure.value.fix)


def write(path: Path, episode: PlayedEpisode, **options: Any) -> list[np.ndarray]:
    """The frames of a film as it was written."""
    count = write_film(path, episode, rate=10, **options)
    with Image.open(path) as image:
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
        assert image.n_frames == count == len(frames) and image.info["duration"] == 100 and image.info["loop"] == 0
    return frames


def test_a_film_over_a_map_moves(tmp_path: Path) -> None:
    states = np.linspace(1.2, 2.8, 20, dtype=np.float32).reshape(10, 2)
    plans = [TimedPlan(step, [states[[0, -1]], states[step:]]) for step in (0, 4)]
    episode = PlayedEpisode(states, np.ones(9), np.full((10, 2), 2.5, np.float32), plans, [])
    frames = write(tmp_path / "new" / "film.gif", episode, interval=4, walls=WALLS)
    assert len(frames) == 4 and all((a != b).any() for a, b in pairwise(frames))
    bare = write(tmp_path / "bare.gif", dataclasses.replace(episode, plans=[], goals=None), interval=4, walls=WALLS)
    assert (bare[0] != frames[0]).any()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["film.gif"]


def test_a_goal_that_moves_is_shown_where_it_is(walker: RecedingHorizonPolicy, tmp_path: Path) -> None:
    class Moving(Painted):
        def step(self, action: np.ndarray) -> tuple:
            self.goal = self.time // 3  # 1 from the fourth step on
            return super().step(action)

    episode = play(walker, walk_env(Moving), 4, interval=3)  # of 7 steps
    assert episode.goals is not None
    np.testing.assert_array_equal(episode.goals[1:, 0], [0, 0, 0, 1, 1, 1, 2])
    states, goals = np.full((8, 2), 1.2, np.float32), np.full((8, 2), 2.5, np.float32)
    still = PlayedEpisode(states, np.zeros(7), goals, [], [])
    goals = goals.copy()
    goals[5:, 0] = 2.0
    moves = dataclasses.replace(still, goals=goals)
    films = [write(tmp_path / f"{n}.gif", each, interval=4, walls=WALLS) for n, each in enumerate((still, moves))]
    assert [(one != two).any() for one, two in zip(*films, strict=True)] == [False, False, True]


def test_the_last_frame_shows_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    set_title = Axes.set_title
    monkeypatch.setattr(Axes, "set_title", lambda ax, text, **how: (titles.append(text), set_title(ax, text, **how))[1])
    states = np.linspace(1.2, 2.8, 14, dtype=np.float32).reshape(7, 2)
    write(tmp_path / "film.gif", PlayedEpisode(states, np.arange(6.0), None, [], []), interval=4, walls=WALLS)
    assert [title.split() for title in titles] == [
        ["step", step, "return", value] for step, value in (("0", "0.0"), ("4", "6.0"), ("6", "15.0"))
    ]


def test_a_film_marks_subgoals(walker: RecedingHorizonPolicy, tmp_path: Path) -> None:
    walker.planner.subgoal = Halfway()
    walker.normalizer.goal.mean.fill_(3.0)
    walker.normalizer.goal.scale.fill_(4.0)
    episode = play(walker, walk_env(Painted), 4, interval=3)
    assert episode.goals is not None
    for plan in episode.plans:
        np.testing.assert_allclose(plan.subgoal, (episode.goals[0] + 3.0) / 2, rtol=1e-5)
    states = np.linspace(1.2, 2.8, 16, dtype=np.float32).reshape(8, 2)
    plans = [TimedPlan(0, [states], subgoal=np.array([2.8, 1.2], np.float32))]
    marked = PlayedEpisode(states, np.ones(7), None, plans, [])
    bare = dataclasses.replace(marked, plans=[dataclasses.replace(plans[0], subgoal=None)])
    with_mark = write(tmp_path / "marked.gif", marked, interval=4, walls=WALLS)
    without = write(tmp_path / "bare.gif", bare, interval=4, walls=WALLS)
    assert all((a != b).any() for a, b in zip(with_mark, without, strict=True))


def test_a_film_shows_which_scales_were_drawn_when(walker: RecedingHorizonPolicy, tmp_path: Path) -> None:
    options = dataclasses.replace(walker.options, replan_interval=4, revise=2, revise_interval=2)
    policy = RecedingHorizonPolicy(
        walker.planner, walker.normalizer, walker.space, options, discount=walker.discount, chunk=walker.replan_interval
    )
    episode = play(policy, walk_env(Painted), 4, interval=3)  # of 3 + 4 steps
    assert [(plan.step, plan.sampled) for plan in episode.plans] == [(0, (1, 3)), (2, (2, 3)), (4, (1, 3)), (6, (2, 3))]
    assert "revise" not in vars(policy.planner)
    states = np.linspace(1.2, 2.8, 16, dtype=np.float32).reshape(8, 2)
    revised = dataclasses.replace(episode, states=states, goals=None, frames=[])
    frames = write(tmp_path / "revised.gif", revised, interval=4, walls=WALLS)
    plans = [dataclasses.replace(plan, sampled=None) for plan in revised.plans]
    plain = write(tmp_path / "plain.gif", dataclasses.replace(revised, plans=plans), interval=4, walls=WALLS)
    assert frames[0].shape[0] > plain[0].shape[0]  # a strip below the map


def test_a_film_of_a_scene_holds_the_picture_and_the_plan(walker: RecedingHorizonPolicy, tmp_path: Path) -> None:
    episode = play(walker, walk_env(Painted), 4, interval=3)
    limits = np.full(2, -1.0), np.ones(2)
    frames = write(tmp_path / "film.gif", episode, interval=3, limits=limits)
    stateless = np.empty((0, 0), np.float32)  # where observations are images alone
    alone = write(tmp_path / "alone.gif", dataclasses.replace(episode, plans=[], states=stateless), interval=3)
    assert len(frames) == len(alone) == 4 and alone[0].shape[1] < frames[0].shape[1]  # no curves beside it
    assert all((a != b).any() for a, b in pairwise(frames))
    gray = [int(frame[frame.shape[0] // 2, frame.shape[1] // 2, 0]) for frame in alone]
    np.testing.assert_allclose(gray, [0, 30, 60, 70], atol=4)


@pytest.mark.skipif(find_spec("imageio_ffmpeg") is None, reason="the extra 'video' is not installed")
def test_an_mp4_holds_the_frames(walker: RecedingHorizonPolicy, tmp_path: Path) -> None:
    from imageio_ffmpeg import count_frames_and_secs

    assert write_film(tmp_path / "film.mp4", play(walker, walk_env(Painted), 4, interval=3), interval=3, rate=10) == 4
    assert count_frames_and_secs(str(tmp_path / "film.mp4"))[0] == 4


def test_a_film_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "film.gif").write_text("mine")
    monkeypatch.setattr(film, "find_spec", lambda _: None)
    for name, message in (("film.gif", "overwritten"), ("a.avi", "GIF or an MP4"), ("a.mp4", r"'trajgen\[video\]'")):
        with pytest.raises(ConfigError, match=message):
            check_film(tmp_path / name)
    check_film(tmp_path / "new.gif")


def test_the_command_films_a_maze(fresh_run: FreshRun, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fresh_run("mage")
    for number in (1, 2):
        main(["video", f"run={folder}", "device=cpu", "steps=6", "frame_interval=3", "seed=5"])
        with Image.open(folder / "videos" / f"episode_5-{number}.gif") as image:
            assert image.n_frames == 3
    assert "6 steps, 3 frames" in capsys.readouterr().out
    out = folder / "bc.gif"
    main(["video", f"run={fresh_run('bc')}", "device=cpu", "steps=2", f"out={out}"])
    assert "makes no plans of states" in capsys.readouterr().out and out.exists()


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="the extra 'onnx' is not installed")
def test_a_policy_of_another_backend_is_filmed(fresh_run: FreshRun) -> None:
    folder = fresh_run("mage", "policy.backend=onnx")
    films: list[bytes] = []
    for words in (["policy.backend=eager"], [], ["policy.backend=onnx", "policy.revise=2", "policy.revise_interval=2"]):
        out = folder / f"{len(films)}.gif"
        main(["video", f"run={folder}", "device=cpu", "steps=6", "seed=5", f"out={out}", *words])
        films.append(out.read_bytes())
    assert films[0] == films[1] != films[2]
