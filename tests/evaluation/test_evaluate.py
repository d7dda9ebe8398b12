"""The figures of an evaluation, by hand, and the file that holds them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from gymnasium.spaces import Discrete
from walks import Constant, Walk, walk_env

from trajgen.core.errors import ConfigError, TrajgenError
from trajgen.data.success import SuccessRule
from trajgen.evaluation.evaluate import (
    MEASURED,
    EvaluationOptions,
    RandomPolicy,
    evaluate,
    plain,
    write_evaluation,
)
from trajgen.viz.summary import score_rows

OPTIONS = EvaluationOptions(episodes=10, batch=4, latency=False)
LENGTHS = 3 + np.arange(10) % 5  # mean 5


def test_figures_by_hand() -> None:
    figures = evaluate(Constant(0.8), walk_env(), OPTIONS, extra={"condition_error": 0.25}).to_dict()
    assert figures["episodes"] == 10 and figures["seeds"] == [0, 9] and figures["env"] == "walk"
    assert figures["return"]["mean"] == pytest.approx(0.8 * 5)
    assert figures["return"]["std"] == pytest.approx((0.8 * LENGTHS).std(ddof=1))
    assert figures["controller"]["mean"] == pytest.approx(5)
    assert figures["ratio_to_controller"] == pytest.approx(0.8)
    assert figures["ratio_to_controller_ci95"] == pytest.approx([0.8, 0.8])  # the same episodes
    assert figures["normalized"]["two to six"]["mean"] == pytest.approx(50)  # (4 - 2) / (6 - 2)
    assert figures["normalized"]["mean"] == pytest.approx(50)
    assert figures["normalized"]["bounds"] == [2, 6] and figures["normalized"]["name"] == "two to six"
    random = figures["random"]["mean"]
    assert abs(random) < 1.5
    assert figures["normalized_to_controller"]["mean"] == pytest.approx(100 * (4 - random) / (5 - random))
    assert figures["normalized_to_controller"] == figures["normalized"][MEASURED]
    assert figures["success"] == pytest.approx(0.5)
    assert figures["condition_error"] == 0.25
    assert figures["decisions_per_second"] > 0 and figures["decision_ms"] == {} and figures["errors"] == []
    assert figures["hardware"]["threads"] >= 1 and "seed 0 to 9" in figures["protocol"]
    json.dumps(figures, allow_nan=False)


def test_latency_is_measured_for_one_and_for_many() -> None:
    figures = evaluate(Constant(1.0), walk_env(), EvaluationOptions(episodes=2, reference=False)).to_dict()
    assert set(figures["decision_ms"]) == {"batch_1", "batch_64"}
    assert set(figures["decision_ms"]["batch_64"]) == {"median", "p95"}


def test_without_references_or_bounds() -> None:
    options = EvaluationOptions(episodes=4, latency=False, reference=False)
    figures = evaluate(Constant(1.0), walk_env(bounds={}), options).to_dict()
    assert figures["normalized"] == {}
    for name in ("controller", "random", "normalized_to_controller", "ratio_to_controller"):
        assert figures[name] is None
    without = evaluate(Constant(1.0), walk_env(controller=None), OPTIONS).to_dict()
    assert without["controller"] is None and without["random"] is not None


def test_failed_episodes_are_left_out_of_the_means() -> None:
    figures = evaluate(Constant(1.0), walk_env(partial(Walk, fails_at=4)), OPTIONS).to_dict()
    assert figures["return"]["n"] == 9 and figures["return"]["mean"] == pytest.approx(np.delete(LENGTHS, 4).mean())
    assert figures["ratio_to_controller"] == pytest.approx(1)
    assert [error["seed"] for error in figures["errors"]] == [4]


def test_bad_evaluations_are_refused() -> None:
    class Choices(Walk):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = Discrete(3)

    with pytest.raises(ConfigError, match="box of real numbers"):
        evaluate(Constant(1.0), walk_env(Choices), OPTIONS)
    with pytest.raises(TrajgenError, match="Every episode"):
        evaluate(Constant(1.0), walk_env(partial(Walk, fails_at=0)), EvaluationOptions(episodes=1, latency=False))
    with pytest.raises(ConfigError, match=r"evaluation\.episodes=48"):
        EvaluationOptions(episodes=0)
    with pytest.raises(ConfigError, match="bounded action box"):
        RandomPolicy(np.array([-np.inf]), np.array([1.0]))


def test_random_actions_fill_the_box_and_are_seeded() -> None:
    def draw(seed: int) -> np.ndarray:
        policy = RandomPolicy(np.array([-1.0, 2.0]), np.array([1.0, 4.0]), seed)
        policy.reset(batch=1000)
        return policy.act(None)

    actions = draw(0)
    assert actions.shape == (1000, 2)
    np.testing.assert_allclose(actions.mean(0), [0, 3], atol=0.1)
    assert actions[:, 1].min() >= 2 and actions[:, 1].max() <= 4
    np.testing.assert_array_equal(actions, draw(0))
    assert not np.array_equal(actions, draw(1))


def test_the_file_is_whole_and_has_no_nan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run" / "evaluation.json"
    write_evaluation(path, {"a": np.float32(1.5), "b": float("nan"), "c": (np.arange(2), np.bool_(True))})
    assert json.loads(path.read_text()) == {"a": 1.5, "b": None, "c": [[0, 1], True]}
    monkeypatch.setattr("trajgen.core.files.flush", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_evaluation(path, {"a": 2})
    assert json.loads(path.read_text())["a"] == 1.5
    assert [file.name for file in path.parent.iterdir()] == ["evaluation.json"]


def test_plain_keeps_whole_numbers_whole() -> None:
    assert plain({1: np.int64(3), "x": [float("inf"), None, "y"]}) == {"1": 3, "x": [None, None, "y"]}
    assert isinstance(plain(np.int64(3)), int)


def test_the_first_hit_protocol_counts_from_the_first_step_at_the_goal() -> None:
    options = EvaluationOptions(episodes=10, batch=4, latency=False, protocol="first_hit")
    figures = evaluate(Constant(0.8), walk_env(max_steps=20), options).to_dict()
    assert figures["protocol_name"] == "first_hit" and "first-hit protocol" in figures["protocol"]
    assert figures["episode_returns"]["policy"] == [19.0, 0.0] * 5  # even seeds succeed at step 2 of at most 20
    assert figures["return"]["mean"] == pytest.approx(9.5) and figures["ratio_to_controller"] == pytest.approx(1)
    plain_return = evaluate(Constant(0.8), walk_env(max_steps=20), OPTIONS).to_dict()
    assert plain_return["protocol_name"] == "return" and plain_return["return"]["mean"] == pytest.approx(4)


def test_the_first_hit_protocol_needs_a_world_that_says_when_the_goal_is_reached() -> None:
    class Silent(Walk):
        def reset(self, **keywords: object) -> tuple:
            return super().reset(**keywords)[0], {}

        def step(self, action: np.ndarray) -> tuple:
            return (*super().step(action)[:4], {})

    with pytest.raises(ConfigError, match=r"evaluation\.protocol=return"):
        evaluate(Constant(1.0), walk_env(Silent), EvaluationOptions(episodes=2, latency=False, protocol="first_hit"))


def test_goals_are_named_fixed_or_random_and_scored_one_by_one() -> None:
    assert evaluate(Constant(1.0), walk_env(), OPTIONS).to_dict()["goals"] == "random"
    assert evaluate(Constant(1.0), walk_env(goal_key=None), OPTIONS).to_dict()["goals"] is None
    tasks = tuple({"task_id": k} for k in (1, 2))
    figures = evaluate(Constant(1.0), walk_env(resets=tasks), OPTIONS).to_dict()
    assert figures["goals"] == "fixed" and "2 options in turn, the first task_id 1" in figures["protocol"]
    assert figures["success_by_reset"] == [1.0, 0.0]  # even seeds meet the first and succeed
    rows = {name: (value, rest) for name, value, rest in score_rows(figures)}
    assert rows["protocol"] == ("return", "fixed goals") and rows["episodes"] == ("10", "seeds 0 to 9, 0 failed")


def test_a_rule_of_success_is_said() -> None:
    eval_env = walk_env(rule=SuccessRule(steps=2))
    figures = evaluate(Constant(1.0), eval_env, OPTIONS).to_dict()
    assert "at 2 steps or more" in figures["protocol"] and figures["success"] == 0
