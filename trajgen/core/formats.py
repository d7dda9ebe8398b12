"""The format of what trajgen writes: one number for run folders, checkpoints and exported planners, read in one place.

An older file is read as the present one would be, through a chain of small upgrades; a newer one is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trajgen.core.errors import CheckpointError

FORMAT = 1
"""Raised by one, with a line in `UPGRADES`, when something is written that an older trajgen would misread."""

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]


def current(kind: str, values: Mapping[str, Any], place: object) -> dict[str, Any]:
    """What a file says, in the present format and without its number.

    Args:
        kind: of file: ``config`` for the config.json of a run folder, ``checkpoint`` for a checkpoint's metadata.
        values: as they were read, from a stranger perhaps.
        place: where, for the message.

    Raises:
        CheckpointError: if a newer trajgen wrote it.
        ValueError: if its format is none.
    """
    plain = dict(values)
    written = plain.pop("format", 0)
    if isinstance(written, str) and written.isascii() and written.isdigit():  # the metadata of a checkpoint is text
        written = int(written)
    if type(written) is not int or written < 0:
        raise ValueError(f"its format is {written!r:.40}")
    if written > FORMAT:
        raise CheckpointError(
            "What was written by a newer trajgen cannot be read by an older one.",
            expected=f"format {FORMAT} or older",
            got=f"format {written} in {place}",
            fix="pip install --upgrade trajgen",
        )
    for number in range(written, FORMAT):
        plain = UPGRADES[number].get(kind, dict)(plain)
    return plain


def _say_what_was_usual(config: dict[str, Any]) -> dict[str, Any]:
    """From before formats: options that have come since are given what was done without them, whatever is usual now."""
    for place, options in USUAL_ONCE.items():
        section, _, name = place.partition("/")
        node = config.get(section)
        if isinstance(node, dict) and name in ("", node.get("name")):
            config[section] = {**options, **node}
    return config


USUAL_ONCE: dict[str, dict[str, Any]] = {
    "data": {"goal_state": []},
    "engine": {"accumulate": 1, "log": []},
    "policy": {"backend": "eager"},
    "prior/diffusion": {"network": "transformer"},
    "planner/history": {"past_actions": True},
}
"""For sections, and components as KIND/NAME: the options of format 0 that some of its folders do not have."""

UPGRADES: tuple[dict[str, Upgrade], ...] = ({"config": _say_what_was_usual},)
"""For each format, what makes the next one of it, by the kind of file; a kind that is not named stays as it is."""
