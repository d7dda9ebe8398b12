"""How codes make up a latent: as scales of a pyramid that add up, or as tokens in a row."""

from __future__ import annotations

from trajgen.core.errors import ConfigError
from trajgen.core.schedule import ScaleSchedule
from trajgen.tokenizers.pyramid import Pyramid, ResidualPyramid, is_pyramid, pyramid_schedule
from trajgen.tokenizers.row import TokenRow, is_row

Layout = Pyramid | TokenRow


def layout_of(schedule: ScaleSchedule, code_dim: int, length: int) -> Layout:
    """The layout that a schedule asks for: a residual pyramid if it ends at N, a row if it adds up to N.

    One scale of N tokens does both, and makes a pyramid of one storey.

    Args:
        schedule: the scales.
        code_dim: C.
        length: N.

    Raises:
        ConfigError: if it does neither.
    """
    if is_pyramid(schedule, length):
        return ResidualPyramid(schedule, code_dim, length)
    if is_row(schedule, length):
        return TokenRow(schedule, code_dim, length)
    raise ConfigError(
        "The scales end at the latent length with none longer (a residual pyramid), or add up to it (a row of tokens).",
        expected=f"a last and longest scale of {length}, or lengths that add up to {length}",
        got=f"schedule {schedule}, which adds up to {schedule.tokens}",
        fix=f"{pyramid_schedule(length)} for a pyramid, or schedule=unit for a row",
    )
