"""A task that must be learnt: a point in the plane glides towards its goal, and the plan must know where to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tiny
import torch
from rich.console import Console
from torch import Tensor

from trajgen.core.stages import Stage
from trajgen.core.types import Batch, Cond, Losses, Plan, Space
from trajgen.engine.loop import Training
from trajgen.engine.options import EngineOptions, StageOptions

PLANE = Space(state_dim=2, action_dim=2, goal_dim=2)
PULL = 0.2
"""Share of the way to the goal that a step covers."""
WEIGHTS = {("prior", "condition"): 0.1, ("prior", "reconstruction"): 0.1}
"""Of losses in their stage's total, where it is not 1."""

STEPS = {"tokenizer": 150, "return_target": 80, "prior": 250, "action": 50}
"""Of each stage."""
LIMITS = {
    ("tokenizer", "reconstruction"): 0.03,
    ("tokenizer", "commitment"): 0.01,
    ("tokenizer", "agreement"): 0.03,
    ("return_target", "distribution"): 2.6,
    ("prior", "prior"): 1.7,
    ("prior", "inverse"): 0.12,
    ("prior", "condition"): 0.15,
    ("prior", "reconstruction"): 0.03,
    ("action", "inverse"): 0.08,
}
"""The highest value of each loss at the end of its stage, by stage and loss."""


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
    windows = Glides().batch(10**6, 256)
    cond: Cond = windows.condition()
    plan: Plan = planner.eval().plan(cond, torch.Generator().manual_seed(0))
    states = planner.view.read(plan.trajectory, "state")
    offsets = torch.arange(tiny.CHUNK).expand(256, -1)
    with torch.no_grad():
        actions = planner.action(plan, windows.chunk_states, offsets)

    def distance(one: Tensor, other: Tensor) -> float:
        return float((one - other).square().mean().sqrt())

    controls = (plan.latent.roll(1, 0), torch.zeros_like(plan.latent))
    with torch.no_grad():
        decoded = [planner.view.read(planner.decoder(latent, cond), "state")[:, 0] for latent in controls]
    return Errors(
        distance(states[:, 0], windows.states[:, 0]),
        distance(states[:, -1], windows.states[:, -1]),
        distance(actions, windows.chunk_actions),
        *(distance(start, windows.states[:, 0]) for start in decoded),
    )


@dataclass
class Learnt:
    """Errors before and after a training, and the last line of the log of each stage."""

    before: Errors
    after: Errors
    losses: dict[str, dict[str, float]]


def learn(
    folder: Path,
    reversed_loss: tuple[str, str] | None = None,
    *,
    steps: Mapping[str, int] = STEPS,
    **planner_options: Any,
) -> Learnt:
    """Trains a small MAGE on glides.

    Args:
        folder: of the training.
        reversed_loss: a stage and a loss, whose sign is changed.
        steps: of each stage.
        planner_options: besides a stage of the action head.
    """
    torch.manual_seed(0)
    planner = tiny.planner(
        space=PLANE,
        tokenizer={"codebook_size": 64, "code_dim": 8, "width": 32},
        conditioner={"width": 32},
        prior={"width": 32, "depth": 2},
        decoder={"width": 32},
        action={"name": "latent", "width": 64},
        sampler={"name": "temperature", "temperature": 0.5},
        return_target={"name": "quantile", "width": 32, "depth": 2, "num_bins": 21},
        planner={"action_stage": True, **planner_options},
    )
    before = measure(planner)
    stages = {name: StageOptions(steps=n, batch_size=128, lr=4e-3, ema_decay=0.98) for name, n in steps.items()}
    options = EngineOptions(stages=stages, precision="float32", log_every=10)
    console = Console(quiet=True)
    trained = [_with_reversed(stage, reversed_loss) for stage in planner.stages()]
    Training(planner, trained, Glides(), options, folder, 0, torch.device("cpu"), console).run()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return Learnt(before, measure(planner), {line["stage"]: line for line in lines})


def broken_promises(learnt: Learnt, limits: Mapping[tuple[str, str], float]) -> list[str]:
    """The losses that are not between 0 and their limit at the end of their stage."""
    values = {(stage, name): learnt.losses[stage][name] for stage, name in limits}
    return [f"{loss}: {value}" for loss, value in values.items() if not 0 <= value <= limits[loss]]


def _with_reversed(stage: Stage, reversed_loss: tuple[str, str] | None) -> Stage:
    if reversed_loss is None or stage.name != reversed_loss[0]:
        return stage
    name, weight = reversed_loss[1], WEIGHTS.get(reversed_loss, 1.0)

    def loss(batch: Batch) -> Losses:
        losses = stage.loss(batch)
        return losses | {"total": losses["total"] - 2 * weight * losses[name]}

    return replace(stage, loss=loss)
