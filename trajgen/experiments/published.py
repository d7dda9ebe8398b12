"""Scores of a paper beside those of a study that follows its benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trajgen.core.errors import ConfigError, nearest
from trajgen.core.options import structure

SHARED = ("source", "differs")
"""Keys that may be given once for all means of a benchmark."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A mean over tasks as a paper reports it.

    Args:
        name: of the mean.
        figures: normalized scores by method.
        over: the variants whose mean it is, by name; the study may have fewer of them.
        source: where the scores are published.
        differs: how the paper's protocol differs from the one here.
    """

    name: str
    figures: dict[str, float]
    over: tuple[str, ...]
    source: str
    differs: str = ""


def read_published(plain: Mapping[str, Any]) -> tuple[Published, ...]:
    """The published means of a study's file, by name; source and differences once for all or for each.

    Raises:
        ConfigError: if one lacks a field of `Published`.
    """
    shared = {key: plain[key] for key in SHARED if key in plain}
    means = []
    for name, value in plain.items():
        if name in SHARED:
            continue
        if not isinstance(value, Mapping):
            raise ConfigError(
                "A published mean has figures, and the variants that it is over.",
                got=f"published.{name}: {value!r}",
                fix=f"published.{name}: {{figures: {{METHOD: SCORE}}, over: [VARIANT, …]}}, as in paper_table.yaml",
            )
        means.append(structure(Published, {"name": str(name), **shared, **value}, f"published.{name}"))
    return tuple(means)


def select_task(plain: dict[str, Any], task: str | None, path: Path) -> dict[str, Any]:
    """The values of a study's file, with those of one of its tasks in their place.

    Raises:
        ConfigError: if the study has tasks and none of them is named, or it has none and one is.
    """
    tasks = plain.pop("tasks", None) or {}
    if not isinstance(tasks, Mapping) or not all(isinstance(value, Mapping) for value in tasks.values()):
        raise ConfigError(
            "The tasks of a study have names, and keys of a study.",
            got=f"{path}: tasks: {str(tasks)[:100]}",
            fix="tasks: {name: {variants: …}, …}, as in paper_table.yaml",
        )
    if not tasks and task is None:
        return plain
    if task not in tasks:
        raise ConfigError(
            f"Study '{path.stem}' is of one of its tasks." if tasks else f"Study '{path.stem}' has no tasks.",
            expected=", ".join(f"task={name}" for name in tasks) or "no task=…",
            got="no task=…" if task is None else f"task={task}",
            fix=(nearest(task, tasks) if task else f"task={next(iter(tasks))}") if tasks else "leave task=… out",
        )
    return {**plain, **tasks[task]}


def add_reached(published: Sequence[Published], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each published mean with that of the study's rows: ``ours``, over how many ``tasks`` of the mean's ``of``."""
    scores = {row["variant"]: row["normalized"] for row in rows if row["normalized"] is not None}
    means = []
    for mean in published:
        values = [scores[name] for name in mean.over if name in scores]
        plain = {k: v for k, v in asdict(mean).items() if k != "over"}
        ours = sum(values) / len(values) if values else None
        means.append({**plain, "ours": ours, "tasks": len(values), "of": len(mean.over)})
    return means
