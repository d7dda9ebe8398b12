"""What a search chooses from: its options, and the trainings that score them; see `trajgen.experiments.search`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from trajgen.config import Config, quoted, read_yaml
from trajgen.core.errors import ConfigError
from trajgen.core.files import LARGEST_NUMBER
from trajgen.core.options import convert, entry, refuse_unknown, structure
from trajgen.core.registry import KINDS
from trajgen.experiments.definition import (
    check_seeds,
    deciding_options,
    merge_overrides,
    read_overrides,
    read_question,
    refuse_cell_options,
)

TUNING = "evaluation.seed=10000"
"""The episodes by which a search chooses, unless others are named; never those that are reported."""
Value = str | int | float | bool


@dataclass(frozen=True, kw_only=True)
class Span:
    """Numbers from ``low`` to ``high``, both included: integers if both ends are, and drawn evenly in the logarithm
    with ``log``."""

    low: int | float
    high: int | float
    log: bool = False

    @property
    def is_integer(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def __contains__(self, value: object) -> bool:
        kind = int if self.is_integer else (int, float)
        return isinstance(value, kind) and not isinstance(value, bool) and self.low <= value <= self.high


@dataclass(frozen=True, kw_only=True)
class Search:
    """A space of options, searched for the largest ratio to the controller.

    Args:
        name: of its folder.
        space: for each option a span, or a tuple of values.
        question: one line.
        base: overrides that all trials share.
        trials: how many, without the first one, which takes the base alone.
        seeds: of the trainings of each trial.

    Raises:
        ConfigError: if one of them is invalid.
    """

    name: str
    space: Mapping[str, Span | tuple[Value, ...]] = field(default_factory=dict)
    question: str = ""
    base: tuple[str, ...] = ()
    trials: int = 20
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        for key, choices in self.space.items():
            self._check(key, choices)
        check_seeds(self.seeds)
        fixed = [word for word in self.base if any(option in self.space for option in deciding_options(word))]
        if not self.space or self.trials < 1 or fixed:
            raise ConfigError(
                "A search has options to choose, which the base does not set, and at least one trial.",
                got=f"{', '.join(fixed)} beside {', '.join(self.space)}"
                if fixed
                else f"trials={self.trials}, space: {dict(self.space)}",
                fix="space: {prior.depth: {low: 2, high: 6}}; an option in space, or in base; trials=20",
            )
        refuse_cell_options([*self.base, *self.space])

    def _check(self, key: str, choices: Span | tuple[Value, ...]) -> None:
        if isinstance(choices, Span):
            in_range = all(abs(end) <= LARGEST_NUMBER for end in (choices.low, choices.high))  # not so if it is NaN
            good = in_range and choices.low < choices.high and not (choices.log and choices.low <= 0)
        else:
            good = len(choices) > 0 and len({repr(value) for value in choices}) == len(choices)
        if not good or not key or key.startswith("evaluation"):
            raise ConfigError(
                "A search chooses each option, but none of the evaluation, from a span of numbers or different values.",
                got=f"{key}: {choices}",
                fix=f"{key}: {{low: 2, high: 6}}, {key}: {{low: 1.0e-4, high: 1.0e-2, log: true}} or {key}: [1, 2]",
            )

    def with_overrides(self, overrides: Sequence[str]) -> Search:
        """The search with further overrides for all trials."""
        return replace(self, base=merge_overrides(self.base, overrides))

    def overrides(self, params: Mapping[str, Any], components: Mapping[str, Any]) -> tuple[str, ...]:
        """The overrides of a trial; components that are chosen by name come before their options.

        Args:
            params: the values that the trial chose.
            components: those of the base; one that the trial chose too is not named again, and so keeps its options.
        """
        params = {k: v for k, v in params.items() if k not in KINDS or v != (components.get(k) or {}).get("name")}
        texts = {k: str(v).lower() if isinstance(v, bool) else quoted(str(v)) for k, v in params.items()}
        words = [f"{key}={texts[key]}" for key in sorted(params, key=lambda key: key not in KINDS)]
        return merge_overrides((TUNING,), self.base, words)

    def params_of(self, config: Config) -> dict[str, Any]:
        """The values that a configuration has for the options of the space; empty unless all are within it."""
        params: dict[str, Any] = {}
        for key, choices in self.space.items():
            value = entry(config.to_plain(), key.split("."))
            value = value.get("name") if key in KINDS and isinstance(value, Mapping) else value
            if value is None or isinstance(value, list | dict) or value not in choices:
                return {}
            params[key] = value
        return params

    def to_plain(self) -> dict[str, Any]:
        """The definition as plain values of JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


def read_search(path: Path) -> Search:
    """The search of a file.

    Raises:
        ConfigError: for an unknown key, or a value of the wrong type.
    """
    plain = read_yaml(path)
    refuse_unknown(plain, dict.fromkeys(("base", "space", "trials", "seeds")), "")
    space = convert(plain.get("space") or {}, dict[str, Any], "space")
    return Search(
        name=path.stem,
        question=read_question(path),
        base=read_overrides(plain.get("base") or [], "base"),
        space={
            key: structure(Span, value, f"space.{key}")
            if isinstance(value, Mapping)
            else convert(value, tuple[Value, ...], f"space.{key}")
            for key, value in space.items()
        },
        trials=convert(plain.get("trials", 20), int, "trials"),
        seeds=convert(plain.get("seeds", [0]), tuple[int, ...], "seeds"),
    )
