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
    folder = tmp_path_factory.mktemp("package")
    sdist = build("sdist", ROOT, folder / "dist")
    with tarfile.open(sdist) as archive:
        if hasattr(tarfile, "data_filter"):  # not in the first releases of Python 3.11
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(folder / "tree")
    (tree,) = (folder / "tree").iterdir()
    wheel = build("wheel", ROOT, folder / "dist")
    again = build("wheel", tree, folder / "again")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    (folder / "elsewhere").mkdir()
    return Built(sdist, wheel, again, folder / "site", folder / "elsewhere")
