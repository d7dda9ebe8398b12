"""trajgen: generative trajectory models for offline reinforcement learning, composed of swappable parts."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trajgen.core.registry import build, register
    from trajgen.core.schedule import ScaleSchedule
    from trajgen.experiments import load_policy

__version__ = "0.1.0"
__all__ = ["ScaleSchedule", "build", "load_policy", "register"]

_HOMES = {
    "register": "trajgen.core.registry",
    "build": "trajgen.core.registry",
    "ScaleSchedule": "trajgen.core.schedule",
    "load_policy": "trajgen.experiments",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that the command line starts without torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'trajgen' has no attribute {name!r}")
