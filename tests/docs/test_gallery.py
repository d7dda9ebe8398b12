"""The gallery's script: it draws a toy run in a maze, chooses by the way to the goal alone, and refuses what it cannot
show."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gallery
import numpy as np
import pytest

from trajgen.core.errors import ConfigError
from trajgen.envs.eval_env import make_eval_env
from trajgen.experiments.run_folder import load_config


def test_a_picture_for_the_maze_of_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gallery.main([str(run), f"out={tmp_path}"])
    (path,) = tmp_path.iterdir()
    assert path.name == "gallery_umaze.png" and path.stat().st_size > 4000
    assert capsys.readouterr().out.strip() == str(path)


def test_the_episode_is_the_one_with_the_farthest_goal(run: Path) -> None:
    eval_env = make_eval_env(load_config(run)[0].data)
    seed, seen = gallery.farthest(eval_env)
    environment = eval_env.make_env()
    ways = []
    for each in range(gallery.EPISODES):
        observation = environment.reset(seed=each)[0]
        ways.append(np.linalg.norm(observation["desired_goal"] - observation["observation"][:2]))
    environment.close()
    assert seed == int(np.argmax(ways))
    np.testing.assert_allclose(np.linalg.norm(seen["desired_goal"] - seen["achieved_goal"]), max(ways))


def test_another_world_is_refused(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    config["data"]["env_id"] = "Pendulum-v1"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="mazes"):
        gallery.draw(copy, tmp_path)


def test_the_pictures_go_where_the_pages_look() -> None:
    assert gallery.IMAGES.is_dir() and gallery.IMAGES.parent.name == "docs"
