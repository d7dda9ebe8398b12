"""The scale schedule: the one description from which masks, spans and loops follow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from trajgen.core.errors import ConfigError


@dataclass(frozen=True)
class ScaleSchedule:
    """The lengths (l_1, ..., l_K) of the scales in which a trajectory's tokens are generated.

    Tokens of one scale are predicted in parallel, from all coarser scales: ``(1, 2, 4, 8)`` is
    next-scale prediction (MAGE, section 3), ``(1,) * L`` is next-token prediction, ``(N,)`` is one
    shot.

    The tokens of a team are a grid of agents and time, one agent's after the other's. ``agents`` says for each scale
    how many it tells apart: 1 where a token is of all of them together, as are all without a team.

    Raises:
        ConfigError: if there is no scale or a length is not a positive whole number.
    """

    lengths: tuple[int, ...]
    agents: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", tuple(self.lengths))
        object.__setattr__(self, "agents", tuple(self.agents) or (1,) * len(self.lengths))
        if not self.lengths or any(not isinstance(n, int) or n < 1 for n in self.lengths):
            raise ConfigError(
                "A schedule is a list of positive scale lengths.",
                expected="for example [1, 2, 4, 8]",
                got=list(self.lengths),
                fix="schedule=explicit 'schedule.lengths=[1,2,4,8]'",
            )

    @cached_property
    def scales(self) -> int:
        """K, the number of scales."""
        return len(self.lengths)

    @cached_property
    def tokens(self) -> int:
        """L, the number of tokens of all scales together."""
        return sum(self.lengths)

    @cached_property
    def spans(self) -> tuple[slice, ...]:
        """For each scale, the slice of the token axis (length L) that it occupies."""
        ends = tuple(accumulate(self.lengths))
        return tuple(slice(end - n, end) for end, n in zip(ends, self.lengths, strict=True))

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """For each of the L tokens, the index of its scale."""
        return tuple(k for k, n in enumerate(self.lengths) for _ in range(n))

    @cached_property
    def agents_of_tokens(self) -> tuple[int, ...]:
        """For each of the L tokens, the number of its agent; -1 for a token of all together."""
        grids = zip(self.lengths, self.agents, strict=True)
        return tuple(-1 if many == 1 else i for n, many in grids for i in range(many) for _ in range(n // many))

    @cached_property
    def positions(self) -> tuple[int, ...]:
        """For each of the L tokens, the number of its scale and time, which agents share."""
        starts = (0, *accumulate(n // many for n, many in zip(self.lengths, self.agents, strict=True)))
        grids = zip(starts, self.lengths, self.agents, strict=False)
        return tuple(start + t for start, n, many in grids for _ in range(many) for t in range(n // many))

    def for_agents(self, agents: int, joint_scales: int) -> ScaleSchedule:
        """The same scales in time: the first few of all agents together, the others of each agent."""
        many = tuple(1 if k < joint_scales else agents for k in range(self.scales))
        return ScaleSchedule(tuple(n * count for n, count in zip(self.lengths, many, strict=True)), many)

    def __iter__(self) -> Iterator[int]:
        return iter(self.lengths)

    def __str__(self) -> str:
        grids = zip(self.lengths, self.agents, strict=True)
        return "(" + ", ".join(str(n) if many == 1 else f"{many}×{n // many}" for n, many in grids) + ")"
