"""Figures of a paper, to stand beside those of a study that follows its benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trajgen.core.errors import ConfigError, nearest
from trajgen.core.options import structure

SHARED = ("source", "differs")
"""What all figures of a benchmark can have in common."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A mean over tasks as a paper reports it.

    Args:
        name: of the mean.
        figures: normalized scores by method.
        over: the variants whose mean it is, by name; the study may have fewer of them.
        source: where the figures stand.
        differs: what of the paper's protocol is different here.
    """

    name: str
    figures: dict[str, float]
    over: tuple[str, ...]
    source: str
    differs: str = ""


def read_published(plain: Mapping[str, Any], where: str) -> tuple[Published, ...]:
    """The published figures of a study's file: by name, with source and differences said once for all or for each.

    Raises:
        ConfigError: if one lacks what `Published` asks for.
    """
    shared = {key: plain[key] for key in SHARED if key in plain}
    means = {name: value for name, value in plain.items() if name not in SHARED}
    found = []
    for name, value in means.items():
        if not isinstance(value, Mapping):
            raise ConfigError(
                "A published mean has figures, and the variants that it is over.",
                expected=f"{where}.{name}: {{figures: {{METHOD: SCORE}}, over: [VARIANT, …]}}",
                got=f"{where}.{name}: {value!r}",
                fix="recipes/study/paper_table.yaml is an example",
            )
        found.append(structure(Published, {"name": str(name), **shared, **value}, f"{where}.{name}"))
    return tuple(found)


def chosen_task(plain: dict[str, Any], task: str | None, path: Path) -> dict[str, Any]:
    """The values of a study's file with those of one of its tasks laid over them.

    Raises:
        ConfigError: if the study has tasks and none of them is named, or it has none and one is.
    """
    tasks = plain.pop("tasks", None) or {}
    if not isinstance(tasks, Mapping) or not all(isinstance(value, Mapping) for value in tasks.values()):
        raise ConfigError(
            "The tasks of a study have names, and keys of a study.",
            expected="tasks: {name: {variants: …}, …}",
            got=f"{path}: tasks: {str(tasks)[:100]}",
            fix="recipes/study/paper_table.yaml is an example",
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


def beside(published: Sequence[Published], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each published mean with that of the rows of its variants.

    Args:
        published: of the study.
        rows: of its results.

    Returns:
        Plain values: the published ones, ``ours``, and of how many of the tasks it is the mean.
    """
    scores = {row["variant"]: row["normalized"] for row in rows if row["normalized"] is not None}
    result = []
    for mean in published:
        own = [scores[name] for name in mean.over if name in scores]
        result.append(
            {
                "name": mean.name,
                "figures": dict(mean.figures),
                "ours": sum(own) / len(own) if own else None,
                "tasks": len(own),
                "of": len(mean.over),
                "source": mean.source,
                "differs": mean.differs,
            }
        )
    return result
