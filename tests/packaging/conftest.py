"""The package, built once for all tests of it."""

from __future__ import annotations

import tarfile
import zipfile

import pytest
from built import ROOT, Built, build


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The package, built once."""
    pytest.importorskip("hatchling", reason="the build backend is not installed: pip install hatchling")
    place = tmp_path_factory.mktemp("package")
    sdist = build("sdist", ROOT, place / "dist")
    with tarfile.open(sdist) as archive:
        archive.extractall(place / "tree", filter="data")
    (tree,) = (place / "tree").iterdir()
    wheel = build("wheel", ROOT, place / "dist")
    again = build("wheel", tree, place / "again")
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(place / "site")
    (place / "elsewhere").mkdir()
    return Built(sdist, wheel, again, place / "site", place / "elsewhere")
