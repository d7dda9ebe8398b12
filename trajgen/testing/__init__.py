"""Contract checks: what components promise, tried on one of them in a small composition.

``print(check("prior", "gru"))`` tries all that priors promise on the one that is registered as "gru".
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trajgen.core.errors import ConfigError
from trajgen.core.registry import component
from trajgen.testing import every, inputs, planners, plans, priors, tokenizers
from trajgen.testing.bench import Bench, check_request, find
from trajgen.testing.contract import CONTRACTS, Contract, Result, attempt

__all__ = ["CONTRACTS", "Bench", "Contract", "Report", "Result", "attempt", "check", "find", "try_all"]

FIRST = {
    "a docstring that says what it is": every.check_docstring,
    "options have types and literal defaults": every.check_options,
    "an unknown option is refused": every.check_unknown_option,
}
ROOMS = (every, inputs, tokenizers, priors, plans, planners)
"""The modules that hold the contracts."""


@dataclass(frozen=True)
class Report:
    """How a component kept its contracts."""

    kind: str
    name: str
    composition: str
    """Where it was tried, as words of a command line."""
    results: tuple[Result, ...]

    @property
    def failed(self) -> list[Result]:
        """The contracts that were broken."""
        return [result for result in self.results if result.outcome == "failed"]

    def __str__(self) -> str:
        width = max(len(result.words) for result in self.results)
        lines = [f"{self.kind}/{self.name} in {self.composition}"]
        for result in self.results:
            lines.append(f"  {result.words:<{width}}  {result.outcome}")
            lines += [f"      {line}" for line in result.said.splitlines()]
        return "\n".join(lines)


def check(kind: str, name: str, recipe: str | None = None, changes: Mapping[str, Any] | None = None) -> Report:
    """Tries all contracts of a component's kind on it.

    Args:
        kind, name: of the component.
        recipe: a recipe's name, or a path to one, in which it is tried; None for the first shipped one that accepts it.
        changes: plain values that are laid over the recipe, as ``{"prior": {"width": 8}}``.

    Raises:
        ConfigError: if there is no such component, recipe or option, or the composition that is asked for cannot work.
    """
    check_request(recipe, changes or {})
    source = source_of(kind, name)
    results = [attempt(words, partial(trial, kind, name), source) for words, trial in FIRST.items()]
    found: list[Bench] = []
    built = attempt("it is built in a composition", lambda: found.append(find(kind, name, recipe, changes)), source)
    if isinstance(built.error, ConfigError) and (recipe or changes):
        raise built.error  # it is the composition asked for that cannot work
    results.append(built)
    if found:
        results += try_all(found[0])
    else:
        never = (each.words for each in CONTRACTS if kind in each.kinds)
        results += [Result(words, "not applicable", "it could not be built") for words in never]
    where = str(found[0].composition) if found else f"recipe={recipe}" if recipe else "no recipe"
    return Report(kind, name, where, tuple(results))


def try_all(bench: Bench) -> list[Result]:
    """Tries all contracts of a component's behaviour on it, in a composition of one's choice."""
    source = source_of(bench.kind, bench.name)
    own = [each for each in CONTRACTS if bench.kind in each.kinds]
    return [attempt(each.words, partial(each.trial, bench), source) for each in own]


def source_of(kind: str, name: str) -> Path | None:
    """The file that a component is written in.

    Raises:
        ConfigError: if there is no such component.
    """
    try:
        return Path(inspect.getfile(inspect.unwrap(component(kind, name)))).resolve()
    except (TypeError, OSError):
        return None
