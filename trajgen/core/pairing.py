"""How a sampler and a prior fit: a prior is drawn from by its methods, and a sampler names those that it needs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from trajgen.core.errors import ConfigError
from trajgen.core.registry import component, names, type_of

USUAL = {True: ("temperature", "greedy"), False: ("greedy",)}
"""The samplers that are advised before all others, for discrete codes and for continuous ones."""
USUAL_PRIOR = "transformer"


def needs(sampler: Any) -> tuple[str, ...]:
    """The members of a prior that a sampler uses: ``needs`` of its class, or of the class that a function returns."""
    built = sampler if inspect.isclass(sampler) else type_of(sampler, "return")
    return tuple(getattr(built, "needs", ()))


def fitting_samplers(prior: Any, *, discrete: bool) -> Iterator[str]:
    """The names of samplers that can draw from a prior, the usual ones first."""
    for name in (*USUAL[discrete], *names("sampler")):
        members = needs(component("sampler", name))
        if members and all(hasattr(prior, member) for member in members):
            yield name


def check_pair(sampler: str, prior: Any, prior_name: str, *, discrete: bool) -> None:
    """Refuses a sampler that needs what a prior does not have, with samplers and priors that fit.

    Args:
        sampler: its name.
        prior: that is drawn from.
        prior_name: its name.
        discrete: whether its codes are those of a vocabulary.

    Raises:
        ConfigError: if the prior lacks a member that the sampler needs.
    """
    required = needs(component("sampler", sampler))
    missing = [name for name in required if not hasattr(prior, name)]
    if not missing:
        return
    fixes = [f"sampler={name}" for name in fitting_samplers(prior, discrete=discrete)][:1]
    for name in sorted(names("prior"), key=lambda name: name != USUAL_PRIOR):
        candidate = component("prior", name)
        if hasattr(candidate, required[0]):
            fixes.append(" ".join([f"prior={name}", *getattr(candidate, "goes_with", ())]))
            break
    raise ConfigError(
        f"sampler={sampler} cannot draw from prior={prior_name}.",
        expected="a prior with " + ", ".join(required),
        got=f"{type(prior).__name__} without {', '.join(missing)}",
        fix=", or ".join(fixes) or f"write a prior with {required[0]}",
    )
