"""Scale schedules: functions from a latent length N to the lengths of the scales.

A residual pyramid needs the last scale to have length N; a row of tokens needs the lengths to add up to N. The
tokenizer refuses a schedule that does not fit.
"""

from __future__ import annotations

from trajgen.core.checks import check_range
from trajgen.core.registry import register
from trajgen.core.schedule import ScaleSchedule


@register("schedule", "geometric")
def geometric(length: int, *, scales: int = 4) -> ScaleSchedule:
    """Lengths that grow by a constant factor from 1 to N, as (1, 2, 4, 8): MAGE, section 3.

    Args:
        length: N.
        scales: number of scales K, at most the latent length N.

    Raises:
        ConfigError: for less than one scale, or more than N.
    """
    check_range("schedule.scales", scales, 1, length, usual=min(4, length))
    if scales == 1:
        return ScaleSchedule((length,))
    lengths: list[int] = []
    for k in range(scales):
        # Rounding can repeat a length: each is longer than the one before, and leaves room for the longer ones.
        rounded = round(length ** (k / (scales - 1)))
        shortest = lengths[-1] + 1 if lengths else 1
        lengths.append(min(max(rounded, shortest), length - (scales - 1 - k)))
    return ScaleSchedule(tuple(lengths))


@register("schedule", "linear")
def linear(length: int, *, scales: int = 4) -> ScaleSchedule:
    """Lengths that grow by a constant amount up to N, as (2, 4, 6, 8).

    Args:
        length: N.
        scales: number of scales K, at most the latent length N.

    Raises:
        ConfigError: for less than one scale, or more than N.
    """
    check_range("schedule.scales", scales, 1, length, usual=min(4, length))
    return ScaleSchedule(tuple(-(-length * (k + 1) // scales) for k in range(scales)))


@register("schedule", "explicit")
def explicit(length: int, *, lengths: tuple[int, ...] = (1, 2, 4, 8)) -> ScaleSchedule:
    """A list of lengths.

    Args:
        length: N, which the tokenizer compares them with.
        lengths: tokens of each scale, l_1 to l_K, coarse to fine.

    Raises:
        ConfigError: if the list is empty, or a length is not positive.
    """
    return ScaleSchedule(tuple(lengths))


@register("schedule", "unit")
def unit(length: int) -> ScaleSchedule:
    """N scales of one token: next-token prediction, as in Trajectory Transformer and TAP."""
    return ScaleSchedule((1,) * length)


@register("schedule", "single")
def single(length: int) -> ScaleSchedule:
    """One scale of N tokens: all in parallel, the K = 1 ablation of MAGE."""
    return ScaleSchedule((length,))


@register("schedule", "two_level")
def two_level(length: int, *, coarse: int = 2) -> ScaleSchedule:
    """A coarse and a fine scale, (coarse, N).

    Args:
        length: N.
        coarse: tokens of the coarse scale, fewer than the latent length N.

    Raises:
        ConfigError: if the coarse scale is not shorter than the latent.
    """
    check_range("schedule.coarse", coarse, 1, length - 1, usual=max(1, length // 4))
    return ScaleSchedule((coarse, length))
