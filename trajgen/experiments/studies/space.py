"""What a search asks: an option space, how many trials, and the overrides that all of them share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajgen.config import read_yaml
from trajgen.core.errors import ConfigError
from trajgen.core.options import convert, refuse_unknown, structure
from trajgen.core.registry import KINDS
from trajgen.evaluation.evaluate import EvaluationOptions
from trajgen.experiments.run_folder import LARGEST_NUMBER
from trajgen.experiments.studies.cells import quoted
from trajgen.experiments.studies.definition import OWN_WORDS, joined, key_of, question_of, words_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trajgen.config import Config

TUNING = "evaluation.seed=10000"
"""The episodes by which a search chooses, unless others are named; never those that are reported."""
Value = str | int | float | bool


@dataclass(frozen=True, kw_only=True)
class Span:
    """Numbers from ``low`` to ``high``, both included: whole ones if both ends are, and evenly on a scale of logarithms
    with ``log``."""

    low: int | float
    high: int | float
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether it is a span of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def __contains__(self, value: object) -> bool:
        kind = int if self.whole else (int, float)
        return isinstance(value, kind) and not isinstance(value, bool) and self.low <= value <= self.high


@dataclass(frozen=True, kw_only=True)
class Search:
    """A space of options, searched for the largest ratio to the controller.

    Args:
        name: of its folder.
        space: for each option a span, or a tuple of values.
        question: in a line.
        base: overrides that all trials share.
        trials: how many, the first, which takes the base as it is, aside.
        seeds: of the trainings of each trial.

    Raises:
        ConfigError: for anything in it that does not fit.
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
        fixed = [word for word in self.base if key_of(word) in self.space]
        problems = {
            "space: {prior.depth: {low: 2, high: 6}}": not self.space and "no options to search",
            "trials=20": self.trials < 1 and f"trials={self.trials}",
            "seeds=[0,1]": (not self.seeds or min(self.seeds) < 0 or len({*self.seeds}) < len(self.seeds))
            and f"seeds={list(self.seeds)}",
            "an option in space, or in base": fixed and f"{', '.join(fixed)} in both",
        }
        for expected, got in problems.items():
            if got:
                raise ConfigError(
                    "A search has options to choose, trials, and different seeds from 0 on.",
                    expected=expected,
                    got=f"{got} in '{self.name}'",
                    fix="docs/studies.md shows one",
                )
        for word in [*self.base, *self.space]:
            if key_of(word) in OWN_WORDS:
                raise ConfigError(
                    "A search sets seed and folder of each trial itself.",
                    expected="overrides of recipe, data, components, engine and policy",
                    got=word,
                    fix=OWN_WORDS[key_of(word)].replace("study", "search"),
                )

    def _check(self, key: str, choices: Span | tuple[Value, ...]) -> None:
        if isinstance(choices, Span):
            ends = all(abs(end) <= LARGEST_NUMBER for end in (choices.low, choices.high))  # not so if it is NaN
            good = ends and choices.low < choices.high and not (choices.log and choices.low <= 0)
        else:
            good = len(choices) > 0 and len({repr(value) for value in choices}) == len(choices)
        if not good or not key or key.startswith("evaluation"):
            raise ConfigError(
                "A search chooses each option from a span of numbers, or from different values.",
                expected="{low: 1, high: 4}, with log: true above 0 only; or [a, b]; not options of the evaluation",
                got=f"{key}: {choices}",
                fix=f"{key}: {{low: 2, high: 6}}, {key}: {{low: 1.0e-4, high: 1.0e-2, log: true}} or {key}: [1, 2]",
            )

    def with_words(self, words: Sequence[str]) -> Search:
        """The search with further overrides for all trials."""
        return replace(self, base=joined(self.base, words))

    def words(self, chosen: Mapping[str, Any]) -> tuple[str, ...]:
        """The overrides of a trial; components that are chosen by name come before their options."""
        own = [f"{key}={_text(chosen[key])}" for key in sorted(chosen, key=lambda key: key not in KINDS)]
        return joined((TUNING,), self.base, own)

    def inside(self, config: Config) -> dict[str, Any] | None:
        """The values that a configuration has for the options of the space; None unless all lie within it."""
        found: dict[str, Any] = {}
        for key, choices in self.space.items():
            value: Any = config.to_plain()
            for part in key.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            value = value.get("name") if key in KINDS and isinstance(value, Mapping) else value
            if value is None or isinstance(value, list | dict) or value not in choices:
                return None
            found[key] = value
        return found

    def to_plain(self) -> dict[str, Any]:
        """The definition as plain values."""
        plain = asdict(self)
        plain["space"] = {k: asdict(v) if isinstance(v, Span) else list(v) for k, v in self.space.items()}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else quoted(str(value))


def require_tuning(config: Config) -> None:
    """Raises a `ConfigError` if a search would choose by episodes whose scores are reported."""
    reported, asked = EvaluationOptions(), config.evaluation
    if asked.seed < reported.seed + reported.episodes:
        raise ConfigError(
            "A search chooses by other episodes than those that are reported: it would report its own luck.",
            expected=f"evaluation.seed >= {reported.seed + reported.episodes}",
            got=f"evaluation.seed={asked.seed}",
            fix=f"{TUNING}, or leave it out",
        )


def read_search(path: Path) -> Search:
    """The search of a file.

    Raises:
        ConfigError: for a key that searches do not have, or a value of another type.
    """
    plain = read_yaml(path)
    refuse_unknown(plain, dict.fromkeys(("base", "space", "trials", "seeds")), "")
    space = convert(plain.get("space") or {}, dict[str, Any], "space")
    return Search(
        name=path.stem,
        question=question_of(path),
        base=words_of(plain.get("base") or [], "base"),
        space={key: _choices(value, f"space.{key}") for key, value in space.items()},
        trials=convert(plain.get("trials", 20), int, "trials"),
        seeds=convert(plain.get("seeds", [0]), tuple[int, ...], "seeds"),
    )


def _choices(value: Any, where: str) -> Span | tuple[Value, ...]:
    if isinstance(value, Mapping):
        return structure(Span, value, where)
    found: tuple[Value, ...] = convert(value, tuple[Value, ...], where)
    return found
