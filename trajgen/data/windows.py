"""Windows of episodes: batches drawn on the device, as a pure function of (seed, step, rank)."""

from __future__ import annotations

import math
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from trajgen.core.errors import ConfigError
from trajgen.core.normalise import Normaliser
from trajgen.core.types import Batch
from trajgen.data.episodes import Episodes
from trajgen.data.options import DataOptions

FADED = 1e-3
"""A reward that is discounted below this share is no longer looked for."""

SAMPLE = (8, 1024)
"""Batches and windows per batch from which the normaliser is fitted."""


class Windows:
    """A source of batches whose data lie on the device.

    Shapes: B batch, T points, H chunk, W windows. A window starts at any step from which at most the share
    ``max_padding`` of its points lies beyond a timeout. The final observation of an episode is a real point,
    with an action and a reward of zero.

    Args:
        episodes: the data.
        options: horizon, stride, goals and returns.
        normaliser: applied to every field.
        device: where the data and the batches lie.
        seed: of the draw.

    Raises:
        ConfigError: if every episode is shorter than a window, or the data lack goals.
    """

    def __init__(
        self,
        episodes: Episodes,
        options: DataOptions,
        normaliser: Normaliser,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        _require_goals(episodes, options)
        rows, ends, times = _starts(episodes, options)

        def place(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).to(device)

        self.options, self.seed, self.device = options, seed, torch.device(device)
        self.normaliser = normaliser.to(device)
        self._rows, self._ends, self._times = place(rows), place(ends), place(times)  # (W,)
        self._states, self._actions = place(episodes.states), place(episodes.actions)
        self._goals = self._achieved = None
        if options.goals != "none" and episodes.goals is not None:
            self._goals, self._until = place(episodes.goals), place(_same_goal_until(episodes))
        if episodes.achieved is not None:
            self._achieved = place(episodes.achieved)
        self._points = torch.arange(options.horizon, device=device) * options.stride
        self._chunk = torch.arange(options.chunk, device=device)
        self._powers = options.discount ** torch.arange(options.stride, device=device)
        if options.goal_radius is None:
            self._returns = place(returns_to_go(episodes, options.discount))
            self._ahead = torch.arange(options.horizon * options.stride, device=device)
        else:
            blocks = _blocks_ahead(episodes, options)
            self._ahead = torch.arange((options.horizon + blocks - 1) * options.stride, device=device)
            self._fade = place(_fade(options, blocks))
        self._to_do = _from_each(self._actions.t(), options.horizon * options.stride)  # (A, M, T * stride)
        self._to_earn = _from_each(place(episodes.rewards)[None], len(self._ahead))[0]  # (M, steps ahead)
        if self._achieved is not None:
            self._to_reach = _from_each(self._achieved.t(), len(self._ahead) + 1)[..., 1:]  # (G, M, steps ahead)

    def __len__(self) -> int:
        """W, the number of different windows."""
        return len(self._rows)

    @torch.no_grad()
    def batch(self, step: int, size: int, rank: int = 0) -> Batch:
        """The batch of ``size`` windows of ``step``; always the same one, and another for each ``rank``.

        The engine asks for that of rank 0 on all processes, and shares it out.
        """
        random = torch.Generator(self.device)
        mix = np.random.SeedSequence([self.seed, step, rank]).generate_state(1, np.uint64)
        random.manual_seed(int(mix[0]))
        pick = torch.randint(len(self._rows), (size,), generator=random, device=self.device)
        row, end = self._rows[pick, None], self._ends[pick, None]  # (B, 1)
        goal = self._goal(row, end, random)

        points, chunk = row + self._points, row + self._chunk  # (B, T), (B, H)
        at, along = points.minimum(end), chunk.minimum(end)
        real = row + self._ahead < end  # (B, steps ahead)
        done = self._to_do[:, row[:, 0]].mul_(real[:, : self._to_do.shape[-1]]).movedim(0, -1)  # (B, T * M, A)
        earned = self._earned(row, real, goal)  # (B, steps ahead)
        sums = earned.unflatten(1, (-1, self.options.stride)).sum(2)[:, : self.options.horizon]
        returns = self._returns[at] if self.options.goal_radius is None else self._discounted(earned)

        norm = self.normaliser
        return Batch(
            states=norm.state(self._states[at]),
            actions=norm.action(done.unflatten(1, (-1, self.options.stride))),
            rewards=norm.reward(sums),
            returns=norm.returns(returns),
            mask=points <= end,
            chunk_states=norm.state(self._states[along]),
            chunk_actions=norm.action(self._actions[along]),
            chunk_mask=chunk < end,
            goals=None if goal is None else norm.goal(goal),
            time=self._times[pick],
        )

    def _goal(self, row: Tensor, end: Tensor, random: torch.Generator) -> Tensor | None:
        """The windows' goals (B, G): the data's at the start, or a place reached later under the same goal."""
        if self._goals is None:
            return None
        own = self._goals[row[:, 0]]
        if self.options.goals == "desired" or self._achieved is None:
            return own
        where, whether = torch.rand(2, *row.shape, generator=random, device=self.device)
        last = self._until[row]  # beyond it the data pursue another goal: what they reach then is no lesson
        later = row + 1 + (where * (last - row)).long().minimum(last - row - 1)  # row < later <= last
        return torch.where(whether < self.options.desired_share, own, self._achieved[later[:, 0]])

    def _earned(self, row: Tensor, real: Tensor, goal: Tensor | None) -> Tensor:
        """Rewards of the steps from the window's start on, zero beyond the episode's end."""
        if self.options.goal_radius is None or goal is None or self._achieved is None:
            return self._to_earn[row[:, 0]] * real
        after = self._to_reach[:, row[:, 0]]  # (G, B, steps): a step is rewarded for where it leads
        near = (after - goal.t().unsqueeze(-1)).square_().sum(0) <= self.options.goal_radius**2
        return (near & real).to(after.dtype)

    def _discounted(self, earned: Tensor) -> Tensor:
        """Return-to-go at each point, (B, T): discount within a stride, then over the strides ahead."""
        return (earned.unflatten(1, (-1, self.options.stride)) @ self._powers) @ self._fade


def _from_each(values: Tensor, steps: int) -> Tensor:
    """Values (n, M) at as many steps from each row on, (n, M, steps); past the last row they mean nothing.

    A view, whose stretches lie in one piece: picking them is ten times faster than picking their steps one by one.
    """
    return torch.cat([values, values[:, -1:].expand(-1, steps)], dim=1).unfold(1, steps, 1)[:, : values.shape[1]]


def fit_normaliser(episodes: Episodes, options: DataOptions) -> Normaliser:
    """The normaliser of a data set, fitted on a seeded sample of its windows as they are drawn."""
    space, goal_dim = episodes.space, 0 if options.goals == "none" else episodes.space.goal_dim
    plain = Normaliser(space.state_dim, space.action_dim, goal_dim)
    windows = Windows(episodes, options, plain)
    parts = [windows.batch(step, SAMPLE[1]) for step in range(SAMPLE[0])]
    fields = {
        "state": torch.cat([part.states[part.mask] for part in parts]),
        "action": torch.cat([part.chunk_actions[part.chunk_mask] for part in parts]),
        "reward": torch.cat([part.rewards[part.mask] for part in parts])[:, None],
        "returns": torch.cat([part.returns[part.mask] for part in parts]),
    }
    if goal_dim:
        fields["goal"] = torch.cat([part.goals for part in parts if part.goals is not None])
    fitted = Normaliser(space.state_dim, space.action_dim, goal_dim, options.power)
    fitted.fit(fields)
    return fitted


def returns_to_go(episodes: Episodes, discount: float) -> np.ndarray:
    """Discounted sum of the stored rewards from each row (M,) to the end of its episode."""
    result = np.empty_like(episodes.rewards)
    for first, last in zip(episodes.starts, episodes.ends, strict=True):
        backwards = episodes.rewards[first : last + 1][::-1].tolist()
        result[first : last + 1] = list(accumulate(backwards, lambda rest, now: now + discount * rest))[::-1]
    return result


def _starts(episodes: Episodes, options: DataOptions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows at which windows may start, and for each the last row of its episode and its step in it."""
    horizon, stride = options.horizon, options.stride
    longest = int(episodes.lengths.max())
    if (horizon - 1) * stride > longest:
        fixes = [f"data.stride={longest // (horizon - 1)}"] if longest >= horizon - 1 else []
        fixes.append(f"a data.horizon of at most {longest // stride + 1}")
        raise ConfigError(
            "A window must fit into at least one episode.",
            expected=f"at most {longest} steps, the longest episode of data set {episodes.name!r}",
            got=f"{(horizon - 1) * stride} steps: data.horizon={horizon} points, data.stride={stride} apart",
            fix=" or ".join(fixes),
        )
    # Of the T points at most T * max_padding lie beyond a timeout: the last of the others must not.
    inside = max(1, horizon - math.floor(horizon * options.max_padding + 1e-9))
    before_timeout = (episodes.lengths - (inside - 1) * stride + 1).clip(0, episodes.lengths)
    count = np.where(episodes.terminated, episodes.lengths, before_timeout)
    offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return np.repeat(episodes.starts, count) + offset, np.repeat(episodes.ends, count), offset


def _same_goal_until(episodes: Episodes) -> np.ndarray:
    """For each row (M,), the first later row that no longer has its goal, or the last row of its episode."""
    rows = np.arange(len(episodes.states))
    changes = np.zeros(len(rows), dtype=bool)
    if episodes.goals is not None:
        changes[1:] = (episodes.goals[1:] != episodes.goals[:-1]).any(1)
    changes[episodes.ends] = True
    stops = np.flatnonzero(changes)
    return stops[np.searchsorted(stops, rows, side="right").clip(max=len(stops) - 1)]


def _require_goals(episodes: Episodes, options: DataOptions) -> None:
    """Raises a ConfigError if the options ask for goals that the data lack."""
    measured = options.goals == "hindsight" or options.goal_radius is not None
    wanted = {"goals": options.goals != "none", "achieved": measured}
    for field, needed in wanted.items():
        if needed and getattr(episodes, field) is None:
            raise ConfigError(
                "Goals must be in the data.",
                expected=f"{field} in each episode, since data.goals is {options.goals}",
                got=f"data set {episodes.name!r} without them",
                fix="name data.goal_key and data.achieved_key, or take data.goals=none",
            )


def _blocks_ahead(episodes: Episodes, options: DataOptions) -> int:
    """How many strides a return-to-go looks ahead: until rewards have faded, or the longest episode ends."""
    longest = int(episodes.lengths.max())
    faded = math.log(FADED) / math.log(options.discount) if options.discount < 1 else math.inf
    return math.ceil(min(longest, faded) / options.stride)


def _fade(options: DataOptions, blocks: int) -> np.ndarray:
    """Weights (strides, T) of the reward of each stride in the return-to-go of each point."""
    lag = np.arange(options.horizon + blocks - 1)[:, None] - np.arange(options.horizon)
    weights = options.discount ** (options.stride * lag.astype(float))
    return np.where((lag >= 0) & (lag < blocks), weights, 0.0).astype(np.float32)
