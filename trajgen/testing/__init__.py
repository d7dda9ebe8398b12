"""Contract checks: what components promise, checked on one of them in a small composition.

``print(check("prior", "gru"))`` checks all that priors promise on the one that is registered as "gru".
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
from trajgen.testing import (
    common,
    critics,
    encoders,
    inputs,
    isolation,
    noisy,
    planners,
    plans,
    priors,
    registration,
    tokenizers,
    units,
)
from trajgen.testing.contract import CONTRACTS, Contract, Result, attempt
from trajgen.testing.fixture import Fixture, find_fixture

__all__ = ["CONTRACTS", "Contract", "Fixture", "Report", "Result", "attempt", "check", "find_fixture", "run_contracts"]

SIGNATURE_CONTRACTS = {
    "a docstring that says what it is": registration.check_docstring,
    "options have types and literal defaults": registration.check_options,
    "an unknown option is refused": registration.check_unknown_option,
}
CONTRACT_MODULES = (
    registration,
    common,
    isolation,
    inputs,
    encoders,
    tokenizers,
    priors,
    noisy,
    plans,
    critics,
    units,
    planners,
)


@dataclass(frozen=True)
class Report:
    """The outcome of all contracts of a component."""

    kind: str
    name: str
    composition: str
    """The composition it was checked in, as words of a command line."""
    sizes: str
    """The options that are smaller than in the recipe, so that the check is quick."""
    results: tuple[Result, ...]

    @property
    def failed(self) -> list[Result]:
        """The contracts that were broken."""
        return [result for result in self.results if result.outcome == "failed"]

    def __str__(self) -> str:
        width = max(len(result.promise) for result in self.results)
        lines = [f"{self.kind}/{self.name} in {self.composition}"]
        lines += [f"  at small sizes: {self.sizes}"] if self.sizes else []
        for result in self.results:
            lines.append(f"  {result.promise:<{width}}  {result.outcome}")
            lines += [f"      {line}" for line in result.message.splitlines()]
        return "\n".join(lines)


def check(kind: str, name: str, recipe: str | None = None, changes: Mapping[str, Any] | None = None) -> Report:
    """Checks all contracts of a component's kind on it.

    Args:
        kind, name: of the component.
        recipe: a recipe's name, or a path to one, in which it is checked; None for the first shipped one that accepts
            it.
        changes: plain values that override the recipe's, as ``{"prior": {"width": 8}, "data": {"horizon": 32}}``; the
            check keeps these sizes, and makes others small.

    Raises:
        ConfigError: if there is no such component, recipe or option, or the requested composition cannot work.
    """
    source = source_of(kind, name)
    results = [attempt(promise, partial(rule, kind, name), source) for promise, rule in SIGNATURE_CONTRACTS.items()]
    fixtures: list[Fixture] = []
    building = attempt(
        "it is built in a composition", lambda: fixtures.append(find_fixture(kind, name, recipe, changes)), source
    )
    if isinstance(building.error, ConfigError) and (recipe or changes):
        raise building.error  # the requested composition cannot work, whatever the component
    results.append(building)
    if fixtures:
        results += run_contracts(fixtures[0])
        where, sizes = str(fixtures[0].composition), " ".join(fixtures[0].composition.reduced)
    else:
        members, *others = (contract for contract in CONTRACTS if kind in contract.kinds)
        results.append(attempt(members.promise, partial(registration.check_methods, kind, name), source))
        results += [Result(each.promise, "not applicable", "it could not be built") for each in others]
        where, sizes = f"recipe={recipe}" if recipe else "no recipe", ""
    return Report(kind, name, where, sizes, tuple(results))


def run_contracts(fixture: Fixture) -> list[Result]:
    """Checks all contracts of a component's behaviour in the composition of the fixture."""
    source = source_of(fixture.kind, fixture.name)
    results: list[Result] = []
    for contract in (contract for contract in CONTRACTS if fixture.kind in contract.kinds):
        if results and results[0].outcome == "failed" and results[0].promise == registration.MEMBERS:
            results.append(Result(contract.promise, "not applicable", "it lacks what its kind promises"))
        else:
            results.append(attempt(contract.promise, partial(contract.check, fixture), source))
    return results


def source_of(kind: str, name: str) -> Path | None:
    """The file that a component is written in.

    Raises:
        ConfigError: if there is no such component.
    """
    try:
        return Path(inspect.getfile(inspect.unwrap(component(kind, name)))).resolve()
    except (TypeError, OSError):
        return None
