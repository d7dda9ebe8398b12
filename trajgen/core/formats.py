"""The format of what trajgen writes: one number for run folders, checkpoints and exported planners, read in one place.

A file of another format is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from trajgen.core.errors import CheckpointError
from trajgen.core.options import flat
from trajgen.core.renamed import new_name

FORMAT = 2
"""Raised by one when something is written that an older trajgen would misread."""


def current(values: Mapping[str, Any], source: object) -> dict[str, Any]:
    """What a file says, without the number of its format.

    Args:
        values: as they were read; they are not trusted.
        source: the file, for the message.

    Raises:
        CheckpointError: if the format is newer or older than this one.
        ValueError: if it is no format.
    """
    plain = dict(values)
    number = plain.pop("format", FORMAT)  # what has none and is older has options that are refused by name
    if isinstance(number, str) and number.isascii() and number.isdigit():  # the metadata of a checkpoint is text
        number = int(number)
    if type(number) is not int or number < 0:
        raise ValueError(f"its format is {number!r:.40}")
    if number > FORMAT:
        raise CheckpointError(
            "This was written by a newer trajgen.",
            got=f"format {number} in {source}; this version reads {FORMAT}",
            fix="pip install --upgrade trajgen",
        )
    if number < FORMAT:
        raise CheckpointError(
            "This was written by trajgen 0.1, whose options and modules had other names.",
            got=f"format {number} in {source}; this version reads {FORMAT}{_first_new_name(plain)}",
            fix="train it again, or read it with the trajgen that wrote it",
        )
    return plain


def _first_new_name(values: Mapping[str, Any]) -> str:
    """What the first option that has another name is called today, for the message; empty if there is none."""
    with suppress(RecursionError):  # a stranger's file may be deep
        for name, _ in flat(values):
            if new := new_name(name):
                return f", which calls '{name}' '{new}'"
    return ""
