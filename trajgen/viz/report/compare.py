"""What differs between runs: options, returns on the same episodes, versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trajgen.core.tables import NOTHING
from trajgen.evaluation.statistics import bootstrap_interval, mean_difference
from trajgen.viz.report.facts import Facts

IGNORED = ("run_dir", "resume", "space")
"""Entries of a configuration that do not change what is trained."""
EPISODE_OPTIONS = {
    "max_episode_steps": "episodes of another length",
    "env_options": "other options of the environment",
    "resets": "other starts or goals",
    "blocked": "other cells of the maze blocked",
}
"""Options without which episodes of the same seed are not the same."""
DEEPEST = 12
LONGEST = 160
"""Characters of an option's value that are shown."""
MOST_ROWS = 200

Values = dict[str, list[str]]
"""By name, the value for each run."""


@dataclass(frozen=True)
class Paired:
    """The mean difference of two runs' returns on the same episodes."""

    difference: float | None = None
    ci95: tuple[float, float] | None = None
    episodes: int = 0
    reason: str = ""
    """Why there is none."""

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.ci95 is not None and not self.ci95[0] <= 0 <= self.ci95[1]


def paired_difference(run: Facts, reference: Facts) -> Paired:
    """A run's returns less the reference's, episode by episode, with an interval that draws episodes together."""
    returns, other = run.episode_returns(), reference.episode_returns()
    if not returns or not other:
        return Paired(reason="returns of single episodes are missing")
    for name, key in (("environment", "env"), ("protocol", "protocol_name"), ("kind of goal", "goals")):
        if run.evaluation.get(key) != reference.evaluation.get(key):
            return Paired(reason=f"another {name}: the episodes are not the same")
    options, other_options = run.episode_options(), reference.episode_options()
    for option, reason in EPISODE_OPTIONS.items():
        if options[option] != other_options[option]:
            return Paired(reason=reason)
    seeds = sorted({*returns} & {*other})
    if not seeds:
        return Paired(reason="no episode with the same seed that both completed")
    pair = [returns[seed] for seed in seeds], [other[seed] for seed in seeds]
    return Paired(float(mean_difference(*pair)), bootstrap_interval(mean_difference, *pair), len(seeds))


def option_differences(runs: Sequence[Facts]) -> tuple[Values, Values]:
    """The options that differ between runs that have them, and those that only some runs have."""
    flat = [dict(_flatten({k: v for k, v in run.config.items() if k not in IGNORED})) for run in runs]
    differing, missing = {}, {}
    for key, values in _across(flat).items():
        kinds = {*values} - {NOTHING}
        if len(kinds) > 1:
            differing[key] = values
        elif kinds and NOTHING in values:
            missing[key] = values
    return dict([*differing.items()][:MOST_ROWS]), dict([*missing.items()][:MOST_ROWS])


def version_differences(runs: Sequence[Facts]) -> tuple[dict[str, str], Values]:
    """The versions that all runs share, and those in which they differ."""
    rows = _across([run.versions for run in runs])
    same = {name: values[0] for name, values in rows.items() if len({*values}) == 1}
    return same, {name: values for name, values in rows.items() if name not in same}


def _across(values: Sequence[Mapping[str, str]]) -> Values:
    keys = dict.fromkeys(key for each in values for key in each)
    return {key: [each.get(key, NOTHING) for each in values] for key in keys}


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
