"""Plans, coarse to fine, and what an evaluation leaves in pictures: how the run learnt, scored and planned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trajgen.core.observations import entry

if TYPE_CHECKING:
    from torch import Tensor

    from trajgen.envs.eval_env import EvalEnv
    from trajgen.evaluation.evaluate import Evaluation
    from trajgen.policies.receding_horizon import RecedingHorizonPolicy

EPISODES = 3
"""Episodes whose plans are drawn."""


def draw_run(
    folder: Path,
    metrics: Path,
    policy: RecedingHorizonPolicy,
    eval_env: EvalEnv,
    evaluation: Evaluation,
    first_seed: int,
    *,
    stride: int = 1,
) -> list[str]:
    """Draws learning curves, returns, and the first plans of some episodes into ``plots/``.

    Args:
        folder: that gets the pictures.
        metrics: of the training; no curves where the file is missing.
        policy: that was evaluated.
        world: in which it was.
        evaluation: what came of it.
        first_seed: of its episodes.
        stride: environment steps between the points of a plan.

    Returns:
        The pictures' paths, relative to the folder.
    """
    from trajgen.viz.plots import returns_figure

    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    drawn = []
    for index in range(min(EPISODES, len(evaluation.rollouts.states))):
        path = plots / f"plan_episode_{first_seed + index}.png"
        (observation,) = first_observations(eval_env, range(first_seed + index, first_seed + index + 1))
        _, _, refinements = policy.preview([observation])
        executed = evaluation.rollouts.states[index]
        if draw_plans(path, policy, eval_env, observation, refinements, executed, stride=stride):
            drawn.append(path)
    if evaluation.controller is not None:
        drawn.append(plots / "returns.png")
        returns_figure(drawn[-1], evaluation.rollouts.returns, evaluation.controller.returns)
    if draw_training(plots / "training.png", metrics):
        drawn.append(plots / "training.png")
    return [str(path.relative_to(folder)) for path in drawn]


def draw_training(path: Path, metrics: Path) -> bool:
    """Draws all losses of a training; returns whether there was a training to draw."""
    from trajgen.viz.plots import training_figure

    if not metrics.exists():
        return False
    training_figure(path, metrics, losses=sorted(_losses(metrics)))
    return True


def first_observations(eval_env: EvalEnv, seeds: range) -> list[Any]:
    """The first observations of the episodes of these seeds."""
    from trajgen.evaluation.rollout import environments

    with environments(eval_env, 1) as (environment,):
        return [eval_env.reset(environment, seed)[0] for seed in seeds]


def draw_plans(
    path: Path,
    policy: RecedingHorizonPolicy,
    eval_env: EvalEnv,
    observation: Any,
    refinements: Mapping[str, Tensor],
    executed: np.ndarray | None = None,
    *,
    stride: int = 1,
    limits: tuple[np.ndarray, np.ndarray] | None = None,
) -> bool:
    """Draws plans after each scale, coarse to fine: over the map where there is one, else as curves.

    Args:
        path: of the picture.
        policy: that made the plans.
        world: with or without a map.
        observation: from which they were made.
        refinements: the plans as they grew, (n, T, D) by what was known, normalized; nothing is drawn of none.
        executed: the states (m, S) that were then visited, one a step of the environment.
        stride: environment steps between the points of a plan.
        limits: the lowest and the highest usual states (S,) of the data, drawn behind the curves.

    Returns:
        Whether there was a plan of states to draw.
    """
    from trajgen.viz.plots import curves_figure, plan_figure

    states = planned_states(policy, eval_env, refinements)
    if not states:  # no plan, or one of actions alone
        return False
    own, titles = np.stack(list(states.values())), list(states)
    if eval_env.walls is None:
        followed = None if executed is None or not len(executed) else executed[::stride]
        curves_figure(path, own, titles, executed=followed, limits=limits)
        return True
    start = entry(observation, policy.space.state_key)[:2]
    goal = entry(observation, policy.space.goal_key)[:2] if policy.space.goal_key else None
    walked = None if executed is None or not len(executed) else executed[:, :2]
    plan_figure(path, eval_env.walls, own[..., :2], start, goal, walked, titles)
    return True


def planned_states(
    policy: RecedingHorizonPolicy, eval_env: EvalEnv, refinements: Mapping[str, Tensor]
) -> dict[str, np.ndarray]:
    """The states (n, T, S) of plans (n, T, D), or on a map their places (n, T, G), in the data's units; else none."""
    if not refinements:
        return {}
    view, units = policy.planner.view, policy.normalizer.state
    field = "position" if eval_env.walls is not None and "state" not in view.slices else "state"
    found = {title: view.read(x, field) for title, x in refinements.items()}
    inverse = (units.part(view.position_indices) if field == "position" else units).inverse
    return {title: inverse(x).float().cpu().numpy() for title, x in found.items() if x is not None}


def _losses(path: Path) -> set[str]:
    from trajgen.core.files import read_metrics

    aside = {"stage", "stage_index", "step", "seconds", "windows_per_second", "gradient_norm"}
    rows: list[dict[str, Any]] = read_metrics(path)
    return {key for row in rows for key in row if key not in aside and "/" not in key}
