"""Which option was meant by a name that has no section, or another one: evaluation.episodes by episodes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields

from trajgen.config.schema import SECTIONS
from trajgen.core.registry import KINDS, names, spec
from trajgen.engine.options import StageOptions


def suggestion(name: str, groups: Collection[str], section: str = "") -> str:
    """The question whether options of that name were meant, by their dotted names; empty where there is none.

    Args:
        name: what was typed, without its section.
        groups: sections and kinds of component whose options may be given.
        section: where it was typed; in that of a component or a stage other options are not meant.
    """
    if section in KINDS or section.startswith("engine.stages"):
        return ""
    dotted = [f"{group}.{name}" for group in SECTIONS if group in groups and name in _fields(SECTIONS[group])]
    if "engine" in groups and name in _fields(StageOptions):
        dotted.append(f"engine.stages.NAME.{name}")
    if not section:
        dotted += [f"{kind}.{name}" for kind in KINDS if kind in groups and name in _options(kind)]
    return f"did you mean {' or '.join(map(repr, dotted))}?" if dotted else ""


def _fields(cls: type) -> list[str]:
    return [field.name for field in fields(cls)]


def _options(kind: str) -> set[str]:
    return {option.name for component in names(kind) for option in spec(kind, component).options}
