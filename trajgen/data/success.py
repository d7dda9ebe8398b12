"""When an episode has succeeded, by what its world reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trajgen.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SuccessRule:
    """A step is good if an entry of its information is large enough; an episode succeeds by enough good steps.

    Args:
        info: the entry of the step's information. A truth value counts 1 or 0, a list by its length: the kitchen's
            list of completed tasks, say.
        at_least: the least value of a good step.
        steps: the least number of good steps, together or not.

    Raises:
        ConfigError: if no step, or every step, would be good.
    """

    info: str = "success"
    at_least: float = 1.0
    steps: int = 1

    def __post_init__(self) -> None:
        for name, least in (("at_least", 0.0), ("steps", 1)):
            value = getattr(self, name)
            if not value >= least or value == 0:
                raise ConfigError(
                    "A rule of success can be met, and can be missed.",
                    expected=f"data.success.{name} above 0",
                    got=f"data.success.{name}={value}",
                    fix=f"data.success.{name}=1",
                )

    def reached(self, info: Mapping[str, Any]) -> np.ndarray | None:
        """Whether a step is good, () or (B,) for batched information; None if it says nothing about it."""
        if self.info not in info:
            return None
        value = info[self.info]
        if isinstance(value, list | tuple | set):
            value = len(value)
        return np.asarray(np.asarray(value, dtype=np.float64) >= self.at_least)

    @property
    def words(self) -> str:
        """The rule in words."""
        least = "" if self.at_least == 1 else f" of {self.at_least:g} or more"
        steps = "at any step" if self.steps == 1 else f"at {self.steps} steps or more"
        return f"the world's {self.info.replace('_', ' ')}{least} {steps}"
