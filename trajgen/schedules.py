"""Scale schedules: functions from a latent length N to the lengths of the scales.

A residual pyramid needs the last scale to have length N; a token sequence needs the lengths to add up to N. The
tokenizer says which, and refuses a schedule that does not fit.
"""

from __future__ import annotations

from trajgen.core.errors import ConfigError
from trajgen.core.registry import register
from trajgen.core.schedule import ScaleSchedule


@register("schedule", "geometric")
def geometric(length: int, *, scales: int = 4) -> ScaleSchedule:
    """Lengths that grow by a constant factor from 1 to N, as (1, 2, 4, 8): MAGE, section 3.

    Args:
        length: N.
        scales: K, at most N.

    Raises:
        ConfigError: if N is too short for that many different lengths.
    """
    _check_scales(length, scales)
    if scales == 1:
        return ScaleSchedule((length,))
    lengths: list[int] = []
    for k in range(scales):
        # Rounding can repeat a length; the next scale is then one longer, and room is left for those above.
        grown = round(length ** (k / (scales - 1)))
        lowest = lengths[-1] + 1 if lengths else 1
        lengths.append(min(max(grown, lowest), length - (scales - 1 - k)))
    return ScaleSchedule(tuple(lengths))


@register("schedule", "linear")
def linear(length: int, *, scales: int = 4) -> ScaleSchedule:
    """Lengths that grow by a constant amount up to N, as (2, 4, 6, 8).

    Args:
        length: N.
        scales: K, at most N.

    Raises:
        ConfigError: if N is too short for that many different lengths.
    """
    _check_scales(length, scales)
    return ScaleSchedule(tuple(-(-length * (k + 1) // scales) for k in range(scales)))


@register("schedule", "explicit")
def explicit(length: int, *, lengths: tuple[int, ...] = (1, 2, 4, 8)) -> ScaleSchedule:
    """Lengths given one by one.

    Args:
        length: N, which the tokenizer compares with what is given.
        lengths: l_1 to l_K.

    Raises:
        ConfigError: if there is none, or one is not positive.
    """
    return ScaleSchedule(tuple(lengths))


@register("schedule", "unit")
def unit(length: int) -> ScaleSchedule:
    """N scales of one token: next-token order, as Trajectory Transformer and TAP."""
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
        coarse: l_1, less than N.

    Raises:
        ConfigError: if the coarse scale is not shorter than the latent.
    """
    if not 0 < coarse < length:
        raise ConfigError(
            "The coarse scale of a two-level schedule is shorter than the latent.",
            expected=f"1 to {length - 1}",
            got=f"schedule.coarse={coarse}",
            fix=f"schedule.coarse={max(1, length // 4)}",
        )
    return ScaleSchedule((coarse, length))


def _check_scales(length: int, scales: int) -> None:
    if not 0 < scales <= length:
        raise ConfigError(
            "A schedule of growing scales has at least one and at most as many scales as the latent is long.",
            expected=f"1 to {length}",
            got=f"schedule.scales={scales}",
            fix=f"schedule.scales={min(max(scales, 1), length)}, or a longer latent",
        )
