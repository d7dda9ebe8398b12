"""Pictures of plans, coarse to fine, over the map of a maze or as curves; and the pictures of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trajgen.core.files import read_metrics
from trajgen.core.observations import entry
from trajgen.core.planning import subgoal_of
from trajgen.evaluation.rollout import first_observations
from trajgen.viz.figure import GOAL, INK, LINES, SOFT, WALL, most_varied, new_figure, time_colors
from trajgen.viz.returns import draw_returns
from trajgen.viz.training import draw_losses

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from trajgen.core.types import Cond, Plan
    from trajgen.envs.eval_env import EvalEnv
    from trajgen.evaluation.evaluate import Evaluation
    from trajgen.policies.receding_horizon import RecedingHorizonPolicy

Walls = Sequence[tuple[float, float, float, float]]
"""Rectangles (x, y, width, height), where (x, y) is the lower left corner, in the environment's units."""
Limits = tuple[NDArray[Any], NDArray[Any]]
"""The lowest and the highest usual states (S,) of the data."""

EPISODES = 3
"""Episodes of an evaluation whose plans are drawn."""
PANEL = 2.5  # inches
MIN_WIDTH = 5.0  # inches; what the keys below the panels need
MOST_COLUMNS = 5
MOST_FEATURES = 6
DOTTED: dict[str, Any] = {"color": SOFT, "lw": 1.0, "ls": (0, (2, 1.6)), "zorder": 2}
"""How paths look that are not the main one."""


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
    """Draws learning curves, returns, and the first plans of some episodes of an evaluation into ``plots/``.

    Args:
        first_seed: of the evaluation's episodes.
        stride: environment steps between the points of a plan that does not name its own.

    Returns:
        The pictures' paths, relative to the folder.
    """
    plots = folder / "plots"
    pictures = []
    rollouts, controller = evaluation.rollouts, evaluation.controller
    seeds = range(first_seed, first_seed + min(EPISODES, len(rollouts.states)))
    for seed, observation in first_observations(eval_env, seeds).items():
        executed = rollouts.states[seed - first_seed]
        cond, plan, refinements = policy.preview([observation])
        path = plots / f"plan_episode_{seed}.png"
        steps = stride_of(plan, stride)
        if draw_plans(path, policy, eval_env, observation, refinements, executed, cond=cond, stride=steps):
            pictures.append(path)
    if controller is not None:
        pictures.append(plots / "returns.png")
        draw_returns(pictures[-1], rollouts.returns, controller.returns)
    if draw_losses(plots / "training.png", read_metrics(metrics)):
        pictures.append(plots / "training.png")
    return [str(path.relative_to(folder)) for path in pictures]


def stride_of(plan: Plan, usual_stride: int) -> int:
    """The environment steps between the points of the first plan, the usual ones unless plans have several strides."""
    return usual_stride if plan.stride is None else int(plan.stride[0])


def draw_plans(
    path: Path,
    policy: RecedingHorizonPolicy,
    eval_env: EvalEnv,
    observation: Any,
    refinements: Mapping[str, Tensor],
    executed: NDArray[Any] | None = None,
    *,
    cond: Cond | None = None,
    stride: int = 1,
    limits: Limits | None = None,
) -> bool:
    """Draws plans after each scale, coarse to fine: over the map where there is one, else as curves.

    Args:
        refinements: by title, the plans (n, T, D) decoded after each scale, normalized.
        executed: the states (m, S) that were then visited, one a step of the environment.
        cond: what the plans were made for; a subgoal is marked on the map.
        stride: environment steps between the points of a plan.

    Returns:
        Whether there was a plan of states to draw.
    """
    states = planned_states(policy, eval_env, refinements)
    if not states:  # no plan, or one of actions alone
        return False
    plans, titles = np.stack(list(states.values())), list(states)
    if executed is not None and not len(executed):
        executed = None
    if eval_env.walls is None:
        name = "recorded" if eval_env.replayed_episodes else "executed"
        visited = None if executed is None else executed[::stride]
        plan_curves(path, plans, titles, executed=visited, limits=limits, name=name)
        return True
    start = entry(observation, policy.space.state_key)[:2]
    goal = entry(observation, policy.space.goal_key)[:2] if policy.space.goal_key else None
    visited = None if executed is None else executed[:, :2]
    subgoal = None if cond is None else planned_subgoal(policy, cond)
    plan_maps(path, eval_env.walls, plans[..., :2], start, goal, visited, titles, subgoal)
    return True


def planned_subgoal(policy: RecedingHorizonPolicy, cond: Cond) -> NDArray[Any] | None:
    """The subgoal (G,) of the first plan, in the environment's units; None of a planner without subgoals."""
    if cond.goal is None or subgoal_of(policy.planner) is None:
        return None
    goal: NDArray[Any] = policy.normalizer.goal.inverse(cond.goal[0]).float().cpu().numpy()
    return goal + np.asarray(policy.space.goal_offset or 0.0)


def planned_states(
    policy: RecedingHorizonPolicy, eval_env: EvalEnv, refinements: Mapping[str, Tensor]
) -> dict[str, NDArray[Any]]:
    """By title, the states (n, T, S) of plans (n, T, D), or on a map the positions (n, T, G); in the data's units."""
    if not refinements:
        return {}
    view, units = policy.planner.view, policy.normalizer.state
    field = "position" if eval_env.walls is not None and "state" not in view.slices else "state"
    offset = np.asarray(policy.space.state_offset or 0.0)
    if field == "position":
        units = units.part(view.position_indices)
        offset = offset[view.position_indices] if offset.ndim else offset
    states = {title: view.read(x, field) for title, x in refinements.items()}
    width = policy.space.vector_dim if field == "state" else len(units.mean)  # features of images are not drawn
    in_units = {
        t: units.inverse(x).float().cpu().numpy() + offset for t, x in states.items() if x is not None and width
    }
    return {title: values[..., :width] for title, values in in_units.items()}


def draw_maze(ax: Axes, walls: Walls) -> None:
    """Draws wall rectangles, true to scale, without axes; most of the outer wall is cut off."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    patches = [Rectangle((x, y), width, height) for x, y, width, height in walls]
    ax.add_collection(PatchCollection(patches, facecolor=WALL, edgecolor=WALL, linewidth=0.5, zorder=0))
    left, bottom, right, top = _visible(walls)
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    ax.axis("off")


def _visible(walls: Walls) -> tuple[float, float, float, float]:
    """Left, bottom, right and top of what is shown of a maze."""
    rectangles = np.asarray(walls, dtype=float).reshape(-1, 4)
    inset = 0.7 * rectangles[:, 2:].min()
    low = rectangles[:, :2].min(0) + inset
    high = (rectangles[:, :2] + rectangles[:, 2:]).max(0) - inset
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def draw_goal(ax: Axes, goal: ArrayLike, size: float = 14) -> Any:
    """Draws a star at a goal (2,)."""
    return ax.plot(*np.asarray(goal)[:2], "*", color=GOAL, mec="white", mew=0.8, ms=size, zorder=5, label="goal")[0]


def draw_subgoal(ax: Axes, subgoal: ArrayLike) -> Any:
    """Draws a diamond at a subgoal (2,)."""
    x, y = np.asarray(subgoal)[:2]
    return ax.plot([x], [y], "D", color="white", mec=GOAL, mew=1.5, ms=6.5, zorder=4.5, label="subgoal")[0]


def plan_maps(
    path: Path,
    walls: Walls,
    plans: NDArray[Any],
    start: ArrayLike,
    goal: ArrayLike | None,
    executed: NDArray[Any] | None,
    titles: Sequence[str],
    subgoal: ArrayLike | None = None,
) -> None:
    """Draws planned positions (K, n, T, 2) over the maze, one panel a scale, and the executed path (m, 2) last.

    A ``subgoal`` (2,) is marked in the plans' panels: later plans of the executed path had others.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection

    executed = np.empty((0, 2)) if executed is None else executed
    panels = len(plans) + (len(executed) > 0)
    rows = -(-panels // MOST_COLUMNS)
    columns = -(-panels // rows)
    left, bottom, right, top = _visible(walls)
    side = max(PANEL, MIN_WIDTH / columns)
    height = rows * (side * (top - bottom) / (right - left) + 0.25) + 0.45
    with new_figure(side * columns, height, path, "compressed") as figure:
        colors = time_colors()
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax in axes[panels:]:
            ax.axis("off")
        for k, ax in enumerate(axes[:panels]):
            draw_maze(ax, walls)
            if k < len(plans):
                paths, width, title = plans[k], 1.3, titles[k]
            else:
                paths, width, title = executed[None], 2.4, f"executed ({len(executed) - 1} steps)"
                ax.plot(*plans[-1].transpose(2, 1, 0), **DOTTED)[0].set_label("plan")
            for points in paths:
                time = np.linspace(0, 1, len(points))
                line = LineCollection(list(pairwise(points)), cmap=colors, array=time[:-1], capstyle="round", zorder=3)
                line.set_linewidth(width)
                ax.add_collection(line)
                if k < len(plans):
                    ax.scatter(*points.T, c=time, cmap=colors, s=11, linewidths=0, zorder=4)
            ax.plot(*np.asarray(start), "o", color="white", mec=INK, mew=1.3, ms=6.5, zorder=5, label="start")
            if goal is not None:
                draw_goal(ax, goal)
            if subgoal is not None and k < len(plans):
                draw_subgoal(ax, subgoal)
            ax.set_title(title)
        legend = {label: mark for ax in axes for mark, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        bar = figure.colorbar(
            ScalarMappable(cmap=colors), ax=axes.tolist(), orientation="horizontal",
            fraction=0.035, aspect=35, shrink=0.25, pad=0.02, ticks=[0, 1], anchor=(0.03, 0.5),
        )  # fmt: skip
        bar.ax.set_xticklabels(["first step", "last step"])
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
        figure.legend(
            legend.values(), legend.keys(), loc="lower right", ncols=len(legend), handletextpad=0.4, fontsize=9
        )


def draw_limits(ax: Axes, limits: Limits, feature: int) -> None:
    """Draws the usual range of a feature behind its curves."""
    ax.axhspan(limits[0][feature], limits[1][feature], color=SOFT, alpha=0.15, lw=0, zorder=0, label="98 % of the data")


def plan_curves(
    path: Path,
    plans: NDArray[Any],
    titles: Sequence[str],
    *,
    executed: NDArray[Any] | None = None,
    name: str = "executed",
    limits: Limits | None = None,
) -> None:
    """Draws planned states (K, n, T, S) over time: a row for each of the features that vary most, a column a scale.

    ``executed`` are the states (T, S) that followed, at the plan's points in time; ``name`` says how.
    """
    features = most_varied(plans[-1], MOST_FEATURES)
    with new_figure(max(4.0, 2.1 * len(plans) + 0.6), 1.25 * len(features) + 0.9, path) as figure:
        axes = figure.subplots(len(features), len(plans), squeeze=False, sharex=True, sharey="row")
        for row, feature in zip(axes, features, strict=True):
            for ax, scale in zip(row, plans, strict=True):
                if limits is not None:
                    draw_limits(ax, limits, feature)
                lines = ax.plot(scale[:, :, feature].T, color=LINES[0], lw=1.2, alpha=0.75)
                lines[0].set_label("plan" if len(lines) == 1 else "plans")
                if executed is not None:
                    ax.plot(executed[: plans.shape[2], feature], color=LINES[1], lw=1.4, ls="--", label=name)
                ax.grid(True, axis="y")
            row[0].set_ylabel(f"state {feature}")
        for ax, title in zip(axes[0], titles, strict=True):
            ax.set_title(title)
        for ax in axes[-1]:
            ax.set_xlabel("point of the plan")
        if executed is not None or limits is not None:
            figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower right", ncols=3)
