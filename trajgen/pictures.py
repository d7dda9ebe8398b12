"""The pictures of a run: how it learnt, how it scored, and its plans, coarse to fine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from trajgen.data.worlds import World
    from trajgen.evaluation.evaluate import Evaluation
    from trajgen.policies.receding_horizon import RecedingHorizonPolicy

EPISODES = 3
"""Episodes whose plans are drawn."""


def draw_run(
    folder: Path, metrics: Path, policy: RecedingHorizonPolicy, world: World, evaluation: Evaluation, first_seed: int
) -> list[str]:
    """Draws learning curves, returns, and the first plans of some episodes into ``plots/``.

    Args:
        folder: that gets the pictures.
        metrics: of the training; no curves where the file is missing.
        policy: that was evaluated.
        world: in which it was.
        evaluation: what came of it.
        first_seed: of its episodes.

    Returns:
        The pictures' paths, relative to the folder.
    """
    from trajgen.evaluation.plots import returns_figure, training_figure
    from trajgen.evaluation.rollout import environments

    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    drawn = []
    for index in range(min(EPISODES, len(evaluation.rollouts.states))):
        path = plots / f"plan_episode_{first_seed + index}.png"
        with environments(world, 1) as (environment,):
            observation = environment.reset(seed=first_seed + index)[0]
        _, _, refinements = policy.preview([observation])
        if draw_plans(path, policy, world, observation, refinements, evaluation.rollouts.states[index]):
            drawn.append(path)
    if evaluation.controller is not None:
        drawn.append(plots / "returns.png")
        returns_figure(drawn[-1], evaluation.rollouts.returns, evaluation.controller.returns)
    if metrics.exists():
        drawn.append(plots / "training.png")
        training_figure(drawn[-1], metrics, losses=sorted(_losses(metrics)))
    return [str(path.relative_to(folder)) for path in drawn]


def draw_plans(
    path: Path,
    policy: RecedingHorizonPolicy,
    world: World,
    observation: Any,
    refinements: Mapping[str, Tensor],
    executed: np.ndarray | None = None,
) -> bool:
    """Draws plans after each scale, coarse to fine: over the map where there is one, else as curves.

    Args:
        path: of the picture.
        policy: that made the plans.
        world: with or without a map.
        observation: from which they were made.
        refinements: the plans as they grew, (n, T, D) by what was known, normalised; nothing is drawn of none.
        executed: the states (m, S) that were then visited.

    Returns:
        Whether there was a plan of states to draw.
    """
    import torch

    from trajgen.evaluation.plots import curves_figure, plan_figure

    states = {title: policy.planner.view.read(x, "state") for title, x in refinements.items()}
    known = [x for x in states.values() if x is not None]
    if not known:  # no plan, or one of actions alone
        return False
    own, titles = policy.normaliser.state.inverse(torch.stack(known)).cpu().numpy(), list(states)
    if world.walls is None:
        curves_figure(path, own, titles, executed=executed)
        return True
    key, goal_key = policy.space.state_key, policy.space.goal_key
    start = (observation[key] if key else observation)[:2]
    goal = observation[goal_key] if goal_key else None
    walked = None if executed is None or not len(executed) else executed[:, :2]
    plan_figure(path, world.walls, own[..., :2], start, goal, walked, titles)
    return True


def _losses(path: Path) -> set[str]:
    from trajgen.evaluation.plots import read_metrics

    aside = {"stage", "stage_index", "step", "seconds", "windows_per_second", "gradient_norm"}
    rows: list[dict[str, Any]] = read_metrics(path)
    return {key for row in rows for key in row if key not in aside and "/" not in key}
