"""Returns against returns: of the policy against the controller's, and achieved against the ones conditioned on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trajgen.core.errors import TrajgenError
from trajgen.core.tables import number, return_digits
from trajgen.evaluation.rollout import require_first_observations, rollout
from trajgen.evaluation.statistics import summarize
from trajgen.viz.figure import INK, LINES, SOFT, new_figure, square_axes

if TYPE_CHECKING:
    from trajgen.core.planning import Policy
    from trajgen.viz.run import Run

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of the data's returns-to-go: the targets where none are given."""
DEVIATIONS = (-1.0, 0.0, 1.0, 2.0)
"""Targets instead, in deviations from the mean, where the data are not on this machine."""


def draw_returns(path: Path, returns: ArrayLike, reference: ArrayLike) -> None:
    """Draws each episode's return (n,) against the controller's on the same episode; NaN where one failed."""
    pairs = np.stack([np.asarray(returns, dtype=float), np.asarray(reference, dtype=float)])
    policy, controller = pairs[:, np.isfinite(pairs).all(0)]
    with new_figure(4.4, 4.4, path) as figure:
        ax = figure.subplots()
        square_axes(ax, [0.0, *policy, *controller])
        ax.scatter(controller, policy, s=34, color=LINES[0], alpha=0.7, edgecolors="white", linewidths=0.6, zorder=3)
        ax.set(xlabel="return of the controller", ylabel="return of the policy")
        if policy.size:
            means = float(policy.mean()), float(controller.mean())
            one, other = (number(mean, return_digits(means)) for mean in means)
            text = f"{policy.size} episodes\nmean {one} against {other}"
            ax.text(0.04, 0.96, text, transform=ax.transAxes, va="top")


@dataclass
class Control:
    """Target returns and what was achieved with them: discounted returns of n episodes, in the data's units."""

    targets: NDArray[np.float64]  # (R,)
    achieved: NDArray[np.float64]  # (R, n)
    run_targets: NDArray[np.float64]  # (n,) of the run's own return target
    run_achieved: NDArray[np.float64]  # (n,)
    data: NDArray[np.float32] | None = None  # returns-to-go of the data


def depends_on_return(run: Run, low: float, high: float) -> bool:
    """Whether a run's plans differ between two target returns."""
    import torch

    observations = require_first_observations(run.eval_env, range(4))
    plans = [run.policy.preview(observations, value)[1] for value in (low, high)]
    same = torch.equal(plans[0].latent, plans[1].latent)
    if plans[0].trajectory is not None and plans[1].trajectory is not None:
        same = same and torch.equal(plans[0].trajectory, plans[1].trajectory)
    return not same


def default_targets(run: Run) -> list[float]:
    """Returns-to-go of the data, low to high."""
    import torch

    if run.data is not None:
        values = np.quantile(run.data.returns, QUANTILES)
    else:
        values = run.policy.normalizer.returns.inverse(torch.tensor(DEVIATIONS, device=run.policy.device)).cpu().numpy()
    return sorted({float(f"{value:.3g}") for value in values})


def measure_control(run: Run, targets: Sequence[float], seeds: range) -> Control:
    """Plays the same episodes once for each target return, and once with the run's own target.

    Raises:
        TrajgenError: if an episode fails.
    """
    import torch

    observations = require_first_observations(run.eval_env, seeds)
    with torch.inference_mode():
        run_targets = run.policy.normalizer.returns.inverse(run.policy.condition(observations).returns)
    policies = [run.load({"return_target": {"name": "constant", "value": float(value)}}) for value in targets]
    *achieved, run_achieved = [_play(run, policy, seeds) for policy in (*policies, run.policy)]
    data = None if run.data is None else run.data.returns
    return Control(np.array(targets), np.stack(achieved), run_targets.double().cpu().numpy(), run_achieved, data)


def _play(run: Run, policy: Policy, seeds: range) -> NDArray[np.float64]:
    rollouts = rollout(policy, run.eval_env, seeds, record=False, batch=len(seeds))
    if errors := rollouts.errors:
        raise TrajgenError(
            f"The episode of seed {errors[0]['seed']} failed at step {errors[0]['step']}: {errors[0]['error']}",
            fix="seed=N of other episodes",
        )
    return np.array([discounted_sum(rewards, run.config.data.discount) for rewards in rollouts.rewards])


def discounted_sum(rewards: NDArray[np.float64], discount: float) -> float:
    """The return-to-go at the start of an episode with these rewards (m,)."""
    return float(rewards @ discount ** np.arange(len(rewards)))


def draw_control(path: Path, control: Control) -> None:
    """Draws achieved against target returns: a dot an episode, means with their 95 % intervals, the run's target."""
    achieved = control.achieved
    values = np.concatenate([control.targets, achieved.ravel(), control.run_targets, control.run_achieved])
    summaries = [summarize(returns) for returns in achieved]
    means = np.array([summary.mean for summary in summaries])
    errors = np.abs(np.array([summary.ci95 for summary in summaries]).T - means)
    with new_figure(5.2, 5.4, path) as figure:
        ax = figure.subplots()
        if control.data is not None:
            low, high = np.quantile(control.data, [0.05, 0.95])
            ax.axvspan(low, high, color=SOFT, alpha=0.13, lw=0, zorder=0, label="90 % of the data")
        square_axes(ax, values, 0.06, label="target achieved")
        dots: dict[str, Any] = {"s": 14, "color": LINES[0], "alpha": 0.35, "linewidths": 0, "zorder": 2}
        ax.scatter(np.repeat(control.targets, achieved.shape[1]), achieved.ravel(), **dots)
        ax.errorbar(
            control.targets, means, yerr=errors, color=LINES[0], fmt="o-", ms=6, lw=1.6, capsize=3, zorder=4,
            label="mean, with its 95 % interval",
        )  # fmt: skip
        ax.scatter(control.run_targets, control.run_achieved, s=26, marker="x", color=LINES[1], linewidths=1.1)
        ax.plot(
            control.run_targets.mean(), control.run_achieved.mean(), "D", color=LINES[1], mec=INK, mew=0.8, ms=8,
            ls="none", zorder=5, label="the run's own target",
        )  # fmt: skip
        ax.set(xlabel="target return-to-go (discounted)", ylabel="return achieved (discounted)")
        ax.set_title(f"{achieved.shape[1]} episodes a point", loc="left")
        figure.legend(loc="outside lower center", ncols=2)
