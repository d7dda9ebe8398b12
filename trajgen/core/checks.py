"""Checks of options that components of several rooms share."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from trajgen.core.errors import ConfigError


def check_range(option: str, value: float | None, low: float, high: float = math.inf, *, usual: float) -> None:
    """Refuses an option outside of ``low`` to ``high``.

    Args:
        option: its full name, such as ``tokenizer.width``.
        value: what it is set to; None passes.
        low: the lowest value allowed.
        high: the highest value allowed.
        usual: the value that the error proposes.

    Raises:
        ConfigError: if the value is out of range.
    """
    if value is not None and not low <= value <= high:
        raise ConfigError(
            f"{option} is out of range.",
            expected=f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}",
            got=f"{option}={value}",
            fix=f"{option}={usual:g}",
        )


def check_device(name: str) -> None:
    """Raises a `ConfigError` for a device of another name than those that are documented; imports no torch."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", name, re.ASCII):
        raise ConfigError(f"There is no device={name}.", expected="auto, cpu, cuda or cuda:N", fix="device=auto")


def check_finite(option: str, *values: float | None) -> None:
    """Raises a `ConfigError` for a value that is no finite number; None passes."""
    for value in values:
        if value is not None and not math.isfinite(value):
            raise ConfigError(f"{option} is finite.", got=f"{option}={value}", fix=f"leave {option} out")


def refuse_idle(options: Iterable[str], revise: int | None) -> None:
    """Raises a `ConfigError` for options of revisions that are typed where no plan is revised.

    Those of a task, or that a study sets for all variants, are not typed; and who types ``policy.revise=null`` knows
    that they do nothing.

    Args:
        options: that are typed, by their dotted names.
        revise: the run's ``policy.revise``.
    """
    options = list(options)
    idle = [option for option in options if option.startswith("policy.revise_")]
    if idle and revise is None and "policy.revise" not in options:
        fix = f"policy.revise=2, a scale from which on plans are drawn anew; or leave out {', '.join(idle)}"
        raise ConfigError("No plan is revised.", got=f"{', '.join(idle)} without policy.revise", fix=fix)
