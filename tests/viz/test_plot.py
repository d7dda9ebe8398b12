"""``trajgen plot``: every picture that a run can have, and one line for those that it cannot have."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from made import write_metrics
from walks import walk_env

from trajgen import experiments
from trajgen.cli import main
from trajgen.cli.plot import PLOT_HELP
from trajgen.core.errors import ConfigError, TrajgenError
from trajgen.experiments.run_folder import load_config
from trajgen.policies.receding_horizon import RecedingHorizonPolicy
from trajgen.viz.control import Counting, measure_control, obeys, returns_to_ask
from trajgen.viz.draw import PICTURES, PlotRequest
from trajgen.viz.overheard import overheard
from trajgen.viz.plans import draw_plans
from trajgen.viz.run import Run
from trajgen.viz.usage import usage_figure, usage_of

Fresh = Callable[..., Path]


def opened(folder: Path) -> Run:
    return Run(
        folder,
        load_config(folder)[0],
        lambda more: experiments.load_policy(folder, device="cpu", overrides=more or None),
    )


def plot(folder: Path, *words: str) -> None:
    main(["plot", f"run={folder}", "device=cpu", *words])


def said(text: str) -> dict[str, list[str]]:
    """What was printed, by picture."""
    found: dict[str, list[str]] = {}
    for name, what in re.findall(r"^(\w+): (.*)$", text, re.MULTILINE):
        found.setdefault(name, []).append(what)
    return found


def test_a_run_of_mage_has_every_picture(fresh_run: Fresh, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fresh_run("mage")
    write_metrics(folder, "tokenizer", "prior")
    plot(folder, "episodes=2", "plans=2", "out=" + str(folder / "drawn"))
    found = said(capsys.readouterr().out)
    assert list(found) == list(PICTURES)
    files = {path.name for path in (folder / "drawn").iterdir()}
    assert files == {Path(path).name for paths in found.values() for path in paths}
    assert files >= {"training.png", "usage.png", "plans_seed_0.png", "control.png", "attention.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (folder / "drawn").iterdir())


@pytest.mark.parametrize(
    ("recipe", "without"),
    [
        ("bc", {"usage", "plans", "control", "attention"}),
        ("diffuser", {"usage", "control", "attention"}),  # the return is climbed, not asked for
        ("dt", {"usage", "plans", "attention"}),
        ("hierarchy", {"usage"}),
    ],
)
def test_what_does_not_apply_is_one_line(
    recipe: str, without: set[str], fresh_run: Fresh, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fresh_run(recipe, *(["data.horizon=32"] if recipe == "hierarchy" else []))
    plot(folder, "episodes=1", "plans=1", "returns=[1,5]")
    found = said(capsys.readouterr().out)
    assert {name for name, (first, *_) in found.items() if not first.endswith(".png")} == without | {"learning"}
    assert all(len(found[name]) == 1 and " " in found[name][0] for name in without)


def test_pictures_of_other_options_do_not_take_the_place_of_the_run_s_own(fresh_run: Fresh) -> None:
    folder = fresh_run("mage")
    plot(folder, "what=plans")
    before = {path: path.read_bytes() for path in (folder / "plots").glob("*.png")}
    plot(folder, "what=plans", "seed=0", "plans=1", "sampler=greedy")
    assert {path.name for path in (folder / "plots" / "1").iterdir()} == {path.name for path in before}
    assert before == {path: path.read_bytes() for path in before} and len(before) == 3


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["what=attentoin"], "attention"),
        (["what=[plans,usag]"], "usage"),
        (["episodes=0"], "episodes"),
        (["plans=many"], "plans"),
        (["smapler=greedy"], "sampler"),
        (["run=nowhere"], "There is no such run folder"),
    ],
)
def test_mistakes_are_said_before_anything_is_drawn(
    words: list[str], expected: str, fresh_run: Fresh, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fresh_run("mage")
    with pytest.raises(SystemExit):
        plot(folder, *words)
    error = capsys.readouterr().err
    assert expected in error and "fix:" in error and not (folder / "plots").exists()


def test_missing_data_cost_only_the_pictures_that_need_them(
    fresh_run: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fresh_run("mage")
    write_metrics(folder, "tokenizer")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "empty"))
    plot(folder)
    found = said(capsys.readouterr().out)
    assert found["learning"][0].endswith("training.png") and "trajgen data make" in found["plans"][0]
    with pytest.raises(SystemExit):  # one that is asked for by name is an error
        plot(folder, "what=plans")


def test_the_help_names_every_picture_and_option() -> None:
    assert re.findall(r"what=(\w+)", PLOT_HELP)[1:] == list(PICTURES)
    for option in dataclasses.fields(PlotRequest):
        assert f"{option.name}=" in PLOT_HELP


def test_usage_is_read_stage_by_stage() -> None:
    rows = [
        {"stage": "high", "step": 1, "usage/a": 0.5, "usage/b": float("nan"), "perplexity/a": 3.0},
        {"stage": "low", "step": 1, "usage/a": 0.25},
        {"stage": "low", "step": 2, "usage/a": 0.75, "usage/text": "x"},
    ]
    assert usage_of(rows, "usage") == {"high": {"a": [(1, 0.5)]}, "low": {"a": [(1, 0.25), (2, 0.75)]}}
    assert usage_of(rows, "perplexity") == {"high": {"a": [(1, 3.0)]}}


def test_no_codebook_no_usage(tmp_path: Path) -> None:
    assert not usage_figure(tmp_path / "usage.png", [{"stage": "prior", "step": 1, "total": 1.0}])
    assert not (tmp_path / "usage.png").exists()


class Earns:
    """Is paid what it does: its rewards are 1, 0, 1, …"""

    def reset(self, *, batch: int | None = None, ids: object = None) -> None:
        self.told: list[float] = []

    def act(self, observation: object) -> np.ndarray:
        return np.zeros((2, 1))

    def observe(self, reward: np.ndarray, done: object) -> None:
        self.told.append(float(reward[0]))


def test_achieved_returns_are_discounted_as_the_asked_ones_are() -> None:
    policy = Counting(Earns(), 0.5)
    policy.reset(batch=2)
    for reward in ([1.0, 0.0], [0.0, 2.0], [1.0, 0.0]):
        policy.observe(np.array(reward), np.zeros(2, bool))
    np.testing.assert_allclose(policy.earned, [1.25, 1.0])
    assert policy.policy.told == [1.0, 0.0, 1.0]
    policy.reset(batch=2)
    assert not policy.earned.any()


def test_the_same_episodes_are_played_for_each_return(fresh_run: Fresh) -> None:
    run = opened(fresh_run("mage"))
    asked = returns_to_ask(run)
    assert len(asked) >= 3 and asked == sorted({*asked}) and run.data is not None
    assert run.data.returns[0] <= asked[0] and asked[-1] <= run.data.returns[-1]
    assert obeys(run, asked[0], asked[-1])
    control = measure_control(run, [5.0, 20.0], range(3))
    assert control.achieved.shape == (2, 3) and control.own_asked.shape == control.own_achieved.shape == (3,)
    again = measure_control(run, [20.0], range(3))
    np.testing.assert_array_equal(again.achieved[0], control.achieved[1])


def test_a_failing_episode_is_no_point_of_the_curve(fresh_run: Fresh) -> None:
    run = opened(fresh_run("mage"))
    eval_env = run.eval_env

    def broken() -> object:
        environment = eval_env.make_env()
        environment.unwrapped.step = lambda action: 1 / 0
        return environment

    run.__dict__["eval_env"] = dataclasses.replace(eval_env, make_env=broken)
    with pytest.raises(TrajgenError, match="ZeroDivisionError"):
        measure_control(run, [5.0], range(2))


def test_plans_are_overheard_and_nothing_stays_behind(walker: RecedingHorizonPolicy) -> None:
    eval_env = walk_env()
    observation = eval_env.make_env().reset(seed=0)[0]
    walker.reset()
    expected = walker.act(observation)
    with overheard(walker.planner, decoded=True) as heard:
        walker.reset()
        np.testing.assert_array_equal(walker.act(observation), expected)
    ((cond, plan),) = heard
    assert len(cond) == 1 and plan.trajectory is not None
    walker.reset()
    walker.act(observation)
    assert len(heard) == 1 and "plan" not in vars(walker.planner)


def test_worlds_without_a_map_get_curves_with_the_range_of_the_data(
    walker: RecedingHorizonPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eval_env = walk_env()
    observation = eval_env.make_env().reset(seed=0)[0]
    _, _, refinements = walker.preview([observation] * 3)
    given = {}
    monkeypatch.setattr("trajgen.viz.plots.curves_figure", lambda *a, **k: given.update(k, states=a[1]))
    limits = np.array([-2.0, -1.0]), np.array([2.0, 1.0])
    executed = np.arange(20, dtype=np.float32).reshape(10, 2)
    path = tmp_path / "curves.png"
    assert draw_plans(path, walker, eval_env, observation, refinements, executed, stride=3, limits=limits)
    assert given["limits"] is limits and given["states"].shape == (len(refinements), 3, 16, 2)
    np.testing.assert_array_equal(given["executed"], executed[::3])  # at the plan's points in time
    monkeypatch.undo()
    assert draw_plans(path, walker, eval_env, observation, refinements, executed, stride=3, limits=limits)
    assert path.stat().st_size > 4000


def test_the_data_s_range_is_in_its_own_units(fresh_run: Fresh) -> None:
    run = opened(fresh_run("mage"))
    norm = run.policy.normalizer.state
    with torch.no_grad():
        norm.mean.fill_(3.0)
        norm.scale.fill_(2.0)
    assert run.data is not None and run.data.low.shape == (4,)
    assert (np.abs(run.data.low) < 6).all() and (run.data.low < run.data.high).all()


def test_a_request_is_checked_when_it_is_made() -> None:
    with pytest.raises(ConfigError) as caught:
        PlotRequest(what=("nothing",))
    assert caught.value.expected and caught.value.got and caught.value.fix
