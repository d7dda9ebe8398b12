"""The package as it is built: sdist and wheel, made offline, and the wheel unpacked outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = "import sys, hatchling.build as backend; print(getattr(backend, 'build_' + sys.argv[1])(sys.argv[2]))"


def build(kind: str, tree: Path, out: Path) -> Path:
    """Has the build backend make an sdist or a wheel of a tree."""
    command = [sys.executable, "-c", BUILD, kind, str(out)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.split()[-1]


def names(path: Path) -> set[str]:
    """The files in an archive, by their paths; those of an sdist without its folder."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return {*wheel.namelist()}
    with tarfile.open(path) as sdist:
        return {member.name.partition("/")[2] for member in sdist if member.isfile()}


@dataclass(frozen=True)
class Built:
    """What was built, and an environment in which the wheel alone is found."""

    sdist: Path
    wheel: Path
    wheel_of_sdist: Path
    site: Path
    """The wheel, unpacked."""
    elsewhere: Path
    """An empty folder, where commands are given."""

    def run(self, *words: str) -> str:
        """What Python says with the unpacked wheel on its path."""
        environment = {**os.environ, "PYTHONPATH": str(self.site), "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *words],
            cwd=self.elsewhere,
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout
