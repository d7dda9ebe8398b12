"""A task that must be learnt: a point in the plane glides towards its goal, and the plan must know where to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from rich.console import Console
from torch import Tensor

from trajgen.core.types import Batch, Cond, Plan, Space
from trajgen.engine.loop import Training
from trajgen.engine.options import EngineOptions, StageOptions

PLANE = Space(state_dim=2, action_dim=2, goal_dim=2)
PULL = 0.2
"""Share of the way to the goal that a step covers."""


@dataclass
class Glides:
    """Windows of points that cover a share of the way to their goal at each step; the return says how far it is."""

    def batch(self, step: int, size: int, rank: int = 0) -> Batch:
        random = torch.Generator().manual_seed(step)
        start, goal = (torch.rand(2, size, 2, generator=random) * 2 - 1) * 1.7
        left = (1 - PULL) ** torch.arange(tiny.HORIZON)
        states = goal[:, None] + (start - goal)[:, None] * left[:, None]
        actions = (goal[:, None] - states) * PULL * 4
        returns = (goal[:, None] - states).norm(dim=-1) - 1.5
        real = torch.ones(size, tiny.HORIZON, dtype=torch.bool)
        chunk = slice(0, tiny.CHUNK)
        return Batch(states, actions, returns, returns, real, states[:, chunk], actions[:, chunk], real[:, chunk], goal)


@dataclass
class Errors:
    """Root mean squares over plans, in standard deviations: where they start and end, and what they do first."""

    start: float
    end: float
    action: float
    start_of_other_latent: float
    start_of_zero_latent: float


def measure(planner: Any) -> Errors:
    known = Glides().batch(10**6, 256)
    cond: Cond = known.condition()
    plan: Plan = planner.eval().plan(cond, torch.Generator().manual_seed(0))
    states = planner.view.read(plan.trajectory, "state")
    offsets = torch.arange(tiny.CHUNK).expand(256, -1)
    with torch.no_grad():
        actions = planner.action(plan, known.chunk_states, offsets)

    def distance(one: Tensor, other: Tensor) -> float:
        return float((one - other).square().mean().sqrt())

    controls = (plan.latent.roll(1, 0), torch.zeros_like(plan.latent))
    with torch.no_grad():
        decoded = [planner.view.read(planner.decoder(latent, cond), "state")[:, 0] for latent in controls]
    return Errors(
        distance(states[:, 0], known.states[:, 0]),
        distance(states[:, -1], known.states[:, -1]),
        distance(actions, known.chunk_actions),
        *(distance(start, known.states[:, 0]) for start in decoded),
    )


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> tuple[Errors, Errors]:
    """Before and after training."""
    torch.manual_seed(0)
    planner = tiny.planner(
        space=PLANE,
        tokenizer={"codebook_size": 64, "code_dim": 8, "width": 32},
        conditioner={"width": 32},
        prior={"width": 32, "depth": 2},
        decoder={"width": 32},
        action={"name": "latent", "width": 64},
        sampler={"name": "temperature", "temperature": 0.5},
    )
    before = measure(planner)
    stages = {
        "tokenizer": StageOptions(steps=150, batch_size=128, lr=4e-3, ema_decay=0.98),
        "prior": StageOptions(steps=250, batch_size=128, lr=4e-3, ema_decay=0.98),
    }
    folder: Path = tmp_path_factory.mktemp("tiny")
    options = EngineOptions(stages=stages, precision="float32")
    console = Console(quiet=True)
    Training(planner, planner.stages(), Glides(), options, folder, 0, torch.device("cpu"), console).run()
    return before, measure(planner)


def test_plans_start_where_they_were_asked_to(errors: tuple[Errors, Errors]) -> None:
    before, after = errors
    assert after.start < 0.3
    assert after.start < 0.3 * before.start


def test_only_the_plans_own_latent_starts_where_it_was_asked_to(errors: tuple[Errors, Errors]) -> None:
    """A decoder that copies the condition would start there with any latent, and L_cond would train nothing."""
    _, after = errors
    assert after.start_of_other_latent > 3 * after.start and after.start_of_zero_latent > 3 * after.start


def test_plans_end_at_the_goal(errors: tuple[Errors, Errors]) -> None:
    before, after = errors
    assert after.end < 0.4
    assert after.end < 0.5 * before.end


def test_actions_lead_there(errors: tuple[Errors, Errors]) -> None:
    before, after = errors
    assert after.action < 0.35
    assert after.action < 0.4 * before.action
