"""Windows of episodes: batches drawn on the device, as a pure function of (seed, step, rank)."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.types import Batch
from trajgen.data.columns import Columns, Mapped, Resident
from trajgen.data.episodes import Episodes
from trajgen.data.mapped import is_mapped
from trajgen.data.options import DataOptions
from trajgen.data.returns import blocks_ahead, fade, returns_to_go

BLOCK = 2**18
"""Rows that are looked at together."""

SAMPLE = (8, 1024)
"""Batches and windows per batch from which the normalizer is fitted."""


class Windows:
    """A source of batches whose data lie on the device, or in mapped files where they are larger than memory.

    Shapes: B batch, T points, H chunk, W windows. A window starts at any step from which at most the share
    ``max_padding`` of its points lies beyond a timeout. The final observation of an episode is a real point,
    with an action and a reward of zero.

    Args:
        episodes: the data.
        options: horizon, stride, goals and returns.
        normalizer: applied to every field.
        device: where the data and the batches lie.
        seed: of the draw.
        part: the episodes that are trained on, or the share ``val_fraction`` of them; which those are depends on the
            data alone. Of both, those that belong to the ``top_fraction``.

    Raises:
        ConfigError: if every episode is shorter than a window, the data lack goals, or a part has no windows.
    """

    def __init__(
        self,
        episodes: Episodes,
        options: DataOptions,
        normalizer: Normalizer,
        device: torch.device | str = "cpu",
        seed: int = 0,
        part: Literal["training", "val"] = "training",
    ) -> None:
        _require_goals(episodes, options)
        before, count = _starts(episodes, options, part == "val")
        mapped = is_mapped(episodes)

        def place(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).to(device)

        self.options, self.seed, self.device = options, seed, torch.device(device)
        self.normalizer = normalizer.to(device)
        self._count, self._before = count, place(before)  # windows in all, and before each episode (E,)
        self._first, self._last = place(episodes.starts), place(episodes.ends)  # (E,)
        self._stays = place(
            episodes.terminated & options.absorbing_terminals
        )  # (E,), whether what ends goes on as it is
        fields = {"states": episodes.states, "actions": episodes.actions, "rewards": episodes.rewards}
        if options.goals != "none" and episodes.goals is not None:
            fields["goals"], self._stops = episodes.goals, place(_goal_stops(episodes))
        if episodes.achieved is not None:
            fields["achieved"] = episodes.achieved
        self._points = torch.arange(options.horizon, device=device) * options.stride
        self._chunk = torch.arange(options.chunk, device=device)
        self._powers = options.discount ** torch.arange(options.stride, device=device)
        if options.goal_radius is None:
            fields["returns"] = returns_to_go(episodes, options.discount)
            self._ahead = torch.arange(options.horizon * options.stride, device=device)
        else:
            blocks = blocks_ahead(episodes, options)
            self._ahead = torch.arange((options.horizon + blocks - 1) * options.stride, device=device)
            self._fade = place(fade(options, blocks))
        stretches = {"actions": options.horizon * options.stride, "rewards": len(self._ahead)}
        if "achieved" in fields:
            stretches["achieved"] = len(self._ahead) + 1
        self._fields: Columns = (Mapped if mapped else Resident)(fields, self.device, stretches)
        self._has = frozenset(fields)

    def __len__(self) -> int:
        """W, the number of different windows."""
        return self._count

    @torch.no_grad()
    def batch(self, step: int, size: int, rank: int = 0) -> Batch:
        """The batch of ``size`` windows of ``step``; always the same one, and another for each ``rank``.

        The engine asks for that of rank 0 on all processes, and shares it out.
        """
        random = torch.Generator(self.device)
        mix = np.random.SeedSequence([self.seed, step, rank]).generate_state(1, np.uint64)
        random.manual_seed(int(mix[0]))
        pick = torch.randint(self._count, (size,), generator=random, device=self.device)
        episode = torch.searchsorted(self._before, pick, right=True) - 1
        time = pick - self._before[episode]
        row, end = (self._first[episode] + time)[:, None], self._last[episode, None]  # (B, 1)
        goal = self._goal(row, end, random)
        near, stays = self._near(row, goal), self._stays[episode, None]
        if (
            near is not None and self.options.terminate_at_goal
        ):  # the row that the first step within the radius leads to
            arrival = torch.where(near.any(1), row[:, 0] + near.int().argmax(1) + 1, end[:, 0] + 1)[:, None]
            stays = torch.where(arrival <= end, self.options.absorbing_terminals, stays)
            end = end.minimum(arrival)

        points, chunk = row + self._points, row + self._chunk  # (B, T), (B, H)
        at, along = points.minimum(end), chunk.minimum(end)
        real = row + self._ahead < end  # (B, steps ahead)
        done = self._fields.from_each("actions", row[:, 0])  # (A, B, T * M)
        done = done.mul_(real[:, : done.shape[-1]]).movedim(0, -1)  # (B, T * M, A)
        earned = self._earned(row, real, near)  # (B, steps ahead)
        sums = earned.unflatten(1, (-1, self.options.stride)).sum(2)[:, : self.options.horizon]
        returns = self._fields.at("returns", at) if "returns" in self._has else self._discounted(earned)

        norm = self.normalizer
        return Batch(
            states=norm.state(self._fields.at("states", at)),
            actions=norm.action(done.unflatten(1, (-1, self.options.stride))),
            rewards=norm.reward(sums),
            returns=norm.returns(returns),
            mask=(points <= end) | stays,
            chunk_states=norm.state(self._fields.at("states", along)),
            chunk_actions=norm.action(self._fields.at("actions", along)),
            chunk_mask=chunk < end,
            goals=None if goal is None else norm.goal(goal),
            time=time,
        )

    def _goal(self, row: Tensor, end: Tensor, random: torch.Generator) -> Tensor | None:
        """The windows' goals (B, G): the data's at the start, or a place reached later under the same goal."""
        if "goals" not in self._has:
            return None
        own = self._fields.at("goals", row[:, 0])
        if self.options.goals == "dataset" or "achieved" not in self._has:
            return own
        where, whether = torch.rand(2, *row.shape, generator=random, device=self.device)
        # Beyond the last row with the same goal the data pursue another: what they reach then is no lesson.
        last = self._stops[torch.searchsorted(self._stops, row, right=True).clamp(max=len(self._stops) - 1)]
        later = row + 1 + (where * (last - row)).long().minimum(last - row - 1)  # row < later <= last
        return torch.where(whether < 1 - self.options.relabel_ratio, own, self._fields.at("achieved", later[:, 0]))

    def _near(self, row: Tensor, goal: Tensor | None) -> Tensor | None:
        """Whether each step from the window's start on leads to the goal (B, steps ahead); None if none is measured."""
        if self.options.goal_radius is None or goal is None or "achieved" not in self._has:
            return None
        after = self._fields.from_each("achieved", row[:, 0])[..., 1:]  # (G, B, steps)
        return (after - goal.t().unsqueeze(-1)).square_().sum(0) <= self.options.goal_radius**2

    def _earned(self, row: Tensor, real: Tensor, near: Tensor | None) -> Tensor:
        """Rewards of the steps from the window's start on, zero beyond the episode's end."""
        if near is None:
            return self._fields.from_each("rewards", row[:, 0])[0] * real
        return (near & real).to(torch.float32)

    def _discounted(self, earned: Tensor) -> Tensor:
        """Return-to-go at each point, (B, T): discount within a stride, then over the strides ahead."""
        return (earned.unflatten(1, (-1, self.options.stride)) @ self._powers) @ self._fade


def fit_normalizer(episodes: Episodes, options: DataOptions) -> Normalizer:
    """The normalizer of a data set, fitted on a seeded sample of its windows as they are drawn."""
    space, goal_dim = episodes.space, 0 if options.goals == "none" else episodes.space.goal_dim
    plain = Normalizer(space.state_dim, space.action_dim, goal_dim)
    windows = Windows(episodes, options, plain)
    parts: dict[str, list[Tensor]] = {name: [] for name in ("state", "action", "reward", "returns")}
    if goal_dim:
        parts["goal"] = []
    for step in range(SAMPLE[0]):  # of a batch only these numbers are kept: the sample is as small for any data set
        part = windows.batch(step, SAMPLE[1])
        parts["state"].append(part.states[part.mask])
        parts["action"].append(part.chunk_actions[part.chunk_mask])
        parts["reward"].append(part.rewards[part.mask])
        parts["returns"].append(part.returns[part.mask])
        if part.goals is not None:
            parts["goal"].append(part.goals)
    fields = {name: torch.cat(values) for name, values in parts.items()}
    fields["reward"] = fields["reward"][:, None]
    fitted = Normalizer(space.state_dim, space.action_dim, goal_dim, options.return_power)
    fitted.fit(fields)
    return fitted


def _starts(episodes: Episodes, options: DataOptions, val: bool) -> tuple[np.ndarray, int]:
    """How many windows start before each episode (E,), and in all; those of an episode start at its first steps."""
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
    chosen = (_in_val(len(episodes), options.val_fraction) == val) & _best(episodes, options.top_fraction)
    count = np.where(chosen, count, 0)
    if not count.sum():
        raise ConfigError(
            "Some windows are trained on, and some are held out if any are.",
            expected="episodes that are long enough on both sides",
            got=f"data.val_fraction={options.val_fraction} data.top_fraction={options.top_fraction} "
            f"of {len(episodes)} episodes",
            fix="data.val_fraction=0, data.top_fraction=1, or other shares",
        )
    return np.cumsum(count) - count, int(count.sum())


def _in_val(episodes: int, share: float) -> np.ndarray:
    """Which episodes are held out (E,), spread over the data at random; at least one where any are to be."""
    chosen = np.zeros(episodes, dtype=bool)
    if share:
        chosen[np.random.default_rng(0).permutation(episodes)[: max(1, round(share * episodes))]] = True
    return chosen


def _best(episodes: Episodes, share: float) -> np.ndarray:
    """The episodes (E,) with the highest sums of rewards, as many as it takes for this share of the steps."""
    if share == 1:
        return np.ones(len(episodes), dtype=bool)
    earned = np.add.reduceat(episodes.rewards, episodes.starts, dtype=np.float64)  # the rows between them earn nothing
    best_first = np.argsort(-earned, kind="stable")
    better = np.cumsum(episodes.lengths[best_first]) - episodes.lengths[best_first]
    chosen = np.zeros(len(episodes), dtype=bool)
    chosen[best_first[better < share * episodes.steps - 1e-6]] = True
    return chosen


def _goal_stops(episodes: Episodes) -> np.ndarray:
    """The rows, in order, at which another goal begins than in the row before, and those at which episodes end."""
    if episodes.goals is None:
        return episodes.ends
    found = [episodes.ends]
    for first in range(0, len(episodes.goals) - 1, BLOCK):
        goals = episodes.goals[first : first + BLOCK + 1]
        found.append(first + 1 + np.flatnonzero((goals[1:] != goals[:-1]).any(1)))
    return np.unique(np.concatenate(found))


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
