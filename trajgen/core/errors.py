"""Errors that tell a person what to do: the rule, what was expected, what was found, and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 2000
"""Letters of each part of a message that are printed."""


class TrajgenError(Exception):
    """A mistake that the person at the keyboard can mend.

    Printed without a traceback by the command line (unless ``--debug`` is given).

    Args:
        rule: the rule that was broken, one sentence.
        expected: what would have been accepted.
        got: what was found, and where.
        fix: what to type or change.
    """

    def __init__(self, rule: str, *, expected: object = None, got: object = None, fix: str | None = None) -> None:
        self.rule, self.expected, self.got, self.fix = rule, expected, got, fix
        parts = [_short(rule)]
        for label, value in (("expected", expected), ("got", got), ("fix", fix)):
            if value is not None:
                parts.append(f"  {label + ':':<9} {_short(value)}")
        super().__init__("\n".join(parts))


def _short(value: object) -> str:
    """A part of a message; what was found may be of any length."""
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


class ConfigError(TrajgenError):
    """A recipe, an option or a combination of components that cannot work."""


class DataError(TrajgenError):
    """A data set that is missing, damaged, or does not fit the recipe."""


class TrainingError(TrajgenError):
    """A training run that cannot go on: a loss that is not finite, a folder of another run."""


class CheckpointError(TrajgenError):
    """A run folder or checkpoint that cannot be read or does not fit."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Says which of ``choices`` is closest to ``name``, or lists them all if none is."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        alike = {choice: difflib.SequenceMatcher(None, choice, name).ratio() for choice in close}
        close = [choice for choice in close if alike[choice] > alike[close[0]] - 0.2]  # of a slip, the word alone
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "choose one of: " + ", ".join(known) if known else "there are none"
