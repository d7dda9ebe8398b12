"""Environments that raise, hang, or send what spoils a batch: their episode is reported, the others go on."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import small_sets
from gymnasium.spaces import Box, Dict
from rich.console import Console
from walks import Constant, Silent, Walk, walk_env

from trajgen.core.errors import ConfigError, DataError, TrajgenError
from trajgen.core.types import Space
from trajgen.data.options import SuccessRule
from trajgen.envs.eval_env import make_eval_env
from trajgen.evaluation import pool as room
from trajgen.evaluation.evaluate import EvaluationOptions
from trajgen.evaluation.protocol import require_playable
from trajgen.evaluation.rollout import Rollouts, rollout
from trajgen.experiments.evaluating import evaluate
from trajgen.experiments.loading import load_policy, load_run
from trajgen.experiments.run_folder import load_config

SEED = 3
LENGTHS = 3 + np.arange(8) % 5


class Faulty(Walk):
    """Goes wrong in one way at the second step of one seed."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def step(self, action: np.ndarray) -> tuple:
        observation, *rest = super().step(action)
        if self.seed == SEED and self.time == 2:
            if self.way == "hangs":
                time.sleep(0.5)
            if self.way == "raises":
                raise MemoryError("no more")
            changes: dict[str, Any] = {
                "not finite": {**observation, "observation": np.full(2, np.nan, np.float32)},
                "another shape": {**observation, "observation": np.zeros(3, np.float32)},
                "an entry less": {"observation": observation["observation"]},
                "nothing": None,
            }
            observation = changes.get(self.way, observation)
        return observation, *rest

    def close(self) -> None:
        super().close()
        if self.way == "raises when closed":
            raise OSError("the display is gone")


def played(way: str) -> Rollouts:
    return rollout(Constant(1.0), walk_env(partial(Faulty, way)), range(8), batch=4)


@pytest.mark.parametrize("way", ["raises", "not finite", "another shape", "an entry less", "nothing"])
def test_the_episode_is_reported_and_the_others_go_on(way: str) -> None:
    rollouts = played(way)
    (error,) = rollouts.errors
    assert error["seed"] == SEED and error["error"]
    assert np.isnan(rollouts.returns[SEED])
    np.testing.assert_array_equal(np.delete(rollouts.returns, SEED), np.delete(LENGTHS, SEED))


@pytest.mark.parametrize(
    ("arm", "message"),
    [(np.full(2, np.nan), "inner/arm is not finite"), (np.zeros(3), "inner/arm has shape"), (None, "inner/arm")],
)
def test_entries_of_nested_observations_are_checked(arm: Any, message: str) -> None:
    class Nested(Walk):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = Dict({**self.observation_space.spaces, "inner": Dict({"arm": Box(-9, 9, (2,))})})

        def _see(self) -> dict:
            fails = self.seed == SEED and self.time == 2
            return {**super()._see(), "inner": {"arm": arm if fails else np.zeros(2, np.float32)}}

    (error,) = rollout(Constant(1.0), walk_env(Nested), range(8), batch=4).errors
    assert error["seed"] == SEED and message in error["error"]


def test_an_environment_that_raises_when_it_is_closed_costs_nothing() -> None:
    assert not played("raises when closed").errors


def test_an_episode_that_cannot_be_started_costs_itself_alone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoStart(gymnasium.Wrapper):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            if seed == 1:
                raise RuntimeError("no start")
            return super().reset(seed=seed, options=options)

    eval_env = make_eval_env(load_config(run)[0].data)
    faulty = replace(eval_env, make_env=lambda: NoStart(eval_env.make_env()))
    monkeypatch.setattr("trajgen.envs.replay.env_of_run", lambda *_: faulty)
    overrides = {"evaluation.episodes": 2, "evaluation.latency": False, "evaluation.reference": False}
    figures = evaluate(run, Console(quiet=True), device="cpu", overrides=overrides, out=tmp_path / "out")
    assert [error["seed"] for error in figures["errors"]] == [1] and figures["condition_error"]
    pictures = [path.name for path in (tmp_path / "out" / "plots").glob("plan_*")]
    assert pictures == ["plan_episode_0.png"]


def test_an_environment_that_does_not_fit_a_run_is_refused_before_it_is_played(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of another set which is here; and one that is named."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    small_sets.save("tests/other-v0", [small_sets.episode(np.zeros((3, 3)), np.zeros((2, 1), np.float32))], 3, 1)
    monkeypatch.setattr("trajgen.evaluation.evaluate.evaluate", None)
    for overrides in ({"data.id": "tests/other-v0"}, {"data.env_id": "Pendulum-v1"}):
        with pytest.raises(DataError, match=r"other observations[\s\S]*Pendulum-v1"):
            evaluate(run, Console(quiet=True), device="cpu", overrides=overrides, out=tmp_path / "out")


def test_of_the_options_of_data_those_of_episodes_may_differ(run: Path) -> None:
    possible = {"env_options": {"continuing_task": False}, "shift": {"gear": 2.0}, "resets": [{"goal_cell": [1, 1]}],
                "success": {"info": "reward"}, "bounds": {"mine": [0, 1]}, "goal_radius": 1.0,
                "env_id": "PointMaze_UMaze-v3", "max_episode_steps": 5}  # fmt: skip
    config, _ = load_run(run, overrides={"data": possible})
    assert config.data.goal_radius == 1.0 and config.data.shift.gear == 2.0
    load_run(run, overrides={"data.return_power": 0.25})  # as it is
    with pytest.raises(DataError, match="trajgen data get D4RL/pointmaze/medium-v2"):  # though it has an environment
        load_run(run, overrides={"data.id": "D4RL/pointmaze/medium-v2"})
    with pytest.raises(ConfigError, match=r"got: +data\.val_fraction"):  # of recorded episodes that are replayed
        load_run(run, overrides={"data.val_fraction": 0.5})


@pytest.mark.parametrize(
    ("option", "instead"),
    [("seed", "policy.seed"), ("device", "argument device"), ("engine.compile", "leave engine out")],
)
def test_what_matters_to_a_training_alone_is_not_replaced_in_a_trained_run(
    option: str, instead: str, run: Path
) -> None:
    value = {"seed": 1, "device": "cpu", "engine.compile": True}[option]
    with pytest.raises(ConfigError, match=instead):
        load_policy(run, overrides={"policy.seed": 1, option: value})


def test_a_step_that_hangs_is_said_while_it_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(room, "PATIENCE", 0.1)
    rollouts = played("hangs")
    message = capsys.readouterr().err
    assert message.count("hangs") == 1 and f"step 2 of the episode of seed {SEED}" in message and "Ctrl-C" in message
    np.testing.assert_array_equal(rollouts.returns, LENGTHS)  # and counts, if it comes back


@pytest.mark.parametrize("reward", [np.array([2.0]), np.array(2.0), np.float32(2), 2, True])
def test_a_reward_is_one_number_in_whatever_array(reward: Any) -> None:
    class Rewarding(Walk):
        def step(self, action: np.ndarray) -> tuple:
            observation, _, *rest = super().step(action)
            return observation, reward, *rest

    assert rollout(Constant(1.0), walk_env(Rewarding), [0]).returns.tolist() == [3 * np.asarray(reward).item()]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda seen: (seen, np.zeros(2), False, False, {}), r"step: ValueError: the reward is one number.*\(2,\)"),
        (lambda seen: (seen, None, False, False, {}), "step: "),
        (lambda seen: (seen, 0.0, False, {}), "not enough values to unpack"),
        (lambda seen: ({**seen, "observation": np.zeros(3)}, 0.0, False, False, {}), "shape"),
        (lambda seen: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_step_that_no_episode_can_hold_is_refused_before_training(step: Any, message: str) -> None:
    class Odd(Walk):
        def step(self, action: np.ndarray) -> Any:
            return step(super().step(action)[0])

    space = Space(2, 1, 1, "observation", "desired_goal")
    require_playable(walk_env(Walk), EvaluationOptions(), space)
    with pytest.raises(DataError, match=message):
        require_playable(walk_env(Odd), EvaluationOptions(), space)


def test_all_resets_are_tried_before_training() -> None:
    class Opened(Walk):
        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple:
            if options["door"] == 7:
                raise KeyError("no such door")
            return super().reset(seed=seed)

    space, resets = Space(2, 1, 1, "observation", "desired_goal"), ({"door": 1}, {"door": 2}, {"door": 7})
    require_playable(walk_env(Opened, resets=resets[:2]), EvaluationOptions(), space)
    with pytest.raises(DataError, match=r"reset with \{'door': 7\}.*no such door"):
        require_playable(walk_env(Opened, resets=resets), EvaluationOptions(seed=4), space)


def test_an_entry_of_success_that_is_not_there_is_warned_of() -> None:
    space = Space(2, 1, 1, "observation", "desired_goal")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for info in ("success", "reward"):
            require_playable(walk_env(Silent, rule=SuccessRule(info=info)), EvaluationOptions(), space)
    with pytest.warns(UserWarning, match=r"info=sucess among its info: success"):
        require_playable(walk_env(Walk, rule=SuccessRule(info="sucess")), EvaluationOptions(), space)


def test_a_box_without_sides_is_refused_before_training_unless_nothing_is_drawn_from_it() -> None:
    class Free(Walk):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = Box(-np.inf, np.inf, (1,), np.float32)

    space = Space(2, 1, 1, "observation", "desired_goal")
    with pytest.raises(ConfigError, match=r"evaluation\.reference=false"):
        require_playable(walk_env(Free), EvaluationOptions(), space)
    require_playable(walk_env(Free), EvaluationOptions(reference=False), space)
    with pytest.raises(ConfigError, match=r"evaluation\.protocol=return"):
        require_playable(walk_env(Silent), EvaluationOptions(protocol="first_hit"), space)
    require_playable(walk_env(rule=SuccessRule(info="reward")), EvaluationOptions(protocol="first_hit"), space)


def test_quick_steps_are_not_said_to_hang(capsys: pytest.CaptureFixture[str]) -> None:
    played("in no way")
    assert capsys.readouterr().err == ""


def test_decisions_that_need_too_much_memory_name_what_to_lower() -> None:
    class OutOfMemoryError(RuntimeError):
        """As torch's, which is recognized by its name."""

    policy: Any = Constant(1.0)

    def act(_: Any) -> Any:
        raise OutOfMemoryError("CUDA out of memory.\nmore")

    policy.act = act
    with pytest.raises(TrajgenError, match=r"evaluation\.batch=4"):
        rollout(policy, walk_env(), range(8))
