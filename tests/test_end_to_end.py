"""From nothing to a policy through the command line: a tiny run, its folder, and what can be done with it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from tiny import STAGES, TRAIN

import trajgen
from trajgen.cli import main
from trajgen.experiments.run_folder import evaluation_folder


def test_the_run_folder_holds_all_there_is_to_know(run: Path) -> None:
    assert run.name == "mage-umaze-dwell-s0"
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert {"config.json", "metrics.jsonl", "versions.json", "evaluation.json", "summary.md"} <= files
    assert "checkpoints/final.safetensors" in files
    assert not any("stage" in name for name in files if name.startswith("checkpoints/"))
    assert sum(name.startswith("plots/") and name.endswith(".png") for name in files) >= 3
    assert not any(name.rpartition("/")[2].startswith(".") for name in files)  # nothing half-written
    assert not tiny.LEFT_BY_TRAINING - {"runs"}  # and nothing beside it


def test_the_configuration_is_plain_and_whole(run: Path) -> None:
    plain = json.loads((run / "config.json").read_text())
    assert plain["recipe"] == "mage" and plain["prior"]["width"] == 16 and plain["seed"] == 0
    assert plain["space"]["state_dim"] == 4 and plain["space"]["goal_dim"] == 2
    assert "_target_" not in (run / "config.json").read_text()
    versions = json.loads((run / "versions.json").read_text())
    assert versions["trajgen"] == trajgen.__version__ and {"python", "torch", "minari"} <= set(versions)


def test_metrics_of_all_stages(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(v["stage"], v["step"]) for v in lines] == [(stage, step) for stage in STAGES for step in (5, 10, 12)]
    assert all(np.isfinite(v["total"]) for v in lines)
    last = {v["stage"]: v for v in lines}
    assert "usage/all" in lines[0] and {"prior", "inverse", "condition"} <= {*last["prior"]}
    assert "inverse" in last["action"]


def test_the_evaluation_says_what_was_asked_of_it(run: Path) -> None:
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["episodes"] == 2 and evaluation["seeds"] == [0, 1]
    low, high = evaluation["return"]["ci95"]
    assert low <= evaluation["return"]["mean"] <= high
    assert len(evaluation["normalized"]["bounds"]) == 2 and "mean" in evaluation["normalized"]
    assert evaluation["controller"]["mean"] >= 0 and "ratio_to_controller" in evaluation
    assert 0 <= evaluation["success"] <= 1
    kinds = {"", "_units", "_other_latent", "_zero_latent"}
    assert set(evaluation["condition_error"]) == {name + kind for name in ("state", "return") for kind in kinds}
    assert all(v > 0 for v in evaluation["condition_error"].values())
    assert {"batch_1", "batch_64"} <= set(evaluation["decision_ms"])


def test_the_summary_is_one_page_with_the_score(run: Path) -> None:
    text = (run / "summary.md").read_text()
    assert len(text.splitlines()) < 90
    for word in ("mage", "return, mean", "tokenizer", "prior", "condition error", "plots/", "trajgen train"):
        assert word in text
    for link in [part.split(")")[0] for part in text.split("](")[1:]]:
        assert (run / link).is_file()


def evaluated(run: Path, *words: str) -> dict[str, Any]:
    """What an evaluation with other options found."""
    before = set(run.glob("evaluations/*"))
    main(["evaluate", f"run={run}", "device=cpu", *words])
    (folder,) = set(run.glob("evaluations/*")) - before
    evaluation: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return evaluation


def test_the_folder_of_an_evaluation_is_named_by_its_options_as_they_are_typed(tmp_path: Path) -> None:
    overrides = {
        "sampler": {"name": "top_p", "p": 0.8},
        "evaluation": {"reference": False},
        "data": {"max_episode_steps": None},
    }
    folder = evaluation_folder(tmp_path, overrides)
    words = ["sampler-top_p", "sampler.p-0.8", "evaluation.reference-false", "data.max_episode_steps-null"]
    assert folder == tmp_path / "evaluations" / "-".join(words)
    folder.mkdir(parents=True)
    assert evaluation_folder(tmp_path, overrides).name == f"{folder.name}-2"


@pytest.mark.usefixtures("undrawn")
def test_evaluate_again_with_other_options(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "evaluation.json").read_text()
    words = [
        "evaluation.episodes=1",
        "sampler=greedy",
        "policy.replan_interval=2",
        "return_target=constant",
        "return_target.value=30",
    ]
    evaluation = evaluated(run, *words)
    assert "return" in capsys.readouterr().out
    assert evaluation["episodes"] == 1 and evaluation["overrides"]["sampler"] == {"name": "greedy"}
    assert (run / "evaluation.json").read_text() == before  # the run's own stays
    name = "evaluation.episodes-1-sampler-greedy-policy.replan_interval-2-return_target-constant-return_target.value-30"
    assert (run / "evaluations" / name / "summary.md").exists()
    evaluated(run, *words)
    assert (run / "evaluations" / f"{name}-2").exists()


@pytest.mark.usefixtures("undrawn")
def test_an_evaluation_takes_no_place_of_another(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["evaluation.episodes=1", "evaluation.latency=false", "evaluation.reference=false"]
    other = run / "evaluations" / "-".join(words).replace("=", "-")

    def meanwhile(*_: Any) -> dict[str, float]:
        other.mkdir(parents=True)
        (other / "evaluation.json").write_text("of another process")
        return {}

    monkeypatch.setattr("trajgen.experiments.evaluating.condition_error", meanwhile)
    main(["evaluate", f"run={run}", "device=cpu", *words])
    assert (other / "evaluation.json").read_text() == "of another process"
    assert (other.with_name(f"{other.name}-2") / "summary.md").exists()
    (tmp_path / "config.json").write_text("of another run")
    with pytest.raises(SystemExit):
        main(["evaluate", f"run={run}", "device=cpu", f"out={tmp_path}"])
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.usefixtures("undrawn")
def test_the_evaluation_is_reproducible(run: Path) -> None:
    first = json.loads((run / "evaluation.json").read_text())
    again = evaluated(run, "evaluation.latency=false", "evaluation.reference=false")
    assert again["return"] == first["return"] and again["condition_error"] == first["condition_error"]


def test_sample(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["sample", f"run={run}", "state=[1.0,1.0,0,0]", "goal=[-1,1]", "return=20", "plans=3", "device=cpu"])
    out = capsys.readouterr().out
    assert "3 plans for a target return-to-go of 20.0" in out.replace("\n", "")
    assert "condition error of the first state" in out and "condition error of the first return" in out
    assert (run / "plots" / "sample-1.png").stat().st_size > 1000
    with pytest.raises(SystemExit):
        main(["sample", f"run={run}", "state=[1,2]"])
    assert "The state of this run has 4 values" in capsys.readouterr().err


def test_a_sample_is_of_the_episode_that_its_options_name(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("trajgen.viz.plans.draw_plans", lambda *arguments, **_: drawn.append(arguments[3]))
    for cell in ("[1, 1]", "[3, 1]"):
        main(["sample", f"run={run}", f"data.resets=[{{goal_cell: {cell}}}]", "plans=1", "device=cpu"])
    above, below = (observation["desired_goal"].round().tolist() for observation in drawn)
    assert (above, below) == ([-1.0, 1.0], [-1.0, -1.0])


def test_the_policy_acts_in_gymnasium(run: Path) -> None:
    import gymnasium

    from trajgen.envs.gym import register_envs

    register_envs()
    policy = trajgen.load_policy(run, device="cpu")
    returns = []
    for _ in range(2):
        env = gymnasium.make("PointMaze_UMaze-v3", continuing_task=True, reset_target=False, max_episode_steps=15)
        observation, _ = env.reset(seed=0)
        policy.reset()
        done, total, path = False, 0.0, []
        while not done:
            action = policy.act(observation)
            assert action.shape == (2,) and np.abs(action).max() <= 1
            observation, reward, terminated, truncated, _ = env.step(action)
            done = terminated or truncated
            policy.observe(reward, done)
            total += float(reward)
            path.append(observation["observation"])
        returns.append((total, np.array(path)))
        env.close()
    assert len(returns[0][1]) == 15
    np.testing.assert_array_equal(returns[0][1], returns[1][1])


def test_a_batch_acts_as_its_members_do(run: Path) -> None:
    policy = trajgen.load_policy(run, device="cpu", overrides={"sampler": {"name": "greedy"}})
    random = np.random.default_rng(0)
    wholes = [{"observation": random.normal(size=(3, 4)), "desired_goal": random.normal(size=(3, 2))} for _ in range(6)]
    policy.reset(batch=3)
    batch_actions = []
    for observation in wholes:
        batch_actions.append(policy.act(observation))
        policy.observe(np.zeros(3), np.zeros(3, bool))
    for i in range(3):
        policy.reset()
        for observation, expected in zip(wholes, batch_actions, strict=True):
            alone = policy.act({k: v[i] for k, v in observation.items()})
            np.testing.assert_allclose(alone, expected[i], atol=1e-4)
            policy.observe(0.0, False)


def test_what_the_data_earned_stands_beside_the_score(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from trajgen.data import minari

    episodes = list(minari.open_dataset("trajgen/pointmaze/umaze-dwell-v0").iterate_episodes())
    returns = sorted(float(episode.rewards.sum()) for episode in episodes)
    earned = json.loads((run / "evaluation.json").read_text())["data_returns"]
    assert earned["mean"] == pytest.approx(np.mean(returns)) and earned["best_tenth"] == pytest.approx(returns[-1])
    assert f"| return of the data's episodes | {np.mean(returns):.1f} |" in (run / "summary.md").read_text()
    main(["data", "info", "trajgen/pointmaze/umaze-dwell-v0"])
    assert f"best tenth {round(returns[-1], 1):,.1f}".removesuffix(".0") in " ".join(capsys.readouterr().out.split())


def test_the_summary_ends_with_what_one_would_do_next(run: Path) -> None:
    text = (run / "summary.md").read_text()
    steps = text[text.index("## What to do next") : text.index("## To repeat it")]
    for line in steps.splitlines()[3:-3]:
        assert line.startswith("trajgen ") and "  # " in line
    assert f"trajgen video run={run.relative_to(Path.cwd())}" in steps and "seed=0,1,2" in steps
    assert "data=pointmaze/umaze-dwell" in steps  # as it was trained


def test_data_commands(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "list"])
    assert "trajgen/pointmaze/umaze-dwell-v0" in capsys.readouterr().out.replace("\n", "")
    main(["data", "info", "trajgen/pointmaze/umaze-dwell-v0"])
    assert "3,000" in capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
def test_a_stopped_run_is_usable_and_goes_on_as_if_nothing_had_been(
    run: Path, tiny_place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from trajgen.data.windows import Windows
    from trajgen.experiments import outlook

    draw = Windows.batch

    def stopped_at(self: Windows, step: int, size: int, rank: int = 0) -> Any:
        if step == 12 + 12 + 7:  # of the third stage
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(self, step, size, rank)

    folder = tiny_place / "stopped"
    words = ["train", *TRAIN, f"run_dir={folder}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Windows, "batch", stopped_at)
        patch.setattr(outlook, "SHORTEST", 0)  # its time is estimated, which must not change it
        with pytest.raises(SystemExit) as caught:
            main(words)
    out, message = capsys.readouterr()
    assert "To train: tokenizer 12, return target 12, prior 12, action 12 steps" in out
    assert "less than a minute on this machine" in " ".join(out.split())
    assert caught.value.code == 130
    assert "stage 'prior' after step 8" in message and "is whole" in message and "resume=true" in message
    assert trajgen.load_policy(folder, device="cpu").act is not None  # usable as it is
    with pytest.raises(SystemExit):
        main(words)
    assert "resume=true" in capsys.readouterr().err
    main([*words, "resume=true"])
    one, two = (load_file(run_folder / "checkpoints" / "final.safetensors") for run_folder in (folder, run))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    text = (folder / "summary.md").read_text()
    assert "| tokenizer | 12 |" in text and "| prior | 12 |" in text
    repeat = text[text.index("## To repeat it") :]
    assert f"run_dir={folder}" in repeat and "engine.stages.prior.steps" in repeat and "resume" not in repeat


def test_resume_of_a_finished_run_does_not_train_again(run: Path) -> None:
    weights = (run / "checkpoints" / "final.safetensors").read_bytes()
    lines = (run / "metrics.jsonl").read_text()
    main(["train", "recipe=mage", *TRAIN, "resume=true"])
    assert (run / "checkpoints" / "final.safetensors").read_bytes() == weights
    assert (run / "metrics.jsonl").read_text() == lines
    assert "tokenizer" in (run / "summary.md").read_text()
