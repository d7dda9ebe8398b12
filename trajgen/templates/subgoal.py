"""A subgoal of one's own: the goal that a plan is made for, on the way to the episode's own."""

import numpy as np
import torch
from torch import Tensor, nn

from trajgen import register
from trajgen.core.normalizer import Normalizer
from trajgen.nn.layers import columns


@register("subgoal", "mine")
class MineSubgoal(nn.Module):
    """The goal itself where it is near, and else a point on the straight line to it.

    Args:
        goal_state: indices of the state features that goals specify.
        normalizer: of the data.
        step: distance of subgoals, as a multiple of what the data cover in a tenth of an episode (median).
    """

    length: Tensor

    # Before the *: what the composition gives, by name. After it: options, with types and literal defaults.
    def __init__(self, goal_state: tuple[int, ...], normalizer: Normalizer, *, step: float = 1.0) -> None:
        super().__init__()
        self.goal_state, self.step = list(goal_state), step
        self._normalizer = [normalizer]  # in a list: its buffers belong to the planner
        self.register_buffer("length", torch.ones(()))  # a buffer is kept in the checkpoint

    def forward(self, state: Tensor, goal: Tensor) -> Tensor:
        """Subgoals (B, G), normalized, of normalized states (B, S) and goals (B, G)."""
        maps = self._normalizer[0]
        here = columns(maps.state.inverse(state), self.goal_state)
        way = maps.goal.inverse(goal) - here
        share = (self.step * self.length / way.norm(dim=1, keepdim=True).clamp(min=1e-6)).clamp(max=1)
        return maps.goal(here + share * way)

    def fit(self, positions: np.ndarray, starts: np.ndarray) -> None:
        """Called once, before the training, with the positions (M, G) of all episodes, which begin at ``starts``."""
        steps = max(1, len(positions) // len(starts) // 10)
        ways = np.linalg.norm(positions[steps:] - positions[:-steps], axis=1)
        self.length.fill_(float(np.median(ways)))
