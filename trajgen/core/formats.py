"""The format of what trajgen writes: one number for run folders, checkpoints and exported planners, read in one place.

A file of an older format is read through a chain of small upgrades; one of a newer format, or of 0.1, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trajgen.core.errors import CheckpointError

FORMAT = 2
"""Raised by one, with an entry in `UPGRADES`, when something is written that an older trajgen would misread."""
OLDEST = 2
"""The oldest format that is read: options, modules and tensors of format 1 have other names."""
UPGRADES: dict[int, dict[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {}
"""For a format, what makes the next one of it, by the kind of file; a kind that is not named stays as it is."""


def current(kind: str, values: Mapping[str, Any], source: object) -> dict[str, Any]:
    """What a file says, in the present format and without its number.

    Args:
        kind: ``config`` for the config.json of a run folder, ``checkpoint`` for a checkpoint's metadata.
        values: as they were read; they are not trusted.
        source: the file, for the message.

    Raises:
        CheckpointError: if the format is newer or older than what is read.
        ValueError: if it is no format.
    """
    plain = dict(values)
    written = plain.pop("format", FORMAT)  # what has none and is older has options that are refused by name
    if isinstance(written, str) and written.isascii() and written.isdigit():  # the metadata of a checkpoint is text
        written = int(written)
    if type(written) is not int or written < 0:
        raise ValueError(f"its format is {written!r:.40}")
    if written > FORMAT:
        raise CheckpointError(
            "This was written by a newer trajgen.",
            got=f"format {written} in {source}; this version reads up to {FORMAT}",
            fix="pip install --upgrade trajgen",
        )
    if written < OLDEST:
        raise CheckpointError(
            "This was written by trajgen 0.1, whose options and modules had other names.",
            got=f"format {written} in {source}; this version reads from {OLDEST}",
            fix="train it again, or read it with the trajgen that wrote it",
        )
    for number in range(written, FORMAT):
        plain = UPGRADES.get(number, {}).get(kind, dict)(plain)
    return plain
