"""The versions of packages on which a result depends, and those that a run folder records."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trajgen.core.files import read_json

PACKAGES = (
    "trajgen",
    "torch",
    "timm",
    "vector-quantize-pytorch",
    "hydra-core",
    "minari",
    "gymnasium",
    "gymnasium-robotics",
    "mujoco",
    "numpy",
)


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that a result depends on."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def recorded_versions(folder: Path) -> dict[str, Any]:
    """The versions with which a run was trained last; none where the folder does not say.

    Raises:
        CheckpointError: if versions.json is damaged.
    """
    path = folder / "versions.json"
    return read_json(path) if path.exists() else {}


def changed_versions(folder: Path) -> list[str]:
    """The packages whose versions differ from those with which a run was trained last, each with both."""
    before, now = recorded_versions(folder), versions()
    return [f"{name} {before[name]} then, {now[name]} now" for name in now if before.get(name, now[name]) != now[name]]
