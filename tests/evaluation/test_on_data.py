"""Data without an environment: replayed, drawn, and a policy's actions compared with the recorded ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_sets
import tiny

from trajgen.cli import main
from trajgen.config import compose
from trajgen.core.errors import ConfigError
from trajgen.data.options import DataOptions
from trajgen.data.starts import val_episodes
from trajgen.envs.replay import recorded_states, replay_env
from trajgen.evaluation.evaluate import EvaluationOptions
from trajgen.evaluation.on_data import compare_with_data
from trajgen.evaluation.rollout import first_observations, rollout
from trajgen.experiments.results import ACTION_ERROR, differences, score, scores
from trajgen.experiments.search import require_other_replays
from trajgen.viz.summary import score_rows

ID, EPISODES, STEPS = "tests/log-v0", 5, 30
NO_ENV: dict[str, Any] = {"env_spec": None, "eval_env_spec": None}


@pytest.fixture(autouse=True)
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A set without an environment: two numbers are observed, of which the first is the number of the episode."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    episodes = []
    for number in range(EPISODES):
        states = np.stack([np.full(STEPS + 1, number), np.linspace(0, 1, STEPS + 1)], axis=1)
        episodes.append(small_sets.episode(states, rng.uniform(-1, 1, (STEPS, 2)).astype(np.float32), np.ones(STEPS)))
    small_sets.save(ID, episodes, 2, 2, **NO_ENV)
    return episodes


class Repeats:
    """A policy that gives the recorded action of the first episode, plus a constant."""

    def __init__(self, actions: Any, plus: float) -> None:
        self.actions, self.plus, self.step = actions, plus, 0

    def reset(self, *, batch: int | None = None, ids: Any = None) -> None:
        self.step, self.batch = 0, batch or 1

    def act(self, observation: Any) -> Any:
        self.step += 1
        return np.tile(self.actions[self.step - 1] + self.plus, (self.batch, 1))

    def observe(self, reward: Any, done: Any) -> None:
        assert np.all(np.asarray(reward) == 1)


def test_episodes_are_replayed_whatever_the_actions_are(log: list[dict[str, Any]]) -> None:
    env = replay_env(DataOptions(id=ID))
    assert env.replayed_episodes == EPISODES and env.max_steps == STEPS
    assert [first[0] for first in first_observations(env, range(7)).values()] == [0, 1, 2, 3, 4, 0, 1]  # counted round
    played = rollout(Repeats(log[0]["actions"], 0.0), env, [3])
    np.testing.assert_array_equal(played.states[0], log[3]["observations"])
    np.testing.assert_array_equal(recorded_states(env, 3), log[3]["observations"])
    assert played.returns[0] == STEPS


def test_validation_episodes_are_replayed_where_there_are_some() -> None:
    env = replay_env(DataOptions(id=ID, val_fraction=0.4))
    assert env.replayed_episodes == 2
    starts = {int(first[0]) for first in first_observations(env, range(6)).values()}
    assert starts == set(np.flatnonzero(val_episodes(EPISODES, 0.4)))


def test_the_action_error_is_in_standard_deviations_of_each_entry(log: list[dict[str, Any]]) -> None:
    env, options = replay_env(DataOptions(id=ID)), EvaluationOptions(episodes=1, latency=False)
    ones = np.ones(2)
    for plus, deviations, error in ((0.0, ones, 0.0), (0.5, ones, 0.5), (0.5, ones / [1, 2], np.sqrt((0.25 + 1) / 2))):
        policy: Any = Repeats(log[0]["actions"], plus)
        figures = compare_with_data(policy, env, options, deviations).figures
        assert figures["action_error"]["mean"] == pytest.approx(error)
    many = compare_with_data(policy, env, EvaluationOptions(episodes=48, latency=False), ones).figures
    assert many["episodes"] == EPISODES == len(many["episode_action_errors"])  # none twice
    assert many["action_error"]["mean"] == pytest.approx(np.mean(many["episode_action_errors"]))
    few = compare_with_data(policy, env, EvaluationOptions(batch=2, latency=False), ones).figures
    assert few["episode_action_errors"] == many["episode_action_errors"]
    with pytest.raises(ConfigError, match=r"needs an environment[\s\S]*evaluation\.disturbance=none"):
        compare_with_data(policy, env, EvaluationOptions(disturbance="push"), ones)


def test_a_run_on_data_without_an_environment_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    Path("set.yaml").write_text(f"data: {{id: {ID}, horizon: 8, stride: 1, chunk: 4, max_padding: 1.0}}\n")
    words = [word for word in tiny.TRAIN if not word.startswith(("data=", "engine.budget"))]
    words += ["engine.budget=0.1", "evaluation.latency=false", "schedule.scales=2"]
    main(["train", "data=set.yaml", "run_dir=run", *words])
    printed = capsys.readouterr().out
    assert "there will be no score" in printed and "action error" in printed
    files = {path.relative_to("run").as_posix() for path in Path("run").rglob("*")}
    assert files >= {"summary.md", "evaluation.json", "plots/training.png", "plots/plan_episode_0.png"}
    figures = json.loads(Path("run/evaluation.json").read_text())
    assert figures.get("return") is None and figures["action_error"]["mean"] > 0
    summary = Path("run/summary.md").read_text()
    assert "trajgen video" not in summary and "trajgen study study=num_scales data=" in summary

    main(["plot", "run=run", "device=cpu", "what=plans"])
    assert len(list(Path("run/plots").glob("plans_seed_*.png"))) == 3
    main(["plot", "run=run", "device=cpu", "what=control"])
    assert "needs an environment" in capsys.readouterr().out
    main(["sample", "run=run", "device=cpu", "seed=2", "plans=2"])
    assert Path("run/plots/sample-1.png").exists()
    with pytest.raises(SystemExit):
        main(["video", "run=run", "device=cpu"])
    assert "needs an environment" in capsys.readouterr().err
    main(["report", "run", "out=page.html"])
    assert "action error" in Path("page.html").read_text()


def test_studies_and_searches_compare_action_errors(tmp_path: Path) -> None:
    evaluation = {"seeds": [0, 1], "episodes": 2, "action_error": {"mean": 0.3, "ci95": [0.2, 0.4]}}
    one = {0: {**evaluation, "episode_action_errors": [0.2, 0.4]}}
    two = {0: {**evaluation, "episode_action_errors": [0.3, 0.5]}}
    assert scores(one, ACTION_ERROR)["mean"] == pytest.approx(0.3)
    assert differences(two, one, ACTION_ERROR)["difference"] == pytest.approx(0.1)
    (tmp_path / "evaluation.json").write_text(json.dumps(one[0]))
    assert score(tmp_path) == pytest.approx(-0.3)
    assert score_rows(one[0])[0] == ("action error", "0.300", "[0.200, 0.400]")


def test_a_search_chooses_by_other_recorded_episodes_than_those_that_are_reported() -> None:
    states = np.zeros((4, 2))
    episodes = [small_sets.episode(states, np.zeros((3, 2), np.float32)) for _ in range(60)]
    small_sets.save("tests/long-v0", episodes, 2, 2, **NO_ENV)
    config = compose(["recipe=bc", f"data.id={ID}", "evaluation.seed=10000"])
    with pytest.raises(ConfigError, match="more than 48 episodes"):  # seeds count round: all 5 are reported
        require_other_replays(config)
    config = replace(config, data=replace(config.data, id="tests/long-v0"))
    with pytest.raises(ConfigError, match=r"evaluation\.seed=48 evaluation\.episodes=12"):
        require_other_replays(config)
    require_other_replays(replace(config, evaluation=EvaluationOptions(seed=48, episodes=12)))
