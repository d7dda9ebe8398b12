"""Scale schedules: functions from a latent length N to the lengths of the scales.

A residual pyramid needs the last scale to have length N; a row of tokens needs the lengths to add up to N. The
tokenizer refuses a schedule that does not fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trajgen.core.checks import check_range
from trajgen.core.registry import register
from trajgen.core.schedule import ScaleSchedule

if TYPE_CHECKING:
    from torch import Tensor


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


@register("schedule", "auto")
class AutoSchedule(ScaleSchedule):
    """Lengths of a pyramid that the data need the fewest bits for; chosen when a training starts.

    A prior draws the tokens of a scale in parallel, one by one: it pays for what they have in common as often as there
    are tokens. A coarser scale says that once, and costs tokens of its own. The lengths are those at which all tokens
    together need the fewest bits, at the distortion that N tokens of the codebook can reach; see `trajgen.nn.rate`.

    Args:
        length: N.
        scale_lengths: that were chosen; those of `geometric`, with 4 scales, until then.
        least_gain: share of the bits that each further scale saves on average, or is left out.

    Raises:
        ConfigError: for a share that is none.
    """

    least_gain: float

    def __init__(self, length: int, scale_lengths: tuple[int, ...], *, least_gain: float = 0.02) -> None:
        check_range("schedule.least_gain", least_gain, 0.0, 1.0, usual=0.02)
        object.__setattr__(self, "least_gain", least_gain)
        super().__init__(scale_lengths or geometric(length, scales=min(4, length)).lengths)

    def choose(self, x: Tensor, code_dim: int, bits: float) -> tuple[tuple[int, ...], str]:
        """The lengths for windows x (W, T, D), and why, in a line; a function of its arguments alone.

        Args:
            x: what the tokenizer reads.
            code_dim: C.
            bits: of a token, log2 V.
        """
        from trajgen.nn.rate import bits_of_scales, cheapest_lengths, latent_covariance, water_level

        covariance = latent_covariance(x, length=self.lengths[-1], channels=code_dim)
        level = water_level(covariance, bits)
        lengths = cheapest_lengths(covariance, level, self.least_gain)
        by_scale = bits_of_scales(covariance, lengths, level)
        why = f"{sum(by_scale):.1f} bits a window at equal distortion ({' + '.join(f'{b:.1f}' for b in by_scale)}), "
        return lengths, why + f"where one scale of {lengths[-1]} tokens needs {lengths[-1] * bits:.1f}"
