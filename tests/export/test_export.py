"""An exported policy acts as the one it was made of, without trajgen; for ONNX Runtime in a process of its own."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from trajgen.assemble import assemble
from trajgen.cli import main
from trajgen.core.errors import ConfigError
from trajgen.export import exported_policy, package
from trajgen.export.package import export
from trajgen.export.randomness import Draw
from trajgen.policies.options import PolicyOptions
from trajgen.policies.receding_horizon import RecedingHorizonPolicy

STEPS = 8
NEW_GOALS = 3
"""The step at which all goals change, between two plans."""
OFFSET = {"state": (1.7e9, 0.0, 0.5, -4e6), "goal": (4649776.0, 0.0)}
"""Of the data, as of seconds since 1970, whose steps a 32-bit float does not hold."""
ALONE = """
import json, sys
sys.modules["trajgen"] = None  # importing it would fail
sys.path.insert(0, sys.argv[1])
import numpy as np
from policy import Policy
given = np.load(sys.argv[2])
policy = Policy(threads=1)
actions, remaining = [], []
for step in range(len(given["state"])):
    noises = [[given[n] for n in given if n.startswith(f"{what}_{step}_")] for what in ("noise", "revision")]
    actions.append(policy.act(given["state"][step], given["goal"][step], *noises).tolist())
    policy.observe(given["reward"][step])
    remaining.append(policy._remaining.tolist())
print(json.dumps([actions, remaining]))
"""


def policy(**swaps: Any) -> RecedingHorizonPolicy:
    return policy_of(tiny.planner(return_target="quantile", schedule={"scales": 2}, **swaps), replan_interval=2)


def continuing(past_actions: bool) -> RecedingHorizonPolicy:
    """One that continues a history of four points, fewer than are played."""
    parts = {
        "view": {"name": "fields", "fields": ("return", "state", "action")},
        "schedule": {"name": "unit"},
        "tokenizer": {"name": "identity", "tokens": "field"},
        "conditioner": {"name": "fields", "fields": ("goal",), "dropout": 0.0},
        "prior": {"name": "gpt", "dropout": 0.0},
        "return_target": {"name": "quantile"},
        "planner": {"name": "history", "past_actions": past_actions},
    }
    window = replace(tiny.WINDOW, horizon=4, stride=1, chunk=1, return_power=0.5)
    return policy_of(
        assemble({k: tiny.node(k, **node) for k, node in parts.items()}, tiny.SPACE, window), replan_interval=1
    )


def policy_of(planner: Any, replan_interval: int, **options: Any) -> RecedingHorizonPolicy:
    tiny.shake(planner)
    for maps in (
        planner.normalizer.state,
        planner.normalizer.goal,
        planner.normalizer.action,
        planner.normalizer.returns,
    ):
        maps.mean.uniform_(0.5, 1.0)
        maps.scale.uniform_(0.5, 2.0)
    space = replace(tiny.SPACE, state_offset=OFFSET["state"], goal_offset=OFFSET["goal"])
    return RecedingHorizonPolicy(
        planner,
        planner.normalizer,
        space,
        PolicyOptions(replan_interval=replan_interval, **options),
        discount=0.9,
        chunk=tiny.CHUNK,
    )


BEST_OF_TWO = {"sampler": {"name": "best_of_n", "n": 2}, "critic": "length"}


@pytest.mark.parametrize(
    ("form", "batch", "threshold", "misfit", "parts"),
    [
        pytest.param("onnx", 2, None, "likelihood", {}, marks=pytest.mark.nightly),
        pytest.param("torch_export", 1, -0.15, "likelihood", {}, marks=pytest.mark.nightly),
        ("torch_export", 1, 1.5, "state", {}),
        pytest.param("onnx", 1, 0.0, "critic", BEST_OF_TWO, marks=pytest.mark.nightly),
    ],
)
def test_it_revises_as_the_policy_that_was_loaded(
    form: str, batch: int, threshold: float | None, misfit: Any, parts: dict[str, Any], tmp_path: Path
) -> None:
    """With a threshold some plans are made before the interval is over."""
    planner = tiny.ready_planner(return_target="quantile", schedule={"scales": 2}, **parts)
    loaded = policy_of(planner, 5, revise=2, revise_threshold=threshold, revise_misfit=misfit)
    plans = []
    original = loaded._plan_fn
    loaded._plan_fn = lambda cond, rng: plans.append(int(cond.time[0])) or original(cond, rng)
    before, after = played(loaded, form, batch, tmp_path, draws=True)
    assert plans == [0, NEW_GOALS] if threshold is None else len(plans) > 2 and len(plans) < STEPS
    np.testing.assert_allclose(after[0], before[0], atol=1e-4)
    np.testing.assert_allclose(after[1], before[1], atol=1e-3)


@pytest.mark.parametrize(
    ("form", "batch", "sampler", "temperature"),
    [pytest.param("torch_export", 1, "greedy", 0.0, marks=pytest.mark.nightly), ("onnx", 2, "temperature", 1.0)],
)
def test_it_acts_as_the_policy_that_was_loaded(
    form: str, batch: int, sampler: str, temperature: float, tmp_path: Path
) -> None:
    """Its action head reads the goal, which its plan hands on."""
    action = {"name": "latent_state", "goal": True, "num_bins": 5, "temperature": temperature}
    loaded, exported = played(
        policy(sampler=sampler, action=action), form, batch, tmp_path, draws=sampler == "temperature"
    )
    np.testing.assert_allclose(exported[0], loaded[0], atol=1e-4)
    np.testing.assert_allclose(exported[1], loaded[1], atol=1e-3)


def test_a_full_disk_ends_an_export_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch itself ends the process where it cannot write a program."""
    write = package.write_file

    def refuse(path: Path, content: str | bytes) -> None:
        if path.suffix == ".pt2":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(package, "write_file", refuse)
    with pytest.raises(OSError, match="No space"):
        export(policy(), tmp_path / "out", format="torch_export")
    assert list(tmp_path.iterdir()) == []


FORMS = pytest.mark.parametrize("form", ["torch_export", pytest.param("onnx", marks=pytest.mark.nightly)])


@FORMS
def test_a_team_acts_as_the_policy_that_was_loaded(form: str, tmp_path: Path) -> None:
    """Two agents, with a joint scale and one of each."""
    parts = {
        "view": {"name": "agents"},
        "schedule": {"scales": 2},
        "tokenizer": {"joint_scales": 1},
        "action": {"goal": True, "num_bins": 5},
    }
    loaded = policy_of(tiny.ready_planner(return_target="quantile", **parts), replan_interval=2)
    before, after = played(loaded, form, 2, tmp_path, draws=True)
    assert not np.allclose(before[0][0], before[0][-1], atol=1e-2)
    np.testing.assert_allclose(after[0], before[0], atol=1e-4)
    np.testing.assert_allclose(after[1], before[1], atol=1e-3)


@pytest.mark.parametrize(
    ("form", "batch", "past_actions", "choices"),
    [
        ("onnx", 2, True, ()),
        pytest.param("torch_export", 1, False, (), marks=pytest.mark.nightly),
        pytest.param("onnx", 2, True, (2,), marks=pytest.mark.nightly),  # recorded one-hot, given as numbers
    ],
)
def test_it_continues_a_history_as_the_policy_that_was_loaded(
    form: str, batch: int, past_actions: bool, choices: tuple[int, ...], tmp_path: Path
) -> None:
    policy = continuing(past_actions)
    policy.space = replace(policy.space, choices=choices)
    loaded, exported = played(policy, form, batch, tmp_path, draws=False)
    assert not np.allclose(loaded[0][0], loaded[0][-1], atol=1e-2) or choices
    np.testing.assert_allclose(exported[0], loaded[0], atol=1e-4)
    np.testing.assert_allclose(exported[1], loaded[1], atol=1e-3)


@FORMS
@pytest.mark.parametrize(
    ("planner", "replan_interval"),
    [
        pytest.param({"name": "hierarchy", "segment": 2, "overlap": True}, STEPS, id="hierarchy"),
        pytest.param({"name": "continuing", "past": 2}, 2, id="continuing", marks=pytest.mark.nightly),
    ],
)
def test_it_follows_a_chain_of_legs_and_continues_states_as_the_policy_that_was_loaded(
    planner: dict[str, Any], replan_interval: int, form: str, tmp_path: Path
) -> None:
    """A leg is six steps long."""
    loaded = policy_of(
        tiny.planner(
            view={"fields": ("state",)},
            tokenizer="identity",
            schedule="single",
            prior={"name": "diffusion", "timesteps": 4},
            sampler={"name": "diffusion", "steps": 2},
            decoder="identity",
            action="state",
            planner=planner,
        ),
        replan_interval,
    )
    before, after = played(loaded, form, 2, tmp_path, draws=True)
    np.testing.assert_allclose(after[0], before[0], atol=1e-4)


@pytest.mark.nightly
@FORMS
def test_it_continues_past_transitions_as_the_policy_that_was_loaded(form: str, tmp_path: Path) -> None:
    """Trajectory Transformer's, which plans at every second step."""
    parts: dict[str, Any] = {
        "view": {"fields": ("state", "action", "reward", "return")},
        "tokenizer": {"name": "bins", "inpaint": ("state",)},
        "sampler": {"name": "beam", "branch_fields": ("action",), "temperature": None, "beam_width": 2},
        "conditioner": {"fields": ("state", "goal")},
        "planner": {"name": "continuing", "past": 3},
    }
    nodes = tiny.nodes(**parts, schedule="unit", prior="transformer", decoder="identity", action="plan")
    planner = tiny.shake(assemble(nodes, tiny.SPACE, replace(tiny.WINDOW, horizon=3, chunk=3)))
    before, after = played(policy_of(planner, 2), form, 2, tmp_path, draws=False)
    assert not np.allclose(before[0][0], before[0][-1], atol=1e-2)
    np.testing.assert_allclose(after[0], before[0], atol=1e-4)


def played(loaded: RecedingHorizonPolicy, form: str, batch: int, folder: Path, draws: bool) -> tuple[Any, Any]:
    """The actions and the remaining returns of a policy, and those of its export under the same noise."""
    out = export(loaded, folder / "exported", format=form, batch=batch)
    description = json.loads((out / "policy.json").read_text())
    draws_of = {"noise": description["noise"], "revision": (description["revision"] or {}).get("noise", [])}
    assert bool(draws_of["noise"]) == draws
    rng = np.random.default_rng(0)
    inputs: dict[str, np.ndarray] = {
        "state": rng.normal(size=(STEPS, batch, 4)) + OFFSET["state"],
        "goal": (rng.normal(size=(2, batch, 2)) + OFFSET["goal"]).repeat([NEW_GOALS, STEPS - NEW_GOALS], axis=0),
        "reward": rng.random(size=(STEPS, batch)).astype(np.float32),
    }
    noise = torch.Generator().manual_seed(loaded.options.seed)  # as that of the policy
    loaded.reset(batch=batch)
    actions, remaining = [], []
    for step in range(STEPS):
        is_due = step == NEW_GOALS or bool((loaded._plan_age >= loaded.replan_interval).all())
        what = "noise" if is_due else "revision"
        for n, one in enumerate(draws_of[what]):
            values = Draw(one["kind"], tuple(one["shape"])).sample(noise, torch.device("cpu"))
            inputs[f"{what}_{step}_{n}"] = values.numpy()
        actions.append(loaded.act({"observation": inputs["state"][step], "desired_goal": inputs["goal"][step]}))
        loaded.observe(inputs["reward"][step], np.zeros(batch, dtype=bool))
        remaining.append(loaded._remaining.numpy())
    np.savez(folder / "given.npz", **inputs)
    words = ["-c", str(out), str(folder / "given.npz")]
    if form == "onnx":
        command = [sys.executable, "-c", ALONE, *words[1:]]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    else:  # torch is here already
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as stream:
            patch.setattr(sys, "argv", words)
            patch.setattr(sys, "path", [*sys.path])
            patch.setitem(sys.modules, "trajgen", None)
            exec(ALONE, {})
            del sys.modules["policy"]
        output = stream.getvalue()
    return (actions, remaining), json.loads(output.splitlines()[-1])


def test_the_command_exports_a_run_for_the_cpu_whatever_it_acts_with(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "export", lambda policy, out, **options: out.mkdir())
    words = ["export", f"run={run}", f"out={tmp_path / 'exported'}"]
    main([*words, "policy.backend=cuda_graph"])
    with pytest.raises(SystemExit):
        main([*words, "device=cuda"])
    assert "runs on the CPU" in capsys.readouterr().err


def test_its_plans_have_the_seed_of_the_policy(tmp_path: Path) -> None:
    planner = tiny.planner(return_target="quantile", schedule={"scales": 2})
    out = export(policy_of(planner, 2, seed=5), tmp_path / "exported", format="torch_export")
    first, same, other = (exported_policy.Policy(out, seed=seed).draw()[0] for seed in (None, 5, 0))
    assert (first == same).all() and (first != other).any()


@pytest.mark.parametrize(
    ("changes", "message"), [({"format": "tflite"}, r"no export format[\s\S]*format=onnx"), ({"batch": 0}, r"batch=1")]
)
def test_what_cannot_be_exported_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        export(policy(), tmp_path / "exported", **changes)
    assert not (tmp_path / "exported").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        export(policy(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
