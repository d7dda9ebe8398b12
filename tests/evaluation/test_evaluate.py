"""The figures of an evaluation, by hand."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, MultiBinary
from walks import Constant, Silent, Walk, walk_env

from trajgen.core.errors import ConfigError, TrajgenError
from trajgen.data.options import SuccessRule
from trajgen.evaluation.evaluate import MEASURED, EvaluationOptions, RandomPolicy, evaluate, plain
from trajgen.evaluation.protocol import goal_kind
from trajgen.viz.summary import score_rows

OPTIONS = EvaluationOptions(episodes=10, batch=4, latency=False)
LENGTHS = 3 + np.arange(10) % 5  # mean 5


def figures_of(
    value: float = 1.0, options: EvaluationOptions = OPTIONS, make_env: type = Walk, **changes: object
) -> dict:
    return evaluate(Constant(value), walk_env(make_env, **changes), options).to_dict()


def test_figures_by_hand() -> None:
    figures = evaluate(Constant(0.8), walk_env(), OPTIONS).to_dict()
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
    assert figures["decisions_per_second"] > 0 and figures["decision_ms"] == {} and figures["errors"] == []
    assert figures["hardware"]["threads"] >= 1 and "seed 0 to 9" in figures["protocol"]
    json.dumps(figures, allow_nan=False)


def test_without_references_or_bounds_and_with_latency() -> None:
    figures = figures_of(options=EvaluationOptions(episodes=2, reference=False), bounds={})
    assert figures["normalized"] == {} and {*figures["decision_ms"]} == {"batch_1", "batch_64"}
    assert {*figures["decision_ms"]["batch_64"]} == {"median", "p95"}
    assert [figures[n] for n in ("controller", "random", "normalized_to_controller", "ratio_to_controller")] == [
        None
    ] * 4
    without = figures_of(controller=None)
    assert without["controller"] is None and without["random"] is not None


def test_failed_episodes_are_left_out_of_the_means() -> None:
    figures = figures_of(make_env=partial(Walk, fails_at=4))
    assert figures["return"]["n"] == 9 and figures["return"]["mean"] == pytest.approx(np.delete(LENGTHS, 4).mean())
    assert figures["ratio_to_controller"] == pytest.approx(1)
    assert [error["seed"] for error in figures["errors"]] == [4]


def test_bad_evaluations_are_refused() -> None:
    class Choices(Walk):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = MultiBinary(3)

    with pytest.raises(ConfigError, match="box of real numbers"):
        figures_of(make_env=Choices)
    with pytest.raises(TrajgenError, match="Every episode"):
        figures_of(make_env=partial(Walk, fails_at=0), options=EvaluationOptions(episodes=1, latency=False))
    with pytest.raises(ConfigError, match=r"evaluation\.protocol=return"):
        figures_of(make_env=Silent, options=EvaluationOptions(episodes=2, protocol="first_hit"))
    with pytest.raises(ConfigError, match="bounded action box"):
        RandomPolicy(Box(-np.inf, 1.0, (1,)))
    for name in ("episodes", "batch", "seed"):
        with pytest.raises(ConfigError, match=rf"fix: +evaluation\.{name}="):
            EvaluationOptions(**{name: -1})


def test_random_actions_fill_the_box_and_are_seeded() -> None:
    def draw(seed: int) -> np.ndarray:
        policy = RandomPolicy(Box(np.array([-1.0, 2.0]), np.array([1.0, 4.0]), dtype=np.float64), seed)
        policy.reset(batch=1000)
        return policy.act(None)

    actions = draw(0)
    assert actions.shape == (1000, 2)
    np.testing.assert_allclose(actions.mean(0), [0, 3], atol=0.1)
    assert actions[:, 1].min() >= 2 and actions[:, 1].max() <= 4
    np.testing.assert_array_equal(actions, draw(0))
    assert not np.array_equal(actions, draw(1))


def test_plain_values_are_those_of_json() -> None:
    values = {
        "a": np.float32(1.5),
        "b": float("nan"),
        "c": (np.arange(2), np.bool_(True)),
        1: [float("inf"), None, "y"],
    }
    assert plain(values) == {"a": 1.5, "b": None, "c": [[0, 1], True], "1": [None, None, "y"]}
    assert isinstance(plain(np.int64(3)), int)


def test_the_first_hit_protocol_counts_from_the_first_step_at_the_goal() -> None:
    options = EvaluationOptions(episodes=10, batch=4, latency=False, protocol="first_hit")
    figures = figures_of(0.8, options, max_steps=20)
    assert figures["protocol_name"] == "first_hit" and "first-hit protocol" in figures["protocol"]
    assert figures["episode_returns"]["policy"] == [19.0, 0.0] * 5  # even seeds succeed at step 2 of at most 20
    assert figures["return"]["mean"] == pytest.approx(9.5) and figures["ratio_to_controller"] == pytest.approx(1)
    figures = figures_of(0.8, max_steps=20)
    assert figures["protocol_name"] == "return" and figures["return"]["mean"] == pytest.approx(4)


def test_goals_and_success_are_those_of_the_environment() -> None:
    assert figures_of()["goals"] == "random" and figures_of(goal_key=None)["goals"] is None
    figures = figures_of(resets=tuple({"task_id": k} for k in (1, 2)))
    assert figures["goals"] == "fixed" and "2 options in turn, the first task_id 1" in figures["protocol"]
    assert figures["success_by_reset"] == [1.0, 0.0]  # even seeds meet the first and succeed
    rows = {name: (value, rest) for name, value, rest in score_rows(figures)}
    assert rows["protocol"] == ("return", "fixed goals") and rows["episodes"] == ("10", "seeds 0 to 9, 0 failed")
    figures = figures_of(rule=SuccessRule(steps=2))
    assert "at 2 steps or more" in figures["protocol"] and figures["success"] == 0


@pytest.mark.parametrize(
    ("resets", "kind"),
    [
        ([{"reset_cell": [1, 1]}], "random"),
        ([{"goal_cel": [1, 1]}], "random"),
        ([{"goal_cell": [1, 1]}, {"reset_cell": [1, 1]}], "random"),
        ([{"goal_cell": [1, 1], "reset_cell": [2, 1]}], "fixed"),
    ],
)
def test_goals_are_fixed_where_every_reset_names_one(resets: list[dict[str, Any]], kind: str) -> None:
    assert goal_kind(walk_env(resets=tuple(resets))) == kind


def test_success_is_by_the_distance_where_the_environment_reports_none_and_says_so() -> None:
    near = {"goal_radius": 100.0, "achieved_key": "observation"}  # all states are as near
    figures = figures_of(make_env=Silent, **near)
    assert figures["success"] == 1 and "success: within 100 of the goal at any step" in figures["protocol"]
    figures = figures_of(**near)
    assert figures["success"] == 0.5 and "success: the environment's success at any step" in figures["protocol"]
    figures = figures_of(rule=SuccessRule(info="reached_it", at_least=3), **near)
    assert figures["success"] is None and "no success, as the environment reports no reached_it" in figures["protocol"]
