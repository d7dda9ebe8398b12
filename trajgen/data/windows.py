"""Windows of episodes: batches drawn on the device, as a pure function of (seed, step, rank)."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.sources import draw_seed
from trajgen.core.types import Batch, GoalSampling, Transitions
from trajgen.data.columns import Columns, Mapped, Resident
from trajgen.data.encoding import Unencoded
from trajgen.data.episodes import Episodes
from trajgen.data.mapped import is_mapped
from trajgen.data.options import DataOptions
from trajgen.data.returns import returns_to_go, stride_discounts, strides_ahead
from trajgen.data.starts import window_counts
from trajgen.data.transfer import BatchesAhead

HOST = torch.device("cpu")
BLOCK = 2**18
"""Rows whose goals are compared at once."""
SAMPLE = (8, 1024)
"""Batches and windows per batch from which the normalizer is fitted."""


class Windows:
    """A source of batches whose data lie on the device, or on the host where they do not fit or are mapped files.

    Shapes: B batch, T points, H chunk, W windows. A window starts at any step from which at most the share
    ``max_padding`` of its points lies beyond a timeout, or at any with ``ends_with_task``. The final observation of
    an episode is a real point, with an action and a reward of zero. Of several strides, a window is a start and one
    of them; larger ones fit at fewer starts. Returns by a goal radius leave out rewards that are discounted to less
    than a thousandth, although a power below 1 makes those larger: 0.001 to the power 0.25 is 0.18.

    Args:
        episodes: the data.
        options: horizon, stride, goals and returns.
        normalizer: applied to every field.
        device: of the batches.
        seed: of the draw.
        unencoded: what makes the features of images that the episodes hold, once their encoder is trained.

    Raises:
        ConfigError: if every episode is shorter than a window, the data lack goals, or there are no windows.
    """

    def __init__(
        self,
        episodes: Episodes,
        options: DataOptions,
        normalizer: Normalizer,
        device: torch.device | str = "cpu",
        seed: int = 0,
        unencoded: Unencoded | None = None,
    ) -> None:
        _require_goals(episodes, options)
        self.options, self.seed, self.device = options, seed, torch.device(device)
        self.normalizer = normalizer.to(device)
        self._home = home = _home(episodes, self.device)

        def at_home(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).to(home)

        self._count, self._before = window_counts(episodes, options, home)
        self._first, self._last = at_home(episodes.starts), at_home(episodes.ends)  # (E,)
        self._terminated = at_home(episodes.terminated)  # (E,)
        fields = {"states": episodes.states, "actions": episodes.actions, "rewards": episodes.rewards}
        if options.goals != "none" and episodes.goals is not None:
            fields["goals"], self._goal_ends = episodes.goals, at_home(_goal_ends(episodes))
        if episodes.achieved is not None:
            fields["achieved"] = episodes.achieved
        if unencoded is not None and episodes.images is not None:
            fields["images"] = episodes.images
        self._unencoded, self._has_images = unencoded, False
        self._strides = torch.tensor(options.strides, device=home)
        self._pair = torch.arange(2, device=home) * options.strides[0]
        self._points = torch.arange(options.horizon, device=home) * self._strides.unsqueeze(1)  # (strides, T)
        self._chunk = torch.arange(options.chunk, device=home)
        self._action_dim = episodes.space.action_dim
        # Points of all strides lie on a grid, for which rewards are summed once.
        self._grid = math.gcd(*options.strides)
        cells = options.horizon * options.strides[-1] // self._grid
        if options.goal_radius is None:
            fields["returns"] = returns_to_go(episodes, options.discount)
        else:
            ahead = strides_ahead(episodes, self._grid, options.discount)
            self._step_discounts = options.discount ** torch.arange(self._grid, device=home)
            self._stride_discounts = at_home(stride_discounts(cells, self._grid, options.discount, ahead))
            cells += ahead - 1
        self._ahead = torch.arange(cells * self._grid, device=home)
        stretches = {"rewards": len(self._ahead)}
        if len(options.strides) == 1:
            stretches["actions"] = options.horizon * options.strides[0]
        if "achieved" in fields:
            stretches["achieved"] = len(self._ahead) + 1
        self._fields: Columns = Mapped(fields, stretches) if is_mapped(episodes) else Resident(fields, home, stretches)
        self._names = frozenset(fields)
        self.sampling: GoalSampling | None = None  # of the goals of transitions; None leaves them out
        self._past_steps = 0  # from a window's start to its current point
        self.on_device = home == self.device and not is_mapped(episodes)
        self._open()

    def _open(self) -> None:
        """Makes what no two sources on the same data share."""
        self.generator = torch.Generator(self._home)
        self._ahead_of_device = None if self._home == self.device else BatchesAhead(self._raw_batch, self.device)

    def __len__(self) -> int:
        """W, the number of different windows."""
        return self._count

    def batch(self, step: int, size: int, rank: int = 0) -> Batch:
        """The batch of ``size`` windows of ``step``; always the same one, and another for each ``rank``."""
        if self._ahead_of_device is not None:
            return self._normalized(self._ahead_of_device(step, size, rank))
        return self._normalized(self._raw_batch(step, size, rank))

    def with_transitions(self, sampling: GoalSampling) -> Windows:
        """The same windows, whose batches carry `Batch.transitions` for the goals that ``sampling`` says."""
        windows = copy(self)
        windows.sampling = sampling
        windows._open()
        return windows

    def with_past(self, steps: int) -> Windows:
        """The same windows with goals of the point ``steps`` after their start: its own, or reached later than it."""
        windows = copy(self)
        windows._past_steps = steps
        windows._open()
        return windows

    def with_images(self) -> Windows:
        """The same windows, whose batches carry `Batch.images`; their features are zero until they are `encoded`."""
        windows = copy(self)
        windows._has_images = "images" in self._names
        windows._open()
        return windows

    def without_features(self) -> Windows:
        """The same windows with zeros for the features of images that are not encoded yet."""
        windows = copy(self)
        windows._unencoded = None
        windows._open()
        return windows

    def encoded(self) -> Windows:
        """These windows, with the features of images that their encoder makes now; it is not trained any more."""
        if self._unencoded is not None:
            self._unencoded(self._fields)
        return self

    def validation(self, episodes: Episodes) -> Windows:
        """The windows of the validation episodes, on the same data; which ones those are depends on the data alone.

        Args:
            episodes: the data of these windows.

        Raises:
            ConfigError: if there are none.
        """
        windows = copy(self)
        windows._count, windows._before = window_counts(episodes, self.options, self._home, val=True)
        windows._open()
        return windows

    def seed_draw(self, step: int, rank: int = 0) -> None:
        """Seeds the generator for the batch of a step."""
        self.generator.manual_seed(draw_seed(self.seed, step, rank))

    def draw(self, size: int) -> Batch:
        """A batch of ``size`` windows by the generator's next random numbers."""
        return self._normalized(self._raw_draw(size))

    def _raw_batch(self, step: int, size: int, rank: int) -> Batch:
        self.seed_draw(step, rank)
        return self._raw_draw(size)

    @torch.no_grad()
    def _normalized(self, batch: Batch) -> Batch:
        norm, transitions = self.normalizer, batch.transitions
        if transitions is not None:
            goals = None if transitions.goals is None else norm.goal(transitions.goals)
            actions, next_states = norm.action(transitions.actions), norm.state(transitions.next_states)
            transitions = replace(transitions, actions=actions, next_states=next_states, goals=goals)
        return replace(
            batch,
            states=norm.state(batch.states),
            actions=norm.action(batch.actions),
            rewards=norm.reward(batch.rewards),
            returns=norm.returns(batch.returns),
            chunk_states=norm.state(batch.chunk_states),
            chunk_actions=norm.action(batch.chunk_actions),
            goals=None if batch.goals is None else norm.goal(batch.goals),
            transitions=transitions,
        )

    @torch.no_grad()
    def _raw_draw(self, size: int) -> Batch:
        """A batch where the data lie, in their own units."""
        options, random = self.options, self.generator
        window = torch.randint(self._count, (size,), generator=random, device=self._home)
        group = torch.searchsorted(self._before, window, right=True) - 1  # an episode at a stride
        episode, time = group % len(self._first), window - self._before[group]
        number = group // len(self._first) if len(options.strides) > 1 else None  # of the window's stride
        row, end = (self._first[episode] + time)[:, None], self._last[episode, None]  # (B, 1)
        past = self._past_steps
        current = (row + past).minimum(end - 1) if past else row  # goals are pursued from here on
        turn = self._goal_end(current) if "goals" in self._names else end
        goal = self._goal(current, turn, random)
        near, is_over = self._near_goal(row, goal), self._terminated[episode, None]
        if near is not None and options.terminate_at_goal:
            arrives = near & (row + self._ahead >= current) if past else near
            first_near = torch.where(arrives.any(1), row[:, 0] + arrives.int().argmax(1) + 1, end[:, 0] + 1)[:, None]
            is_over = is_over | (first_near <= end)
            end = end.minimum(first_near)

        absorbs, last = is_over & options.absorbing_terminals, end
        if options.absorbing_goals and "goals" in self._names:
            absorbs, end = absorbs | (turn < end), end.minimum(turn)

        offsets = self._points if number is None else self._points[number]
        points, chunk = row + offsets, row + self._chunk  # (B, T), (B, H)
        at, along = points.minimum(end), chunk.minimum(end)
        is_step = row + self._ahead < end  # (B, steps ahead)
        if near is None:
            rewards = self._fields.from_each("rewards", row[:, 0])[0] * is_step  # (B, steps ahead)
            returns = self._fields.at("returns", at)
            if options.absorbing_goals and "goals" in self._names:  # what follows was earned for another goal
                returns = returns - options.discount ** (end - at) * self._fields.at("returns", end)
        else:
            rewards = (near & is_step).to(torch.float32)
            cells = rewards.unflatten(1, (-1, self._grid)) @ self._step_discounts
            returns = cells @ self._stride_discounts  # (B, T), or of several strides at all points of the grid
            returns = returns if number is None else returns.gather(1, offsets // self._grid)

        return Batch(
            states=self._fields.at("states", at),
            actions=self._actions(row[:, 0], is_step),
            rewards=self._rewards(rewards, number),
            returns=returns,
            mask=(points <= end) | absorbs,
            chunk_states=self._fields.at("states", along),
            chunk_actions=self._fields.at("actions", along),
            chunk_mask=chunk < end,
            goals=goal,
            terminals=(points >= last) & is_over,
            time=time,
            stride=None if number is None else self._strides[number],
            transitions=self._transitions(episode, row, goal, random),
            images=self._fields.at("images", (row + self._pair).minimum(end)) if self._has_images else None,
        )

    def _actions(self, row: Tensor, is_step: Tensor) -> Tensor:
        """The actions (B, T, M, A) from each point to the next from ``row`` (B,) on; of several strides M is 0."""
        if len(self._strides) > 1:
            return torch.zeros(len(row), self.options.horizon, 0, self._action_dim, device=self._home)
        actions = self._fields.from_each("actions", row)  # (A, B, T * M)
        actions = actions.mul_(is_step[:, : actions.shape[-1]]).movedim(0, -1)  # (B, T * M, A)
        return actions.unflatten(1, (self.options.horizon, -1))

    def _rewards(self, rewards: Tensor, number: Tensor | None) -> Tensor:
        """The sums (B, T) of rewards (B, steps ahead) from each point to the next, of strides of these numbers (B,)."""
        cells = rewards.unflatten(1, (-1, self._grid)).sum(2)
        if number is None:
            return cells[:, : self.options.horizon]
        before = torch.nn.functional.pad(cells.cumsum(1), (1, 0))
        first, after = (offsets // self._grid for offsets in (self._points, self._points + self._strides.unsqueeze(1)))
        return before.gather(1, after[number]) - before.gather(1, first[number])

    def _transitions(
        self, episode: Tensor, row: Tensor, goal: Tensor | None, random: torch.Generator
    ) -> Transitions | None:
        """The steps of the chunks of windows that start at ``row`` (B, 1), for their goals (B, G) and further ones."""
        sampling = self.sampling
        if sampling is None:
            return None
        last = self._last[episode, None]  # (B, 1)
        step, following = row + self._chunk, (row + 1 + self._chunk).minimum(last)  # (B, H)
        rewards = self._fields.at("rewards", step.minimum(last)).unsqueeze(1)  # (B, 1, H)
        terminals = ((step + 1 == last) & self._terminated[episode, None]).unsqueeze(1)  # (B, 1, H)
        goals = None if goal is None else goal.unsqueeze(1)  # (B, 1, G)
        if goals is not None and self.options.goal_radius is not None:
            if sampling.goals:
                goals = torch.cat([goals, self._further_goals(sampling, row, last, random)], dim=1)  # (B, Q, G)
            distance = self._fields.at("achieved", following).unsqueeze(1) - goals.unsqueeze(2)  # (B, Q, H, G)
            near = distance.square().sum(-1) <= self.options.goal_radius**2
            rewards = (near & (step < last).unsqueeze(1)).float()
            terminals = terminals | near if self.options.terminate_at_goal else terminals.expand_as(near)
        return Transitions(
            actions=self._fields.at("actions", step.minimum(last)),
            next_states=self._fields.at("states", following),
            rewards=rewards,
            terminals=terminals,
            mask=step < last,
            goals=goals,
        )

    def _further_goals(self, sampling: GoalSampling, row: Tensor, last: Tensor, random: torch.Generator) -> Tensor:
        """Positions (B, Q - 1, G) that the data reach: at once, later in the episode, or anywhere."""
        shape = (len(row), sampling.goals)
        choice, later = torch.rand(2, *shape, generator=random, device=self._home)
        window = torch.randint(self._count, shape, generator=random, device=self._home)
        group = torch.searchsorted(self._before, window, right=True) - 1
        anywhere = self._first[group % len(self._first)] + window - self._before[group] + 1
        remaining = last - row - 1  # beyond the first step
        steps = later * (remaining + 1)  # uniform, where nothing is discounted
        if self.options.discount < 1:
            steps = later.log() / math.log(self.options.discount)
        rows = row + 1 + steps.minimum(remaining).long()
        rows = torch.where(choice < sampling.current + sampling.random, anywhere, rows)
        rows = torch.where(choice < sampling.current, row + 1, rows)
        return self._fields.at("achieved", rows)

    def _goal_end(self, row: Tensor) -> Tensor:
        """The rows (B, 1) after ``row`` up to which the data pursue the same goal."""
        after = torch.searchsorted(self._goal_ends, row, right=True)
        return self._goal_ends[after.clamp(max=len(self._goal_ends) - 1)]

    def _goal(self, row: Tensor, last: Tensor, random: torch.Generator) -> Tensor | None:
        """The goals (B, G) at ``row`` (B, 1): the data's, or a position reached later, up to the row ``last``."""
        if "goals" not in self._names:
            return None
        goals = self._fields.at("goals", row[:, 0])
        if self.options.goals == "dataset" or "achieved" not in self._names:
            return goals
        where, relabel = torch.rand(2, *row.shape, generator=random, device=self._home)
        most = last - row
        steps = where * most if self.options.relabel_steps == "uniform" else (1 + most) ** where - 1
        later = row + 1 + steps.long().minimum(most - 1)  # row < later <= last
        return torch.where(relabel < 1 - self.options.relabel_ratio, goals, self._fields.at("achieved", later[:, 0]))

    def _near_goal(self, row: Tensor, goal: Tensor | None) -> Tensor | None:
        """Whether each step from the window's start leads to the goal (B, steps ahead); None without a radius."""
        if self.options.goal_radius is None or goal is None:
            return None
        after = self._fields.from_each("achieved", row[:, 0])[..., 1:]  # (G, B, steps)
        return (after - goal.t().unsqueeze(-1)).square_().sum(0) <= self.options.goal_radius**2


def fit_normalizer(episodes: Episodes, options: DataOptions, normalizer: Normalizer | None = None) -> Normalizer:
    """The normalizer of a data set, by default a new one, fitted on a seeded sample of its windows."""
    space, goal_dim = episodes.space, 0 if options.goals == "none" else episodes.space.goal_dim
    windows = Windows(episodes, options, Normalizer(space.state_dim, space.action_dim, goal_dim))
    samples: dict[str, list[Tensor]] = {name: [] for name in ("state", "action", "reward", "returns", "goal")}
    for step in range(SAMPLE[0]):  # of a batch only these numbers stay in memory, whatever the size of the data set
        batch = windows.batch(step, SAMPLE[1])
        samples["state"].append(batch.states[batch.mask])
        samples["action"].append(batch.chunk_actions[batch.chunk_mask])
        samples["reward"].append(batch.rewards[batch.mask][:, None])
        samples["returns"].append(batch.returns[batch.mask])
        if batch.goals is not None:
            samples["goal"].append(batch.goals)
    normalizer = normalizer or Normalizer(space.state_dim, space.action_dim, goal_dim, options.return_power)
    normalizer.fit({name: torch.cat(values) for name, values in samples.items() if values})
    return normalizer


def _home(episodes: Episodes, device: torch.device) -> torch.device:
    """Where the data lie: on the device, or on the host if they would fill more than half of the device's free memory.

    Laying them out takes their size once more for a moment.
    """
    if device.type != "cuda":
        return device
    if is_mapped(episodes):
        return HOST
    size = sum(values.nbytes for values in vars(episodes).values() if isinstance(values, np.ndarray))
    free, _ = torch.cuda.mem_get_info(device)
    return device if size <= free / 2 else HOST


def _goal_ends(episodes: Episodes) -> np.ndarray:
    """The rows, in order, at which another goal begins than in the row before, and those at which episodes end."""
    if episodes.goals is None:
        return episodes.ends
    rows = [episodes.ends]
    for first in range(0, len(episodes.goals) - 1, BLOCK):
        goals = episodes.goals[first : first + BLOCK + 1]
        rows.append(first + 1 + np.flatnonzero((goals[1:] != goals[:-1]).any(1)))
    return np.unique(np.concatenate(rows))


def _require_goals(episodes: Episodes, options: DataOptions) -> None:
    """Raises a ConfigError if the options need goals that the data lack."""
    measured = options.goals == "hindsight" or options.goal_radius is not None
    for field, is_needed in {"goals": options.goals != "none", "achieved": measured}.items():
        if is_needed and getattr(episodes, field) is None:
            raise ConfigError(
                f"data.goals={options.goals} needs {field} in each episode.",
                got=f"data set {episodes.name!r} without them",
                fix="name data.goal_key and data.achieved_key, or take data.goals=none",
            )
