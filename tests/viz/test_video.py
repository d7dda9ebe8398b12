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
from PIL import Image
from walks import Walk, walk_env

from trajgen.cli import main
from trajgen.cli.video import VIDEO_HELP, VideoRequest
from trajgen.core.errors import ConfigError, TrajgenError
from trajgen.policies.receding_horizon import RecedingHorizonPolicy
from trajgen.viz import film
from trajgen.viz.episode import MadePlan, Played, play
from trajgen.viz.film import check_film, write_film
from trajgen.viz.run import DataRange
from trajgen.viz.scenes import map_frames, scene_frames, steps_shown

WALLS = [(0.0, 0.0, 4.0, 1.0), (0.0, 3.0, 4.0, 1.0), (0.0, 1.0, 1.0, 2.0), (3.0, 1.0, 1.0, 2.0)]


class Painted(Walk):
    """A walk whose pictures are as bright as its step."""

    render_mode = "rgb_array"

    def render(self) -> Any:
        return np.full((30, 41, 4), 10 * self.time, dtype=np.uint8)


class Dark(Walk):
    """A walk without a display."""

    def render(self) -> Any:
        raise RuntimeError("an OpenGL platform library has not been loaded")


def made_up(steps: int = 9) -> Played:
    """An episode in a maze, with a plan of two scales at steps 0 and 4."""
    states = np.linspace(1.2, 2.8, 2 * (steps + 1), dtype=np.float32).reshape(steps + 1, 2)
    plans = [MadePlan(step, [states[[0, -1]], states[step:]]) for step in (0, 4)]
    return Played(0, states, np.ones(steps), np.array([2.5, 2.5], np.float32), plans, [])


def test_an_episode_of_a_world_that_renders_itself(walker: RecedingHorizonPolicy) -> None:
    played = play(walker, walk_env(Painted), 4, every=3)  # of 3 + 4 steps
    assert played.states.shape == (8, 2) and played.rewards.shape == (7,)
    np.testing.assert_array_equal(played.states[:, 1], range(8))  # a walk's second state is its time
    np.testing.assert_allclose(np.diff(played.states[:, 0]), played.rewards, atol=1e-6)
    assert [frame[0, 0, 0] for frame in played.frames] == [0, 30, 60] and played.frames[0].shape == (30, 41, 3)
    assert [plan.step for plan in played.plans] == [0, 2, 4, 6]  # replan_interval=2
    assert played.plan_at(0) is played.plans[0] and played.plan_at(3) is played.plans[1]
    assert len(played.plans[0].scales) == 3 and played.plans[0].scales[-1].shape == (16, 2)


def test_the_beginning_alone(walker: RecedingHorizonPolicy) -> None:
    played = play(walker, walk_env(Painted), 4, steps=2, every=1)
    assert len(played.rewards) == 2 and len(played.frames) == 3


def test_plans_are_the_ones_that_were_followed(walker: RecedingHorizonPolicy) -> None:
    """The last scale of a film's plan is the trajectory of the codes that the policy acted on."""
    followed = []
    walker.planner.action.register_forward_pre_hook(lambda _, inputs: followed.append(inputs[0].trajectory))
    played = play(walker, walk_env(Painted), 1, every=1)
    view, norm = walker.planner.view, walker.normalizer
    for plan in played.plans:
        trajectory = norm.state.inverse(view.read(followed[plan.step], "state"))[0]
        np.testing.assert_allclose(plan.scales[-1], trajectory.numpy(), atol=1e-5)


def test_a_world_that_cannot_be_drawn_is_said_before_it_is_played(walker: RecedingHorizonPolicy) -> None:
    eval_env = walk_env(Dark)
    with pytest.raises(ConfigError, match="OpenGL platform library") as caught:
        play(walker, eval_env, 0)
    assert "MUJOCO_GL" in str(caught.value.fix) and caught.value.expected
    assert [environment.time for environment in eval_env.made] == [0]


def test_a_failing_episode_is_said(walker: RecedingHorizonPolicy) -> None:
    with pytest.raises(TrajgenError, match="the simulation diverged") as caught:
        play(walker, walk_env(lambda: Painted(fails_at=3)), 3)
    assert "steps=1" in str(caught.value.fix)


def test_frames_over_a_map_move(tmp_path: Path) -> None:
    frames = list(map_frames(made_up(), WALLS, every=4))
    assert len(frames) == 3 and len({frame.shape for frame in frames}) == 1
    assert all(side % 2 == 0 for side in frames[0].shape[:2])
    assert all((a != b).any() for a, b in pairwise(frames))
    bare = dataclasses.replace(made_up(), plans=[], goal=None)
    assert (next(map_frames(bare, WALLS, 4)) != frames[0]).any()


def test_frames_of_a_scene_hold_the_picture_and_the_plan(walker: RecedingHorizonPolicy) -> None:
    played = play(walker, walk_env(Painted), 4, every=3)
    data = DataRange(np.full(2, -1, np.float32), np.ones(2, np.float32), np.zeros(1, np.float32))
    frames = list(scene_frames(played, 3, 3, data))
    assert len(frames) == len(steps_shown(played, 3)) == 3
    alone = list(scene_frames(dataclasses.replace(played, plans=[]), 3, 3))
    assert alone[0].shape[1] < frames[0].shape[1]  # no curves beside it
    grey = [int(frame[frame.shape[0] // 2, frame.shape[1] // 2, 0]) for frame in alone]
    assert grey == [0, 30, 60]


def test_a_gif_holds_the_frames(tmp_path: Path) -> None:
    frames = [np.full((20, 30, 3), value, dtype=np.uint8) for value in (0, 120, 240)]
    assert write_film(tmp_path / "new" / "film.gif", iter(frames), 10) == 3
    with Image.open(tmp_path / "new" / "film.gif") as image:
        assert (image.n_frames, image.size, image.info["duration"], image.info["loop"]) == (3, (30, 20), 100, 0)
        for number, frame in enumerate(frames):
            image.seek(number)
            assert abs(int(np.asarray(image.convert("RGB"))[0, 0, 0]) - int(frame[0, 0, 0])) < 4
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["film.gif"]


@pytest.mark.skipif(find_spec("imageio_ffmpeg") is None, reason="the extra 'video' is not installed")
def test_an_mp4_holds_the_frames(tmp_path: Path) -> None:
    from imageio_ffmpeg import count_frames_and_secs

    frames = [np.full((64, 80, 3), value, dtype=np.uint8) for value in (0, 60, 120, 240)]
    assert write_film(tmp_path / "film.mp4", frames, 10) == 4
    assert count_frames_and_secs(str(tmp_path / "film.mp4"))[0] == 4


def test_an_mp4_without_its_encoder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(film, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'trajgen\[video\]'") as caught:
        check_film(tmp_path / "film.mp4")
    assert caught.value.expected and caught.value.got
    check_film(tmp_path / "film.gif")


def test_no_film_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "film.gif").write_text("mine")
    for path in (tmp_path / "film.gif", tmp_path / "film.avi"):
        with pytest.raises(ConfigError) as caught:
            check_film(path)
        assert caught.value.expected and caught.value.got and caught.value.fix


def test_the_command_films_a_maze(fresh_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = fresh_run("mage")
    for number in (1, 2):
        main(["video", f"run={folder}", "device=cpu", "steps=6", "every=3", "seed=5"])
        with Image.open(folder / "videos" / f"episode_5-{number}.gif") as image:
            assert image.n_frames == 3
    assert "6 steps, 3 frames" in capsys.readouterr().out


def test_a_run_that_plans_no_states_is_filmed_without_plans(
    fresh_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["video", f"run={fresh_run('bc')}", "device=cpu", "steps=2", f"out={tmp_path / 'bc.gif'}"])
    assert "makes no plans of states" in capsys.readouterr().out and (tmp_path / "bc.gif").exists()


@pytest.mark.parametrize("words", [["every=0"], ["rate=0"], ["steps=0"], ["seed=-1"], ["evry=3"], ["out=film.avi"]])
def test_mistakes_are_said(
    words: list[str], fresh_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fresh_run("mage")
    with pytest.raises(SystemExit):
        main(["video", f"run={folder}", *words])
    error = capsys.readouterr().err
    assert "got:" in error and "fix:" in error and not (folder / "videos").exists()


def test_the_help_names_every_option() -> None:
    assert all(f"  {option.name}=" in VIDEO_HELP for option in dataclasses.fields(VideoRequest))
