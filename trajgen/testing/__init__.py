"""Contract checks: what components promise, tried on one of them in a small composition.

    from trajgen.testing import check
    print(check("prior", "gru"))
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trajgen.core.registry import component
from trajgen.testing import every, inputs, planners, plans, priors, tokenizers
from trajgen.testing.bench import Bench, check_request, find
from trajgen.testing.contract import CONTRACTS, Contract, Result, attempt

__all__ = ["CONTRACTS", "Bench", "Contract", "Report", "Result", "attempt", "check", "find"]

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
        ConfigError: if there is no such component, recipe or option.
    """
    check_request(recipe, changes or {})
    source = source_of(kind, name)
    results = [attempt(words, lambda trial=trial: trial(kind, name), source) for words, trial in FIRST.items()]
    found: list[Bench] = []
    results.append(
        attempt("it is built in a composition", lambda: found.append(find(kind, name, recipe, changes)), source)
    )
    for each in (each for each in CONTRACTS if kind in each.kinds):
        if found:
            results.append(attempt(each.words, lambda trial=each.trial: trial(found[0]), source))
        else:
            results.append(Result(each.words, "not applicable", "it could not be built"))
    where = str(found[0].composition) if found else f"recipe={recipe}" if recipe else "no recipe"
    return Report(kind, name, where, tuple(results))


def source_of(kind: str, name: str) -> Path | None:
    """The file that a component is written in.

    Raises:
        ConfigError: if there is no such component.
    """
    try:
        return Path(inspect.getfile(inspect.unwrap(component(kind, name)))).resolve()
    except (TypeError, OSError):
        return None


