"""Goals relative to the position of the agent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.nn.layers import FourierFeatures, columns

NEAR = 0.02
"""A distance below which directions fade, in deviations of the positions."""


class RelativeGoal(nn.Module):
    """Features of the way from the position in a state to a goal: its direction, and the logarithm of its length.

    At the goal the direction fades to 0, and the length is `NEAR`.

    A network that gets position and goal apart has to learn their difference, which is small beside both where goals
    are near.

    Args:
        goal_dim: G.
        goal_state: the G features of the state that a goal specifies.
        normalizer: of the data.
        state_dim: of the states from which goals are seen.
        frequencies: Fourier frequencies of each feature.

    Raises:
        ConfigError: if goals do not specify features of the state, or states are of one agent of a team.
    """

    def __init__(
        self,
        goal_dim: int,
        goal_state: Sequence[int],
        normalizer: Normalizer | None,
        state_dim: int,
        *,
        frequencies: int = 2,
    ) -> None:
        super().__init__()
        if normalizer is None or not goal_dim or len(goal_state) != goal_dim:
            raise ConfigError(
                "A relative goal is the way to it from a position in the state.",
                got=f"data.relative_goals=true, goals of {goal_dim} numbers and data.goal_state={list(goal_state)}",
                fix="data.goal_state with as many features, or data.relative_goals=false",
            )
        if state_dim != len(normalizer.state.mean):
            raise ConfigError(
                "A relative goal is the way from a position in the team's state, of which an agent's head sees a part.",
                got="data.relative_goals=true with view=agents action.goal=true",
                fix="action.goal=false, or data.relative_goals=false",
            )
        self.indices = list(goal_state)
        self._normalizer = [normalizer]  # in a list: its buffers belong to the planner, not to this module
        self.features = FourierFeatures(goal_dim + 1, frequencies)
        self.out_features = self.features.out_features

    def forward(self, goal: Tensor, state: Tensor) -> Tensor:
        """Features (..., F) of normalized goals (..., G) seen from normalized states (..., S)."""
        maps = self._normalizer[0]
        way = maps.goal.inverse(goal) - columns(maps.state.inverse(state), self.indices)
        way = way / columns(maps.state.scale, self.indices).mean()
        length = way.norm(dim=-1, keepdim=True) + NEAR
        return self.features(torch.cat([way / length, length.log()], dim=-1))
