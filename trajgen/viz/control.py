"""Asked return against achieved return: whether a policy does what it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from trajgen.core.errors import TrajgenError
from trajgen.core.protocols import Observation, Policy
from trajgen.evaluation.figures import INK, LINES, SOFT, saved_figure
from trajgen.evaluation.rollout import rollout
from trajgen.evaluation.statistics import summarize
from trajgen.viz.plans import first_observations
from trajgen.viz.run import Run

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of the data's returns-to-go, which are asked for where no returns are given."""
DEVIATIONS = (-1.0, 0.0, 1.0, 2.0)
"""Asked for instead, in deviations from the mean, where the data are not on this machine."""


@dataclass
class Control:
    """What was asked of a policy and what it achieved: discounted returns of n episodes, in the data's units."""

    asked: NDArray[np.float64]  # (R,)
    achieved: NDArray[np.float64]  # (R, n)
    own_asked: NDArray[np.float64]  # (n,) by the run's own target
    own_achieved: NDArray[np.float64]  # (n,)
    data: NDArray[np.float32] | None = None  # returns-to-go of the data


@dataclass
class Counting:
    """A policy that is told its rewards, and adds them up, discounted: that is what a return-to-go asks for."""

    policy: Policy
    discount: float
    earned: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def reset(self, *, batch: int | None = None, ids: Sequence[int] | None = None) -> None:
        """Starts ``batch`` episodes."""
        self.policy.reset(batch=batch, ids=ids)
        self.earned, self.weight = np.zeros(batch or 1), 1.0

    def act(self, observation: Observation) -> np.ndarray:
        """What the policy does."""
        return self.policy.act(observation)

    def observe(self, reward: Any, done: Any) -> None:
        """Takes the rewards; an ended episode has none."""
        self.earned += self.weight * np.asarray(reward, dtype=np.float64)
        self.weight *= self.discount
        self.policy.observe(reward, done)


def obeys(run: Run, low: float, high: float) -> bool:
    """Whether what a run plans depends on the return that is asked for at all."""
    observations = first_observations(run.eval_env, range(4))
    first, second = (run.policy.preview(observations, value)[1] for value in (low, high))
    same = torch.equal(first.latent, second.latent)
    if first.trajectory is not None and second.trajectory is not None:
        same = same and torch.equal(first.trajectory, second.trajectory)
    return not same


def returns_to_ask(run: Run) -> list[float]:
    """Returns-to-go that the data hold, low to high."""
    if run.data is not None:
        values = np.quantile(run.data.returns, QUANTILES)
    else:
        values = run.policy.normalizer.returns.inverse(torch.tensor(DEVIATIONS, device=run.policy.device)).cpu().numpy()
    return sorted({float(f"{value:.3g}") for value in values})


def measure_control(run: Run, asked: Sequence[float], seeds: range) -> Control:
    """Plays the same episodes once for each return that is asked for, and once with the run's own target.

    Raises:
        TrajgenError: if an episode fails, or the run cannot be asked for a return.
    """
    observations = first_observations(run.eval_env, seeds)
    with torch.inference_mode():
        own = run.policy.normalizer.returns.inverse(run.policy.condition(observations).returns)
    policies = [run.load({"return_target": {"name": "constant", "value": float(value)}}) for value in asked]
    achieved = [_play(run, policy, seeds) for policy in (*policies, run.policy)]
    returns = None if run.data is None else run.data.returns
    own_asked = own.double().cpu().numpy()
    return Control(np.array(asked, dtype=np.float64), np.stack(achieved[:-1]), own_asked, achieved[-1], returns)


def _play(run: Run, policy: Policy, seeds: range) -> NDArray[np.float64]:
    counting = Counting(policy, run.config.data.discount)
    played = rollout(counting, run.eval_env, seeds, record=False, batch=len(seeds))
    if played.errors:
        failed = played.errors[0]
        raise TrajgenError(
            "Every episode is played to its end for each return.",
            expected=f"{len(seeds)} episodes of {run.eval_env.name}",
            got=f"seed {failed['seed']} failed at step {failed['step']}: {failed['error']}",
            fix="seed=N of other episodes",
        )
    return counting.earned


def control_figure(path: Path, control: Control) -> None:
    """Draws achieved against asked returns: a dot an episode, means with their 95 % intervals, and the run's target."""
    every = np.concatenate([control.asked, control.achieved.ravel(), control.own_asked, control.own_achieved])
    margin = 0.06 * max(float(np.ptp(every)), 1e-6)
    ends = [float(every.min()) - margin, float(every.max()) + margin]
    with saved_figure(path, 5.2, 5.4) as figure:
        ax = figure.subplots()
        if control.data is not None:
            _band(ax, control.data)
        ax.plot(ends, ends, color=SOFT, lw=1, ls=(0, (4, 3)), zorder=1, label="as asked")
        for value, returns in zip(control.asked, control.achieved, strict=True):
            ax.scatter([value] * len(returns), returns, s=14, color=LINES[0], alpha=0.35, linewidths=0, zorder=2)
        found = [summarize(returns) for returns in control.achieved]
        means = [each.mean for each in found]
        reach = np.abs(np.array([each.ci95 for each in found]).T - means)
        ax.errorbar(
            control.asked, means, yerr=reach, color=LINES[0], fmt="o-", ms=6, lw=1.6, capsize=3, zorder=4,
            label="mean, with its 95 % interval",
        )  # fmt: skip
        ax.scatter(control.own_asked, control.own_achieved, s=26, marker="x", color=LINES[1], linewidths=1.1, zorder=3)
        ax.plot(
            control.own_asked.mean(), control.own_achieved.mean(), "D", color=LINES[1], mec=INK, mew=0.8, ms=8,
            ls="none", zorder=5, label="the run's own target",
        )  # fmt: skip
        ax.set(xlim=ends, ylim=ends, aspect="equal")
        ax.set_xlabel("return-to-go asked for (discounted)")
        ax.set_ylabel("return achieved (discounted)")
        ax.grid(True)
        ax.set_axisbelow(True)
        ax.set_title(f"{control.achieved.shape[1]} episodes a point", loc="left")
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)


def _band(ax: Any, returns: ArrayLike) -> None:
    low, high = np.quantile(np.asarray(returns), [0.05, 0.95])
    ax.axvspan(low, high, color=SOFT, alpha=0.13, lw=0, zorder=0, label="90 % of the data")
