"""A schedule of one's own: how many scales there are, and how long each is."""

from trajgen import ScaleSchedule, register
from trajgen.core.errors import ConfigError


# A schedule is a function of N, the latent's length. After the *: options, with types and literal defaults.
@register("schedule", "mine")
def mine(length: int, *, factor: int = 2) -> ScaleSchedule:
    """Lengths that grow by a factor up to N, as (1, 2, 4, 8)."""
    if factor < 2:  # what cannot work is refused: rule, got, fix
        raise ConfigError(
            "Lengths grow by a factor of at least 2.", got=f"schedule.factor={factor}", fix="schedule.factor=2"
        )
    lengths = [length]  # a pyramid ends at N; the lengths of a row of tokens add up to N
    while lengths[0] > 1:
        lengths.insert(0, lengths[0] // factor or 1)
    return ScaleSchedule(tuple(lengths))
