"""Errors that tell a person what to do: the rule and, where it helps, what was expected, what was found, the fix."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable

LONGEST = 2000
"""Letters of each part of a message that are printed."""
MOST_MEANT = 4
"""Choices that a question names."""
MOST_LISTED = 40
"""Choices up to which all are listed beside those that are close to a name."""
HIDDEN = ("Cc", "Cf", "Cs")
"""Unicode's categories of characters that are obeyed, not shown: controls, directions, surrogates."""


class TrajgenError(Exception):
    """A mistake that the user can mend; printed without a traceback unless ``--debug`` is given.

    Args:
        rule: the rule that was broken, one sentence.
        expected: what would have been accepted.
        got: what was found, and where.
        fix: what to type or change.
    """

    def __init__(self, rule: str, *, expected: object = None, got: object = None, fix: str | None = None) -> None:
        self.rule, self.expected, self.got, self.fix = rule, expected, got, fix
        labels = {"expected": expected, "got": got, "fix": fix}
        lines = [f"  {label + ':':<9} {_short(value)}" for label, value in labels.items() if value is not None]
        super().__init__("\n".join([_short(rule), *lines]))


def printable(text: str) -> str:
    """The text with control characters, such as those that a terminal obeys, and lone surrogates as escapes."""
    return text if text.isprintable() else "".join(c if c in "\n\t" or c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode() if unicodedata.category(character) in HIDDEN else character


def _short(value: object) -> str:
    text = printable(str(value))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


class ConfigError(TrajgenError):
    """A recipe, an option or a combination of components that cannot work."""


class DataError(TrajgenError):
    """A data set that is missing, damaged, or does not fit the recipe."""


class TrainingError(TrajgenError):
    """A training run that cannot go on: a loss that is not finite, a folder of another run."""


class CheckpointError(TrajgenError):
    """A run folder or checkpoint that cannot be read or does not fit."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device has no memory left; torch, which is not imported for it, has a class for it on CUDA alone."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def nearest(name: str, choices: Iterable[str]) -> str:
    """Which of ``choices`` is closest to ``name``, or all of them if none is close."""
    choices = sorted(choices)
    ratios = {choice: _likeness(name.lower(), choice.lower()) for choice in choices}
    ratios = {choice: ratio for choice, ratio in ratios.items() if ratio >= 0.5}
    ratios = dict(sorted(ratios.items(), key=lambda pair: -pair[1])[:MOST_MEANT])
    if ratios:  # of a typing error, the one word alone
        close = [choice for choice, ratio in ratios.items() if ratio > max(ratios.values()) - 0.2]
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"choose one of: {', '.join(choices)}" if choices else "there are none"


def _likeness(name: str, choice: str) -> float:
    """How like a name is to a choice, or to what follows its slash: umaze to pointmaze/umaze."""
    parts = {choice, choice.rpartition("/")[2]}
    return max(difflib.SequenceMatcher(None, part, name).ratio() for part in parts)


def unknown_name(rule: str, name: str, choices: Iterable[str], hint: str = "") -> ConfigError:
    """The error for a name that is none of ``choices``."""
    choices = list(choices)
    fix = nearest(name, choices)
    is_short = fix.startswith("did you mean") and len(choices) <= MOST_LISTED
    expected = ", ".join(choices) if is_short else None  # else the fix lists them, or the near ones are enough
    return ConfigError(rule, expected=expected, fix=f"{fix} ({hint})" if hint else fix)
