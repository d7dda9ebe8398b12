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

    Raises:
        ConfigError: if there is no scale or a length is not a positive whole number.
    """

    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", tuple(self.lengths))
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

    def __iter__(self) -> Iterator[int]:
        return iter(self.lengths)

    def __str__(self) -> str:
        return "(" + ", ".join(map(str, self.lengths)) + ")"
