"""What the tests of the pages share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trajgen.core import registry


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, from which modules can be imported; their components are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for key in [key for key, (spec, _) in registry._registered.items() if not spec.module.startswith("trajgen.")]:
        del registry._registered[key]
    for name in [path.stem for path in tmp_path.glob("*.py")]:
        sys.modules.pop(name, None)
