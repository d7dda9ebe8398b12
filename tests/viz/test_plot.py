"""``trajgen plot``: every picture that a run can have, and one line for those that it cannot have."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from run_folders import write_metrics
from walks import Constant, walk_env

from trajgen.cli import main
from trajgen.core.errors import TrajgenError
from trajgen.core.schedule import ScaleSchedule
from trajgen.evaluation.rollout import rollout
from trajgen.experiments.loading import open_run
from trajgen.nn import attention as blocks
from trajgen.policies.receding_horizon import RecedingHorizonPolicy
from trajgen.viz.attention import (
    attention_between_scales,
    attention_figure,
    attention_weights,
    by_scale,
    draw_attention,
    even_attention,
    scale_planners,
)
from trajgen.viz.plans import draw_plans
from trajgen.viz.plot import PICTURES
from trajgen.viz.record_plans import record_plans
from trajgen.viz.returns import default_targets, depends_on_return, discounted_sum, measure_control
from trajgen.viz.run import Run

FreshRun = Callable[..., Path]


def plot(folder: Path, *words: str) -> None:
    main(["plot", f"run={folder}", "device=cpu", *words])


def by_picture(text: str) -> dict[str, list[str]]:
    """What was printed, by picture."""
    lines: dict[str, list[str]] = {}
    for name, line in re.findall(r"^(\w+): (.*)$", text, re.MULTILINE):
        lines.setdefault(name, []).append(line)
    return lines


def test_a_run_of_mage_has_every_picture(fresh_run: FreshRun, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fresh_run("mage", name="a[/b]c")  # a name that rich would read as markup
    write_metrics(folder, "tokenizer", "prior")
    plot(folder, "episodes=2", "plans=2", "out=" + str(folder / "drawn"))
    lines = by_picture(capsys.readouterr().out)
    assert list(lines) == list(PICTURES)
    files = {path.name for path in (folder / "drawn").iterdir()}
    assert files == {Path(path).name for paths in lines.values() for path in paths}
    assert files >= {"training.png", "usage.png", "plans_seed_0.png", "control.png", "attention.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (folder / "drawn").iterdir())


def test_the_format_is_a_choice(fresh_run: FreshRun) -> None:
    folder = fresh_run("mage")
    write_metrics(folder, "prior")
    plot(folder, "what=learning", "format=pdf", "title=Losses", "labels={total: sum}")
    assert (folder / "plots" / "training.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("recipe", "without"),
    [
        ("bc", {"usage", "plans", "control", "attention"}),
        ("diffuser", {"usage", "control", "attention"}),  # it climbs the return instead of being conditioned on it
        ("dt", {"usage", "plans", "attention"}),
        ("hierarchy", {"usage"}),
    ],
)
def test_a_picture_that_does_not_apply_is_one_line(
    recipe: str,
    without: set[str],
    fresh_run: FreshRun,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trajgen.viz.plot.PLANNED", 1)
    folder = fresh_run(recipe, *(["data.horizon=32"] if recipe == "hierarchy" else []))
    plot(folder, "episodes=1", "plans=1", "returns=[1,5]")
    lines = by_picture(capsys.readouterr().out)
    assert {name for name, (first, *_) in lines.items() if not first.endswith(".png")} == without | {"learning"}
    assert all(len(lines[name]) == 1 and " " in lines[name][0] for name in without)


def test_pictures_of_other_options_do_not_replace_the_run_s_own(
    fresh_run: FreshRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trajgen.viz.plot.PLANNED", 1)
    folder = fresh_run("mage")
    plot(folder, "what=plans")
    before = {path: path.read_bytes() for path in (folder / "plots").glob("*.png")}
    plot(folder, "what=plans", "seed=0", "plans=1", "sampler=greedy")
    assert {path.name for path in (folder / "plots" / "1").iterdir()} == {path.name for path in before}
    assert before == {path: path.read_bytes() for path in before} and len(before) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plot", "what=attentoin"], "attention"),
        (["plot", "what=[plans,usag]"], "usage"),
        (["plot", "episodes=0"], "episodes"),
        (["plot", "plans=many"], "plans"),
        (["plot", "smapler=greedy"], "sampler"),
        (["plot", "run=nowhere"], "There is no such run folder"),
        *(
            (["video", f"{name}={value}"], name)
            for name, value in (("every", 0), ("rate", 0), ("steps", 0), ("seed", -1))
        ),
        (["video", "evry=3"], "evry"),
        (["video", "out=film.avi"], "GIF or an MP4"),
    ],
)
def test_mistakes_are_refused_before_anything_is_drawn(
    words: list[str], message: str, fresh_run: FreshRun, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fresh_run("mage")
    with pytest.raises(SystemExit):
        main([words[0], f"run={folder}", "device=cpu", *words[1:]])
    error = capsys.readouterr().err
    assert message in error and ("fix:" in error or "expected:" in error)
    assert not (folder / "plots").exists() and not (folder / "videos").exists()


def test_missing_data_cost_only_the_pictures_that_need_them(
    fresh_run: FreshRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fresh_run("mage")
    write_metrics(folder, "tokenizer")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "empty"))
    plot(folder)
    lines = by_picture(capsys.readouterr().out)
    assert lines["learning"][0].endswith("training.png") and "trajgen data make" in lines["plans"][0]
    with pytest.raises(SystemExit):  # one that is requested by name is an error
        plot(folder, "what=plans")


def test_achieved_returns_are_discounted_as_the_targets_are() -> None:
    rewards = rollout(Constant(0.5), walk_env(), [0, 1]).rewards
    assert [discounted_sum(each, 0.5) for each in rewards] == [0.5 + 0.25 + 0.125, 0.9375]
    assert discounted_sum(np.array([1.0, 2.0, 3.0]), 0.5) == 1 + 1 + 0.75


@pytest.fixture
def run(fresh_run: FreshRun) -> Run:
    return open_run(fresh_run("mage"), device="cpu")


def test_the_same_episodes_are_played_for_each_target(run: Run) -> None:
    targets = default_targets(run)
    assert len(targets) >= 3 and targets == sorted({*targets}) and run.data is not None
    assert run.data.returns[0] <= targets[0] and targets[-1] <= run.data.returns[-1]
    assert depends_on_return(run, targets[0], targets[-1])
    control = measure_control(run, [5.0, 20.0], range(3))
    assert control.achieved.shape == (2, 3) and control.run_targets.shape == control.run_achieved.shape == (3,)
    np.testing.assert_array_equal(measure_control(run, [20.0], range(3)).achieved[0], control.achieved[1])


def test_a_failing_episode_is_no_point_of_the_curve(run: Run) -> None:
    eval_env = run.eval_env

    def broken() -> Any:
        env: Any = eval_env.make_env()
        env.unwrapped.step = lambda action: 1 / 0
        return env

    run.__dict__["eval_env"] = dataclasses.replace(eval_env, make_env=broken)
    with pytest.raises(TrajgenError, match="ZeroDivisionError"):
        measure_control(run, [5.0], range(2))


def test_an_environment_that_starts_no_episode_has_no_pictures_of_them(run: Run, tmp_path: Path) -> None:
    def broken() -> Any:
        env: Any = eval_env.make_env()
        env.unwrapped.reset = lambda **_: 1 / 0
        return env

    eval_env = run.eval_env
    run.__dict__["eval_env"] = dataclasses.replace(eval_env, make_env=broken)
    for draw in (
        lambda: measure_control(run, [5.0], range(2)),
        lambda: depends_on_return(run, 1.0, 2.0),
        lambda: draw_attention(tmp_path / "x.png", run, range(2)),
    ):
        with pytest.raises(TrajgenError, match="start none of the episodes"):
            draw()


def test_the_data_s_range_is_in_its_own_units(run: Run) -> None:
    norm = run.policy.normalizer.state
    with torch.no_grad():
        norm.mean.fill_(3.0)
        norm.scale.fill_(2.0)
    assert run.data is not None and run.data.limits[0].shape == (4,)
    assert (np.abs(run.data.limits[0]) < 6).all() and (run.data.limits[0] < run.data.limits[1]).all()


def test_plans_are_recorded_and_nothing_stays_behind(walker: RecedingHorizonPolicy) -> None:
    observation = walk_env().make_env().reset(seed=0)[0]
    walker.reset()
    expected = walker.act(observation)
    with record_plans(walker.planner, decode=True) as plans:
        walker.reset()
        np.testing.assert_array_equal(walker.act(observation), expected)
    ((cond, plan, first),) = plans
    assert len(cond) == 1 and plan.trajectory is not None and first == 0
    walker.reset()
    walker.act(observation)
    assert len(plans) == 1 and "plan" not in vars(walker.planner)


def test_environments_without_a_map_get_curves_with_the_range_of_the_data(
    walker: RecedingHorizonPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eval_env = walk_env()
    observation = eval_env.make_env().reset(seed=0)[0]
    _, _, refinements = walker.preview([observation] * 3)
    arguments: dict[str, Any] = {}
    monkeypatch.setattr("trajgen.viz.plans.plan_curves", lambda *a, **k: arguments.update(k, states=a[1]))
    limits = np.array([-2.0, -1.0]), np.array([2.0, 1.0])
    executed = np.arange(20, dtype=np.float32).reshape(10, 2)
    path = tmp_path / "curves.png"
    assert draw_plans(path, walker, eval_env, observation, refinements, executed, stride=3, limits=limits)
    assert arguments["limits"] is limits and arguments["states"].shape == (len(refinements), 3, 16, 2)
    np.testing.assert_array_equal(arguments["executed"], executed[::3])  # at the plan's points in time


def test_sums_of_attention_over_scales_by_hand() -> None:
    schedule = ScaleSchedule((1, 2))
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.3, 0.5], [0.4, 0.6, 0.0]])
    np.testing.assert_allclose(by_scale(weights, schedule), [[1.0, 0.0], [0.3, 0.7]], rtol=1e-6)
    np.testing.assert_allclose(even_attention(schedule), [[1.0, 0.0], [1 / 3, 2 / 3]], rtol=1e-6)


def test_the_weights_are_those_that_the_prior_attends_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against torch's own kernel: with values that tell the tokens apart, it gives the weights themselves."""
    planner: Any = tiny.shake(tiny.planner(prior={"depth": 2})).eval()
    cond, tokenizer, prior = tiny.cond(3), planner.tokenizer, planner.prior
    tokens = tokenizer.schedule.tokens
    plan = planner.plan(cond)
    inputs = tokenizer.layout.inputs(tokenizer.vectors(plan.codes))
    expected = []

    kernel = F.scaled_dot_product_attention

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_mask: torch.Tensor) -> torch.Tensor:
        eye = torch.eye(tokens).expand(*q.shape[:2], tokens, tokens)
        expected.append(kernel(q, k, eye, attn_mask=attn_mask))
        return kernel(q, k, v, attn_mask=attn_mask)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    with torch.no_grad():
        weights = attention_weights(
            prior.blocks, lambda: prior.logits(inputs, cond), blocks.block_causal_mask(tokenizer.schedule)
        )
    assert len(expected) == 2 and not any(block.qkv._forward_hooks for block in prior.blocks)
    torch.testing.assert_close(weights, torch.stack(expected).mean((0, 1, 2)))
    shares = attention_between_scales(planner, cond, plan)
    np.testing.assert_allclose(shares.sum(1), 1.0, rtol=1e-5)
    assert (shares[np.triu_indices(len(shares), 1)] == 0).all() and (np.diag(shares) > 0).all()  # no finer scale


@pytest.mark.parametrize(
    ("recipe", "words", "names"),
    [("mage", [], [""]), ("hierarchy", ["data.horizon=32"], ["high", "low"]), ("flat", [], []), ("dt", [], [])],
)
def test_planners_that_attend_from_scale_to_scale(
    recipe: str, words: list[str], names: list[str], fresh_run: FreshRun
) -> None:
    """Of one scale there is nothing to show, and Decision Transformer has another kind of block."""
    policy = open_run(fresh_run(recipe, *words), device="cpu").policy
    assert [name for name, _ in scale_planners(policy.planner)] == names


@pytest.mark.parametrize("lengths", [(1, 2, 4), (1,) * 20])
def test_the_attention_figure_takes_any_schedule(lengths: tuple[int, ...], tmp_path: Path) -> None:
    schedule = ScaleSchedule(lengths)
    even = even_attention(schedule)
    attention_figure(tmp_path / "attention.png", {"": even, "low": even}, {"": schedule, "low": schedule})
    assert (tmp_path / "attention.png").stat().st_size > 4000
