"""Protocols that isinstance is asked about say the same on all Pythons.

From Python 3.12 on, isinstance looks members up by `inspect.getattr_static`, which sees no submodules, and properties
that raise an AttributeError.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import tiny

from trajgen.core import critics, planning, protocols

MISSING = object()
PROTOCOLS = [
    value
    for module in (critics, planning, protocols)
    for value in vars(module).values()
    if inspect.isclass(value) and vars(value).get("_is_runtime_protocol", False)
]


def members(protocol: Any) -> set[str]:
    """The methods and attributes of a protocol and of those that it extends."""
    annotated = {name for base in protocol.__mro__ for name in vars(base).get("__annotations__", {})}
    methods = {name for base in protocol.__mro__ for name in vars(base) if not name.startswith("_")}
    return {name for name in annotated | methods if not name.startswith("_")}


PLANNERS: dict[str, dict[str, Any]] = {
    "mage": {},
    "best_of_n": {"sampler": "best_of_n", "critic": "horizon"},
    "agents": {"view": "agents"},
    "diffusion": {
        "tokenizer": "identity",
        "schedule": "single",
        "decoder": "identity",
        "action": "state",
        "prior": "diffusion",
        "sampler": "diffusion",
    },
}


@pytest.mark.parametrize("name", PLANNERS)
def test_isinstance_is_the_same_by_static_lookup(name: str) -> None:
    planner = tiny.planner(**PLANNERS[name])
    parts = [planner, *(part for part in vars(planner).get("_modules", {}).values() if part is not None)]
    parts.append(planner.sampler)
    matches = 0
    for part in parts:
        for protocol in PROTOCOLS:
            names = members(protocol)
            static = all(inspect.getattr_static(part, name, MISSING) is not MISSING for name in names)
            assert isinstance(part, protocol) == static, (type(part).__name__, protocol.__name__)
            matches += static
    assert matches > 5
