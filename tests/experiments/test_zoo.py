"""The zoo: its planners are small, have the score that their cards name, and act without a data set on the machine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trajgen
from trajgen.cli import main
from trajgen.config import RECIPES, zoo_files
from trajgen.core.errors import CheckpointError, ConfigError
from trajgen.core.files import PARTIAL, read_json, write_json
from trajgen.engine.storage import Position, compressed, read_tensors, write_tensors
from trajgen.envs.eval_env import make_eval_env
from trajgen.experiments.run_folder import load_config, recorded_env
from trajgen.experiments.zoo import WEIGHTS, local_folder, writable_folder

NAME = "mage-umaze"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and no data set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "none"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", zoo_files())
def test_a_planner_is_small_and_its_card_names_the_score_that_was_measured(name: str) -> None:
    card = zoo_files()[name]
    files = contents(card.parent)
    assert sum(map(len, files.values())) < 3e6
    evaluation, text = read_json(card.parent / "evaluation.json"), card.read_text("utf-8")
    assert evaluation["seeds"] == [0, 47] and not evaluation["errors"]
    mean, (low, high) = evaluation["return"]["mean"], evaluation["return"]["ci95"]
    assert f"| return, mean | {mean:.1f} | {low:.1f} to {high:.1f} |" in text
    assert np.mean(evaluation["episode_returns"]["policy"]) == pytest.approx(mean)
    config, _ = load_config(card.parent)
    assert config.run_dir is None and "run_dir" not in read_json(card.parent / "config.json")["command"]
    assert recorded_env(card.parent) is not None
    assert not any(re.search(rb'["= ]/\w', content) for path, content in files.items() if path.endswith(".json"))


def test_a_planner_acts_where_it_was_trained_without_its_data() -> None:
    policy = trajgen.load_policy(f"zoo/{NAME}", device="cpu")
    folder = local_folder(f"zoo/{NAME}")
    eval_env = make_eval_env(load_config(folder)[0].data, recorded_env(folder))
    env = eval_env.make_env()
    observation, _ = eval_env.reset(env, 0)
    policy.reset()
    rewards = 0.0
    for _ in range(150):
        observation, reward, *_ = env.step(policy.act(observation))
        policy.observe(reward, False)
        rewards += float(reward)
    env.close()
    assert rewards > 20  # random actions earn 8 in 300 steps


@pytest.mark.usefixtures("undrawn")
def test_commands_write_beside_it_and_leave_it_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(RECIPES / "zoo" / NAME)
    few = ["evaluation.episodes=1", "data.max_episode_steps=8", "evaluation.latency=false"]
    main(["evaluate", f"run=zoo/{NAME}", *few])
    main(["plot", f"run=zoo/{NAME}", "what=[learning]"])
    copy = Path("runs/zoo") / NAME
    assert list((copy / "evaluations").glob("*/summary.md")) and list((copy / "plots").glob("*.png"))
    assert contents(RECIPES / "zoo" / NAME) == before == {k: v for k, v in contents(copy).items() if k in before}
    main(["report", f"zoo/{NAME}", str(copy)])
    assert Path("report-1.html").is_file() and f"zoo/{NAME}" in capsys.readouterr().out
    main(["list", "zoo"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in zoo_files())


def test_names_of_runs() -> None:
    with pytest.raises(ConfigError, match="no 'mage-umase' in the zoo") as error:
        local_folder("zoo/mage-umase")
    assert NAME in str(error.value)
    first = writable_folder(f"zoo/{NAME}")
    assert writable_folder(f"zoo/{NAME}") == first == Path("runs/zoo") / NAME
    (first / WEIGHTS).write_bytes(b"of an older version")
    assert writable_folder(f"zoo/{NAME}") == Path("runs/zoo") / f"{NAME}-2"
    mine = Path("zoo") / NAME
    mine.mkdir(parents=True)
    assert local_folder(f"zoo/{NAME}") == mine  # a folder of one's own comes first


def test_a_copy_that_a_killed_process_began_is_made_anew() -> None:
    unfinished = Path("runs/zoo") / f"{PARTIAL}{NAME}"
    unfinished.mkdir(parents=True)
    (unfinished / "config.json").write_text("half of it")
    copy = writable_folder(f"zoo/{NAME}")
    assert contents(copy) == contents(RECIPES / "zoo" / NAME) and [*copy.parent.iterdir()] == [copy]


def test_processes_that_need_a_copy_at_once_share_one() -> None:
    code = f"from trajgen.experiments.zoo import writable_folder; print(writable_folder('zoo/{NAME}'))"
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=60)[0] for process in processes] == [f"runs/zoo/{NAME}\n"] * 3
    assert contents(Path("runs/zoo") / NAME) == contents(RECIPES / "zoo" / NAME)


def test_weights_in_8_bits_are_within_half_a_step(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    large = torch.randn(64, 8, 16, generator=generator) * torch.logspace(-3, 3, 64)[:, None, None]
    tensors = {"model.large": large, "model.zero": torch.zeros(64, 64), "model.bias": torch.randn(64)}
    write_tensors(tmp_path / "small.safetensors", compressed(tensors), Position())
    stored, _ = read_tensors(tmp_path / "small.safetensors", torch.device("cpu"))
    assert set(stored) == set(tensors) and all(value.dtype == torch.float32 for value in stored.values())
    torch.testing.assert_close(stored["model.bias"], tensors["model.bias"], rtol=0, atol=0)
    error = (stored["model.large"] - large).abs().flatten(1).amax(1) / large.abs().flatten(1).amax(1)
    assert 0 < error.max() <= 0.5 / 127 * 1.001 and not stored["model.zero"].any()
    assert (tmp_path / "small.safetensors").stat().st_size < 0.3 * 4 * large.numel() + 6000


def test_an_environment_that_a_run_folder_names_is_of_this_machine(tmp_path: Path) -> None:
    record: dict[str, Any] = {"id": "PointMaze_UMaze-v3", "options": {"continuing_task": True}, "bounds": [0.0, 1.0]}
    for change, error in (
        ({}, None),
        ({"id": "os_commands:Env-v0"}, "may only name modules"),
        ({"bounds": [1.0]}, "not as trajgen wrote it"),
        ({"entry_point": "os:system"}, "not as trajgen wrote it"),
        ({"options": {"size": 2**40}}, "not as trajgen wrote it"),
    ):
        write_json(tmp_path / "data.json", {"env": record | change})
        if error is None:
            assert recorded_env(tmp_path).bounds == [0.0, 1.0]
        else:
            with pytest.raises(CheckpointError, match=error):
                recorded_env(tmp_path)


def test_a_policy_of_a_training_that_was_stopped_says_so(tmp_path: Path) -> None:
    shutil.copytree(zoo_files()["mage-umaze"].parent, tmp_path / "run")
    checkpoints = tmp_path / "run/checkpoints"
    (checkpoints / "final.safetensors").rename(checkpoints / "stage2-step0000100.safetensors")
    with pytest.warns(UserWarning, match=r"not trained to its end, and acts with stage2-step0000100\.safetensors"):
        trajgen.load_policy(tmp_path / "run")
