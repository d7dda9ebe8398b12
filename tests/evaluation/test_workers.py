"""Environments in worker processes: the same scores, and what hangs or crashes costs its own episode alone."""

from __future__ import annotations

import os
import time
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from walks import Walk, walk_env

from trajgen.core.errors import DataError
from trajgen.envs.eval_env import make_eval_env
from trajgen.evaluation import pool
from trajgen.evaluation.evaluate import EvaluationOptions, evaluate
from trajgen.evaluation.pool import env_pool
from trajgen.evaluation.rollout import Rollouts, rollout
from trajgen.evaluation.workers import MOST, WorkerPool
from trajgen.experiments.run_folder import load_config

LENGTHS = 3 + np.arange(8) % 5


class Faulty(Walk):
    """Hangs at the second step of seed 1, and ends its process at the start of seed 6."""

    def reset(self, *, seed: int | None = None, **rest: Any) -> tuple:
        if seed == 6:
            os._exit(3)
        return super().reset(seed=seed, **rest)

    def step(self, action: np.ndarray) -> tuple:
        if self.seed == 1 and self.time == 1:
            time.sleep(600)
        return super().step(action)


class Moving:
    """A policy whose actions depend on all of its observations and rewards."""

    def reset(self, *, batch: int | None = None, ids: Any = None) -> None:
        self.sums = np.zeros((batch or 1, 1))

    def act(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        self.sums += observation["observation"].sum(1, keepdims=True) + observation["desired_goal"]
        return np.sin(self.sums).astype(np.float32)

    def observe(self, reward: Any, done: Any) -> None:
        self.sums += np.asarray(reward)[:, None]


def played(make_env: Any, workers: int) -> Rollouts:
    eval_env = walk_env(make_env)
    with env_pool(eval_env, 4, workers) as envs:
        return rollout(Moving(), eval_env, range(8), batch=4, pool=envs)


def test_the_scores_are_those_of_one_process_to_the_last_bit() -> None:
    options = EvaluationOptions(episodes=6, batch=4, latency=False)
    eval_env = walk_env(partial(Walk, fails_at=3))
    here, in_workers = (
        evaluate(Moving(), eval_env, EvaluationOptions(**{**vars(options), "workers": n})).to_dict() for n in (0, 2)
    )
    assert here["errors"] and here["episode_returns"]["policy"][3] is None
    for name in here.keys() - {"decisions_per_second", "hardware"}:
        assert here[name] == in_workers[name], name


def test_a_step_that_hangs_is_ended_and_the_other_episodes_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "PATIENCE", 2.0)
    faulty, undisturbed = played(Faulty, 2), played(Walk, 0)
    assert [error["seed"] for error in faulty.errors] == [1, 6]
    assert faulty.errors[0] == {"seed": 1, "step": 1, "error": "TimeoutError: the environment has not returned for 2 s"}
    assert "exit code 3" in faulty.errors[1]["error"]
    rest = faulty.completed
    assert rest.sum() == 6
    np.testing.assert_array_equal(faulty.returns[rest], undisturbed.returns[rest])
    for index in np.flatnonzero(rest):
        np.testing.assert_array_equal(faulty.states[index], undisturbed.states[index])
        np.testing.assert_array_equal(faulty.rewards[index], undisturbed.rewards[index])


class Ending(Walk):
    """Ends its process at the second step of seeds 1 and 2, and at the start of seeds 5 and 6."""

    def reset(self, *, seed: int | None = None, **rest: Any) -> tuple:
        if seed in (5, 6):
            os._exit(3)
        return super().reset(seed=seed, **rest)

    def step(self, action: np.ndarray) -> tuple:
        if self.seed in (1, 2) and self.time == 1:
            os._exit(3)
        return super().step(action)


def test_two_ends_of_one_process_at_once_cost_their_own_episodes_alone() -> None:
    ending, undisturbed = played(Ending, 1), played(Walk, 0)
    assert [error["seed"] for error in ending.errors] == [1, 2, 5, 6]
    rest = ending.completed
    np.testing.assert_array_equal(ending.returns[rest], undisturbed.returns[rest])


def test_processes_print_no_notices_of_packages(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with env_pool(make_eval_env(load_config(run)[0].data), 2, 2) as envs:
        envs.reset([0, 1])
    assert "gymnasium-robotics" not in capfd.readouterr().err


def test_an_environment_that_a_process_cannot_make_is_named() -> None:
    def make() -> Any:
        raise OSError("no display")

    with pytest.raises(DataError, match="OSError: no display"), env_pool(walk_env(make), 2, 1):
        pass


@pytest.mark.parametrize("options", [{"workers": -1}, {"batch": 0}])
def test_numbers_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(Exception, match=f"evaluation.{next(iter(options))} is out of range"):
        EvaluationOptions(**options)


def test_a_run_folder_may_name_any_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    slots = WorkerPool(walk_env(Walk), 100, 10**6)._slots
    assert len(slots) == MOST and sorted(chain(*slots)) == list(range(100))
