"""The facts of a run that its page shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trajgen.core.files import LARGEST_NUMBER
from trajgen.core.options import entry
from trajgen.evaluation.protocol import episode_options
from trajgen.viz.summary import Row


@dataclass(frozen=True)
class Picture:
    """A picture within the page."""

    caption: str
    source: str  # a data URI
    wide: bool = False
    """Whether it is too wide to be read on a telephone as a whole."""


@dataclass
class Facts:
    """The facts of a run."""

    label: str
    folder: Path
    """Of the run, or of an evaluation in it."""
    config: dict[str, Any]
    command: str | None = None
    evaluation: dict[str, Any] = field(default_factory=dict)
    named_env: dict[str, Any] = field(default_factory=dict)
    """The environment that its data set names."""
    scores: list[Row] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    weights: int | None = None
    pictures: list[Picture] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def episode_options(self) -> dict[str, Any]:
        """What decides its episodes besides environment and seed."""
        data = self.config.get("data")
        return episode_options(data if isinstance(data, Mapping) else {}, self.named_env)

    def total(self, name: str) -> float | None:
        """``minutes`` or ``steps`` of all stages."""
        return sum(float(stage[name]) for stage in self.stages) if self.stages else None

    def number(self, *keys: str) -> float | None:
        """A figure of the evaluation by its path; None where there is no finite number."""
        value = entry(self.evaluation, keys)
        return float(value) if _is_finite(value) else None

    def interval(self, *keys: str) -> tuple[float, float] | None:
        """An interval of the evaluation by its path."""
        ends = entry(self.evaluation, keys)
        if not isinstance(ends, list) or len(ends) != 2 or not all(map(_is_finite, ends)):
            return None
        return float(ends[0]), float(ends[1])

    def episode_returns(self) -> dict[int, float]:
        """The return of each episode by its seed; failed ones are left out."""
        seeds, returns = self.evaluation.get("seeds"), entry(self.evaluation, ("episode_returns", "policy"))
        if not isinstance(returns, list) or not isinstance(seeds, list) or len(seeds) != 2:
            return {}
        if not all(type(seed) is int for seed in seeds) or seeds[1] - seeds[0] + 1 != len(returns):
            return {}
        return {seed: float(value) for seed, value in enumerate(returns, seeds[0]) if _is_finite(value)}


def _is_finite(value: Any) -> bool:
    return math.isfinite(value) if isinstance(value, float) else type(value) is int and abs(value) <= LARGEST_NUMBER
