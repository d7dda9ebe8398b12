"""Subgoals: the goal that a plan is made for, on the way to the episode's own."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from trajgen.core.checks import check_range
from trajgen.core.errors import ConfigError
from trajgen.core.normalizer import Normalizer
from trajgen.core.registry import register
from trajgen.nn.layers import columns

SAMPLED_ROWS = 100_000
"""Positions of the data among which landmarks are chosen."""
ROWS_OF_A_LANDMARK = 32
"""Least number of rows of the data for each landmark."""
UNREACHABLE = torch.iinfo(torch.int16).max
"""Number of edges to a landmark to which no path leads."""


@register("subgoal", "graph")
class LandmarkGraph(nn.Module):
    """The farthest landmark within reach on a shortest path to the goal, or the goal itself within reach.

    Landmarks are positions of the data, each as far as can be from those before it. An edge leads from one to another
    where an episode went from places nearest to the one to places nearest to the other in the time between two
    points of a plan. So plans have near goals, however long the whole path is
    (search on the replay buffer, arXiv 1906.05253; graph-assisted stitching, arXiv 2506.07744). Edges count alike,
    however short the way was: a subgoal can lie farther away than the data go in ``reach`` points.

    Nothing is trained: the graph is made of the data before the first stage, and kept in the checkpoint.

    Args:
        goal_dim: G.
        goal_state: indices of the state features that goals specify.
        strides: environment steps between the points of a plan, one or several; edges are of the first.
        normalizer: of the data.
        landmarks: most of them; one for each 32 rows of smaller data. The checkpoint holds two bytes for each pair.
        reach: edges to a subgoal at most.

    Raises:
        ConfigError: if goals do not specify state features, or an option is out of range.
    """

    positions: Tensor
    leads_on: Tensor
    hops: Tensor

    def __init__(
        self,
        goal_dim: int,
        goal_state: tuple[int, ...],
        strides: tuple[int, ...],
        normalizer: Normalizer,
        *,
        landmarks: int = 1024,
        reach: int = 3,
    ) -> None:
        super().__init__()
        check_range("subgoal.landmarks", landmarks, 2, 4096, usual=1024)
        check_range("subgoal.reach", reach, 1, usual=3)
        if not (goal_dim and goal_state):
            raise ConfigError(
                "Subgoals are positions on the way to a goal, by data.goal_state.",
                got=f"goals of width {goal_dim}, data.goal_state={list(goal_state)}",
                fix="'~subgoal'",
            )
        self.indices, self.steps, self.reach = list(goal_state), strides[0], reach
        self._normalizer = [normalizer]  # in a list: its buffers belong to the planner, not to this module
        self.register_buffer("positions", torch.zeros(landmarks, goal_dim))  # in units of the goal
        self.register_buffer("leads_on", torch.zeros(landmarks, dtype=torch.bool))  # to another one
        self.register_buffer("hops", torch.full((landmarks, landmarks), UNREACHABLE, dtype=torch.int16))

    def forward(self, state: Tensor, goal: Tensor) -> Tensor:
        """Subgoals (B, G), normalized, of normalized states (B, S) and goals (B, G)."""
        maps = self._normalizer[0]
        here = columns(maps.state.inverse(state), self.indices)
        start = self._nearest(here, self.leads_on)
        from_here = self.hops[start].to(here.dtype)  # (B, L)
        end = self._nearest(maps.goal.inverse(goal), from_here < UNREACHABLE)
        to_goal = self.hops.t()[end].to(here.dtype)
        remaining = to_goal + from_here / UNREACHABLE  # of equally good landmarks the nearest
        subgoal = torch.where(from_here <= self.reach, remaining, torch.inf).argmin(1)
        is_far = from_here.gather(1, end.unsqueeze(1)) > self.reach  # (B, 1)
        is_far = is_far & self.leads_on.any()  # nowhere before there are data
        return torch.where(is_far, maps.goal(self.positions[subgoal]), goal)

    def _nearest(self, positions: Tensor, allowed: Tensor) -> Tensor:
        """The numbers (B,) of the landmarks nearest to positions (B, G), of those that are allowed, (L,) or (B, L)."""
        square = (positions.unsqueeze(1) - self.positions).square().sum(-1)
        return torch.where(allowed, square, torch.inf).argmin(1)

    def fit(self, positions: np.ndarray, starts: np.ndarray) -> None:
        """Makes the graph of all rows of the data.

        Args:
            positions: where goals would be reached, (M, G), in their units, episode after episode.
            starts: the first row of each episode, (E,), rising.

        Raises:
            ConfigError: if no episode leads from one landmark to another.
        """
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import shortest_path
        from scipy.spatial import cKDTree

        count = min(len(self.positions), max(2, len(positions) // ROWS_OF_A_LANDMARK))
        landmarks = farthest_points(positions[:: -(-len(positions) // SAMPLED_ROWS)], count)
        count = len(landmarks)
        _, nearest = cKDTree(landmarks).query(positions)
        episode = np.searchsorted(starts, np.arange(len(positions)), side="right")
        first, last = nearest[: -self.steps], nearest[self.steps :]
        is_edge = (episode[: -self.steps] == episode[self.steps :]) & (first != last)
        if not is_edge.any():
            raise ConfigError(
                "No episode leads from one landmark to another, so that there are no subgoals.",
                got=f"{count} landmarks of {len(starts):,} episodes, and edges of {self.steps} steps",
                fix="'~subgoal'",
            )
        edges = csr_array((np.ones(is_edge.sum()), (first[is_edge], last[is_edge])), shape=(count, count))
        hops = np.minimum(shortest_path(edges, unweighted=True), UNREACHABLE)
        device = self.hops.device
        self.positions[:count] = torch.tensor(landmarks, dtype=self.positions.dtype, device=device)
        self.hops.fill_(UNREACHABLE)
        self.hops[:count, :count] = torch.tensor(hops.astype(np.int16), device=device)
        self.leads_on.copy_((self.hops < UNREACHABLE).sum(1) > 1)


def farthest_points(positions: np.ndarray, count: int) -> np.ndarray:
    """At most so many distinct of the positions (M, G), each the one farthest from those before it, from the first on.

    The greatest distance of a position to the nearest of them is at most twice as large as it has to be
    (Gonzalez, Theoretical Computer Science 38, 1985).
    """
    chosen, distance = [0], np.full(len(positions), np.inf)
    while len(chosen) < count:
        distance = np.minimum(distance, np.square(positions - positions[chosen[-1]]).sum(1))
        farthest = int(distance.argmax())
        if not distance[farthest]:
            break
        chosen.append(farthest)
    return positions[chosen]
