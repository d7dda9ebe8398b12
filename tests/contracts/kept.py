"""Trying the contracts of `trajgen.testing` in compositions that a test names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tiny
import yaml

from trajgen import testing
from trajgen.core.errors import ConfigError


def bench(kind: str, name: str, words: str) -> testing.Bench | None:
    """A component in a composition, as "mage schedule=single sampler.k=3"; None if it is refused, with a cure."""
    recipe, *changes = words.split()
    values: dict[str, Any] = {}
    for key, _, text in (change.partition("=") for change in changes):
        other, _, option = key.partition(".")
        values.setdefault(other, {})[option or "name"] = yaml.safe_load(text)
    try:
        return testing.find(kind, name, recipe, values)
    except ConfigError as refusal:
        tiny.check_cure(refusal)
        return None


def check_kept(kind: str, name: str, words: str) -> bool:
    """Every contract is kept, unless the composition is refused with a cure; returns whether it was accepted."""
    made = bench(kind, name, words)
    broken = [] if made is None else [r for r in testing.try_all(made) if r.outcome == "failed"]
    assert not broken, "\n".join(f"{r.words}: {r.said}" for r in broken)
    return made is not None


def accepted(kind: str, name: str, compositions: Iterable[str]) -> bool:
    """Whether one of the compositions takes the component."""
    return any(bench(kind, name, words) is not None for words in compositions)
