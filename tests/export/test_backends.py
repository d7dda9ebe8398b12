"""Plans by a program are those of the planner as it is written: same codes under the same seed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from rich.console import Console
from torch import Generator

from trajgen.config import compose
from trajgen.core.errors import ConfigError
from trajgen.core.types import Plan
from trajgen.experiments import training
from trajgen.experiments.preparation import dry_run
from trajgen.export.backends import Programs, pad_rows, plan_fn
from trajgen.export.plan_module import PlanModule, Tensors, cond_from, cond_tensors, plan_from
from trajgen.policies.options import PolicyOptions
from trajgen.policies.receding_horizon import RecedingHorizonPolicy
from trajgen.testing.fixture import walks


def planner(**swaps: Any) -> Any:
    built = tiny.planner(return_target="quantile", **swaps)
    tiny.shake(built)
    return built.eval()


def test_a_condition_is_what_its_tensors_make() -> None:
    cond = tiny.cond(3)
    again = cond_from(cond_tensors(cond))
    assert all(torch.equal(v, getattr(again, k)) for k, v in vars(cond).items() if isinstance(v, torch.Tensor))


def test_values_are_filled_up_with_their_last_row() -> None:
    values = torch.arange(6.0).view(6, 1)  # three plans of two rows
    assert pad_rows(values, 3, 4).flatten().tolist() == [0, 1, 2, 3, 4, 5, 5, 5]
    assert pad_rows(values, 6, 6) is values


class Sizes(Programs):
    """Programs that are the planner as it is written; notes for which sizes one was prepared."""

    def __init__(self, module: PlanModule) -> None:
        self.sizes: list[int] = []
        super().__init__(module, self.prepared)

    def prepared(self, module: PlanModule, inputs: Tensors, noise: list[torch.Tensor]) -> Any:
        self.sizes.append(len(inputs["state"]))
        return module


@torch.no_grad()
@pytest.mark.parametrize("sampler", ["temperature", "best_of_n", "beam", "greedy"])
def test_padding_to_a_few_sizes_changes_no_plan(sampler: str) -> None:
    built = tiny.ready_planner(return_target="quantile", sampler=sampler).eval()  # of codes that are in use
    eager, programs = plan_fn("eager", built), Sizes(PlanModule(built))
    for batch in (3, 4, 1, 300):
        cond = tiny.cond(batch)
        _, expected = eager(cond, Generator().manual_seed(5))
        _, plan = plan_from(programs(cond_tensors(cond), Generator().manual_seed(5)))
        if batch <= 256:  # more are planned in turn, so that they draw in another order
            assert torch.equal(plan.codes, expected.codes)
            torch.testing.assert_close(plan.latent, expected.latent)
        assert len(plan.codes) == batch
    assert programs.sizes == [4, 1, 256, 64]


@torch.no_grad()
def test_onnx_draws_the_same_codes() -> None:
    built = planner(schedule={"scales": 2})
    eager, onnx = plan_fn("eager", built), plan_fn("onnx", built)
    rng, other_rng = Generator().manual_seed(1), Generator().manual_seed(1)
    for _ in range(3):  # the generators stay in step
        cond = tiny.cond(3)  # filled up to 4; a policy plans for one and two
        target, plan = eager(cond, rng)
        other_target, other_plan = onnx(cond, other_rng)
        assert torch.equal(other_plan.codes, plan.codes)
        torch.testing.assert_close(other_plan.latent, plan.latent, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(other_target, target, atol=1e-4, rtol=1e-4)
        assert other_plan.goal is not None and torch.equal(other_plan.goal, cond.goal)  # which action heads may read


@torch.no_grad()
def test_onnx_plans_for_the_same_subgoals() -> None:
    built = planner(schedule={"scales": 2}, subgoal={"name": "graph", "landmarks": 64, "reach": 1})
    built.subgoal.fit(*walks())
    cond = tiny.cond(8)
    _, plan = plan_fn("eager", built)(cond, Generator().manual_seed(1))
    _, other = plan_fn("onnx", built)(cond, Generator().manual_seed(1))
    assert plan.goal is not None and not torch.equal(plan.goal, cond.goal)
    torch.testing.assert_close(other.goal, plan.goal)
    assert torch.equal(other.codes, plan.codes)


def played(backend: Any) -> tuple[list[np.ndarray], Plan]:
    """The actions of a policy with four episodes, three of which start anew in the middle; programs are for four."""
    built = planner(action="plan", view={"fields": ("state", "action")}, sampler="greedy", schedule="single")
    policy = RecedingHorizonPolicy(
        built,
        built.normalizer,
        tiny.SPACE,
        PolicyOptions(replan_interval=2, backend=backend),
        discount=0.99,
        chunk=tiny.CHUNK,
    )
    policy.reset(batch=4)
    rng, actions = np.random.default_rng(0), []
    for step in range(4):
        state, goal = rng.normal(size=(4, 4)), rng.normal(size=(4, 2))
        actions.append(policy.act({"observation": state, "desired_goal": goal}))
        policy.observe(np.ones(4), [step == 2] * 3 + [False])
    assert policy._plan is not None
    return actions, policy._plan


def test_a_policy_acts_alike_whatever_runs_its_plans() -> None:
    expected, plan = played("eager")
    actions, other_plan = played("onnx")
    np.testing.assert_allclose(actions, expected, atol=1e-4)
    assert plan.trajectory is not None and other_plan.trajectory is not None


def test_a_backend_of_another_device_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"policy.backend=cuda_graph needs device=cuda"):
        plan_fn("cuda_graph", planner())


GUIDED = ["recipe=diffuser", "prior.value=true", "sampler.value_scale=0.1"]


@pytest.mark.parametrize(
    ("words", "installed", "message"),
    [
        (["policy.backend=cuda_graph"], True, "needs device=cuda"),
        (["policy.backend=onnx", *GUIDED], True, r"takes no gradients[\s\S]*sampler.value_scale=0"),
        (["policy.backend=onnx"], False, "not installed: onnx, onnxscript, onnxruntime"),
    ],
)
def test_a_backend_that_cannot_act_is_refused_before_data_are_loaded(
    words: list[str], installed: bool, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "load_episodes", lambda *_: pytest.fail("data are loaded"))
    if not installed:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = compose(["device=cpu", f"run_dir={tmp_path / 'run'}", *words])
    with pytest.raises(ConfigError, match=message):
        training.train(config, Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_what_another_machine_has_is_left_to_it() -> None:
    dry_run(compose(["policy.backend=cuda_graph", *GUIDED]))  # a graph may take gradients
    with pytest.raises(ConfigError, match="takes no gradients"):
        dry_run(compose(["policy.backend=onnx", *GUIDED]))


def test_a_plan_that_takes_gradients_is_refused_with_what_to_do() -> None:
    built = planner(
        tokenizer={"name": "identity", "tokens": "point"},
        schedule="single",
        prior={"name": "diffusion", "value": True},
        sampler={"name": "diffusion", "value_scale": 0.1},
        decoder="identity",
        action="plan",
        view={"fields": ("state", "action")},
    )
    with pytest.raises(ConfigError, match=r"takes no gradients[\s\S]*sampler.value_scale=0"):
        plan_fn("onnx", built)(tiny.cond(1), None)
