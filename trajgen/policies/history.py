"""The last points of each of several episodes, for planners that continue a history."""

from __future__ import annotations

import torch
from torch import Tensor

from trajgen.core.types import Batch


class History:
    """The last P points of N episodes, normalized; each step moves them on by one.

    Which points are real follows from the step of the newest: those before an episode's first step are masked, so an
    episode that starts anew at step 0 leaves the one before it behind. All shapes stay the same, and no window that
    was given out changes afterwards.

    Args:
        episodes: N.
        points: P.
        state_dim: S.
        action_dim: A.
        device: where the points lie.
    """

    def __init__(
        self, episodes: int, points: int, state_dim: int, action_dim: int, device: torch.device | str = "cpu"
    ) -> None:
        self._states = torch.zeros(episodes, points, state_dim, device=device)
        self._actions = torch.zeros(episodes, points, action_dim, device=device)
        self._rewards = torch.zeros(episodes, points, device=device)
        self._returns = torch.zeros(episodes, points, device=device)
        self._back = torch.arange(1 - points, 1, device=device)
        self._steps = self._back.expand(episodes, -1) - 1  # nothing is real before the first push

    def push(self, state: Tensor, step: Tensor) -> None:
        """Adds a point, whose return, action and reward are recorded later.

        Args:
            state: (N, S).
            step: of each episode, (N,) int64: 0 at its start, and one more at every point.
        """
        self._states = _shifted(self._states, state)
        self._returns = _shifted(self._returns, torch.zeros_like(self._returns[:, 0]))
        self._actions = _shifted(self._actions, torch.zeros_like(self._actions[:, 0]))
        self._rewards = _shifted(self._rewards, torch.zeros_like(self._rewards[:, 0]))
        self._steps = step.to(self._back).unsqueeze(1) + self._back

    def record_return(self, returns: Tensor, episodes: Tensor) -> None:
        """Sets the target return-to-go (n,) at the newest points of some episodes (n,)."""
        self._returns = _with_last(self._returns, self._returns[:, -1].index_copy(0, episodes, returns))

    def record_action(self, action: Tensor) -> None:
        """Sets the action (N, A) taken at the newest point."""
        self._actions = _with_last(self._actions, action)

    def record_reward(self, reward: Tensor) -> None:
        """Sets the reward (N,) received at the newest point."""
        self._rewards = _with_last(self._rewards, reward)

    def past(self) -> Batch:
        """The points as windows of stride 1, the newest last.

        Where a window reaches back beyond its episode's start, points are masked and ``time`` is negative.
        """
        return Batch.from_history(self._states, self._actions, self._rewards, self._returns, self._steps)


def _shifted(points: Tensor, newest: Tensor) -> Tensor:
    """Points (N, P, ...) without the oldest, and with the newest (N, ...)."""
    return torch.cat([points[:, 1:], newest.unsqueeze(1)], dim=1)


def _with_last(points: Tensor, newest: Tensor) -> Tensor:
    """Points (N, P, ...) with the newest (N, ...) in place of the last."""
    return torch.cat([points[:, :-1], newest.unsqueeze(1)], dim=1)
