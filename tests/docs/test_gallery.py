"""The gallery's script: it draws a toy run, chooses by the distance to the goal alone, and refuses other runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gallery
import numpy as np
import pytest

from trajgen.core.errors import ConfigError
from trajgen.experiments.loading import open_run


def test_a_picture_for_the_maze_of_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gallery.main([str(run), f"out={tmp_path}"])
    (path,) = tmp_path.iterdir()
    assert path.name == "gallery_umaze.png" and path.stat().st_size > 4000
    assert capsys.readouterr().out.strip() == str(path)
    assert gallery.IMAGES.is_dir() and gallery.IMAGES.parent.name == "docs"


def test_the_episode_is_the_one_with_the_farthest_goal(run: Path) -> None:
    eval_env = open_run(run).eval_env
    seed, _ = gallery.farthest(eval_env)
    env = eval_env.make_env()
    starts = [env.reset(seed=seed)[0] for seed in range(gallery.EPISODES)]
    env.close()
    assert seed == np.argmax([np.linalg.norm(each["desired_goal"] - each["observation"][:2]) for each in starts])


def test_another_environment_is_refused(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    config["data"]["env_id"] = "Pendulum-v1"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="mazes"):
        gallery.draw(copy, tmp_path)
