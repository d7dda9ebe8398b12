"""What differs between runs: options, returns on the same episodes, versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trajgen.evaluation.statistics import bootstrap_interval, mean_difference
from trajgen.viz.report.facts import Facts

ASIDE = ("run_dir", "resume", "space")
"""Entries of a configuration that say nothing of what was trained."""
DEEPEST = 12
LONGEST = 160
"""Characters of an option's value that are shown."""
MOST_ROWS = 200
ABSENT = "–"

Compared = tuple[str, list[str]]
"""What is compared, and its value for each run."""


@dataclass(frozen=True)
class Paired:
    """The mean difference of two runs' returns on the same episodes."""

    label: str
    difference: float | None = None
    ci95: tuple[float, float] | None = None
    episodes: int = 0
    why: str = ""
    """Why there is none."""

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.ci95 is not None and not self.ci95[0] <= 0 <= self.ci95[1]


def paired_differences(runs: Sequence[Facts]) -> list[Paired]:
    """Each run's returns less the first run's, episode by episode, with intervals that draw episodes together."""
    first, *others = runs
    return [_paired(run, first) for run in others]


def _paired(run: Facts, reference: Facts) -> Paired:
    own, other = run.episode_returns(), reference.episode_returns()
    if not own or not other:
        return Paired(run.label, why="returns of single episodes are missing")
    for key, name in (("env", "environment"), ("seeds", "seed")):
        if run.evaluation.get(key) != reference.evaluation.get(key):
            return Paired(run.label, why=f"another {name}: the episodes are not the same")
    if _longest_episode(run) != _longest_episode(reference):
        return Paired(run.label, why="episodes of another length")
    shared = sorted({*own} & {*other})
    if not shared:
        return Paired(run.label, why="no episode that both came to the end of")
    a, b = [own[s] for s in shared], [other[s] for s in shared]
    return Paired(
        run.label, float(mean_difference(a, b)), bootstrap_interval(mean_difference, a, b), episodes=len(shared)
    )


def _longest_episode(run: Facts) -> Any:
    data = run.config.get("data")
    return data.get("max_episode_steps") if isinstance(data, Mapping) else None


def option_differences(runs: Sequence[Facts]) -> tuple[list[Compared], list[Compared]]:
    """The options that differ between runs that have them, and those that only some runs have."""
    flat = [dict(_flatten({k: v for k, v in run.config.items() if k not in ASIDE})) for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = [(key, [values.get(key, ABSENT) for values in flat]) for key in keys]
    differing = [row for row in rows if len({*row[1]} - {ABSENT}) > 1]
    missing = [row for row in rows if len({*row[1]} - {ABSENT}) == 1 and ABSENT in row[1]]
    return differing[:MOST_ROWS], missing[:MOST_ROWS]


def version_differences(runs: Sequence[Facts]) -> tuple[dict[str, str], list[Compared]]:
    """The versions that all runs share, and those in which they differ."""
    names = dict.fromkeys(name for run in runs for name in run.versions)
    rows = [(name, [run.versions.get(name, ABSENT) for run in runs]) for name in names]
    same = {name: values[0] for name, values in rows if len({*values}) == 1}
    return same, [(name, values) for name, values in rows if len({*values}) > 1]


def _flatten(value: Any, where: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value and depth < DEEPEST:
        for key, each in value.items():
            yield from _flatten(each, f"{where}.{key}" if where else str(key), depth + 1)
    else:
        yield where, _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        text = "[" + ", ".join(_shown(each) for each in value[:40]) + "]"
    elif value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    else:
        text = str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
