"""At which steps of which episodes windows start."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from trajgen.core.errors import ConfigError
from trajgen.data.episodes import Episodes
from trajgen.data.options import DataOptions
from trajgen.data.returns import episode_returns

FEW_STARTS = 0.5
"""The share of the steps below which a user is told at how few of them windows start."""


def window_counts(
    episodes: Episodes, options: DataOptions, device: torch.device, *, val: bool = False
) -> tuple[int, Tensor]:
    """How many windows there are, and before each episode (E,); those of an episode start at its first steps.

    They are those of the training or of the validation episodes that belong to the ``top_fraction``. Of several strides
    the counts follow each other, (strides * E,).
    """
    horizon = options.horizon
    _require_window_fits(episodes, options)
    # Of the T points at most T * max_padding lie beyond a timeout: the last of the others must not.
    padding = 1.0 if options.ends_with_task else options.max_padding
    inside = max(1, horizon - math.floor(horizon * padding + 1e-9))
    is_used = _used(episodes, options, val=val)
    counts = []
    for stride in options.strides:
        before_timeout = (episodes.lengths - (inside - 1) * stride + 1).clip(0, episodes.lengths)
        counts.append(np.where(is_used, np.where(episodes.terminated, episodes.lengths, before_timeout), 0))
    count = np.concatenate(counts)
    if not count.sum():
        raise ConfigError(
            "There are no windows to train on, or none for validation.",
            got=f"data.val_fraction={options.val_fraction} data.top_fraction={options.top_fraction} "
            f"of {len(episodes)} episodes",
            fix="data.val_fraction=0, data.top_fraction=1, or other shares",
        )
    return int(count.sum()), torch.from_numpy(np.cumsum(count) - count).to(device)


def remark_on_starts(episodes: Episodes, options: DataOptions) -> str | None:
    """A line for the user where windows start at less than half of the steps of the training; None elsewhere."""
    count, _ = window_counts(episodes, options, torch.device("cpu"))
    share = count / max(1, int(episodes.lengths[_used(episodes, options)].sum()) * len(options.strides))
    if share >= FEW_STARTS:
        return None
    span = (options.horizon - 1) * options.strides[-1]
    return (
        f"Windows of {span} steps start at {share:.0%} of the data's steps: after the others an episode is cut off too "
        "soon (data.ends_with_task=true if it ends with the task, otherwise larger data.max_padding, or smaller "
        "data.stride or data.horizon)"
    )


def _used(episodes: Episodes, options: DataOptions, *, val: bool = False) -> np.ndarray:
    """Which episodes (E,) are trained on, or validated on."""
    is_val = val_episodes(len(episodes) - episodes.stitched, options.val_fraction)
    is_val = np.append(is_val, np.zeros(episodes.stitched, dtype=bool))
    used: np.ndarray = (is_val == val) & _top(episodes, options.top_fraction)
    return used


def _require_window_fits(episodes: Episodes, options: DataOptions) -> None:
    """Raises a ConfigError if no episode is as long as a window of the largest stride."""
    horizon, stride, longest = options.horizon, options.strides[-1], int(episodes.lengths.max())
    if (horizon - 1) * stride <= longest:
        return
    fixes = [f"data.stride={longest // (horizon - 1)}"] if longest >= horizon - 1 else []
    if shorter := [each for each in options.strides if (horizon - 1) * each <= longest]:
        fixes = [f"data.stride={shorter if len(shorter) > 1 else shorter[0]}".replace(" ", "")]
    fixes.append(f"data.horizon={longest // stride + 1}")
    raise ConfigError(
        "A window must fit into at least one episode.",
        expected=f"at most {longest} steps, the longest episode of data set {episodes.name!r}",
        got=f"{(horizon - 1) * stride} steps: data.horizon={horizon} points, data.stride={stride} apart",
        fix=" or ".join(fixes),
    )


def val_episodes(episodes: int, share: float) -> np.ndarray:
    """The validation episodes (E,), spread over the data at random; at least one for any share above 0."""
    is_val = np.zeros(episodes, dtype=bool)
    if share:
        is_val[np.random.default_rng(0).permutation(episodes)[: max(1, round(share * episodes))]] = True
    return is_val


def _top(episodes: Episodes, share: float) -> np.ndarray:
    """The episodes (E,) with the highest sums of rewards, as many as it takes for this share of the steps."""
    if share == 1:
        return np.ones(len(episodes), dtype=bool)
    best_first = np.argsort(-episode_returns(episodes), kind="stable")
    steps_before = np.cumsum(episodes.lengths[best_first]) - episodes.lengths[best_first]
    is_top = np.zeros(len(episodes), dtype=bool)
    is_top[best_first[steps_before < share * episodes.steps - 1e-6]] = True
    return is_top
