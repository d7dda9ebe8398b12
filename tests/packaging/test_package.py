"""Wheel and sdist hold what they should, and the wheel does the main job outside the checkout."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from built import ROOT, Built, names

import trajgen
from trajgen.cli import main
from trajgen.config import data_files, recipe_files, search_files, study_files

SAYS_WHERE = """
import importlib.metadata, json, trajgen
from trajgen import config
print(json.dumps({
    "file": trajgen.__file__, "recipes": str(config.RECIPES), "version": trajgen.__version__,
    "metadata": importlib.metadata.version("trajgen"),
    "names": [*config.recipe_files(), *config.data_files(), *config.study_files(), *config.search_files()],
}))
"""


def files(folder: str, root: Path = ROOT) -> set[str]:
    """The files of a folder of the checkout, by their paths; what Python leaves there is none."""
    paths = (path.relative_to(root) for path in (root / folder).rglob("*") if path.is_file())
    return {path.as_posix() for path in paths if "__pycache__" not in path.parts and not path.name.startswith(".")}


def test_the_wheel_holds_the_package_and_the_recipes_and_nothing_else(built: Built) -> None:
    packed = {name for name in names(built.wheel) if ".dist-info/" not in name}
    assert packed == files("trajgen") | {f"trajgen/{name}" for name in files("recipes")}
    assert {"trajgen/py.typed", "trajgen/templates/prior.py", "trajgen/recipes/mage.yaml"} <= packed
    assert any(name.endswith("licenses/LICENSE") for name in names(built.wheel))


def test_the_sdist_holds_what_makes_the_same_wheel_and_the_tests(built: Built) -> None:
    assert names(built.wheel_of_sdist) == names(built.wheel)
    packed = names(built.sdist)
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "mkdocs.yml", "tests/tiny.py"} <= packed
    assert not any("__pycache__" in name or name.startswith(("runs/", ".ci/", ".git/")) for name in packed)


def test_the_version_is_the_same_wherever_it_is_asked_for(built: Built, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out.strip() == trajgen.__version__
    assert f"trajgen-{trajgen.__version__}-" in built.wheel.name and trajgen.__version__ in built.sdist.name
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited is not None and cited[1] == trajgen.__version__


def test_the_unpacked_wheel_finds_its_own_recipes_and_version(built: Built) -> None:
    about = json.loads(built.run("-c", SAYS_WHERE))
    assert about["file"] == str(built.site / "trajgen" / "__init__.py")
    assert about["recipes"] == str(built.site / "trajgen" / "recipes")
    assert about["version"] == about["metadata"] == trajgen.__version__
    assert about["names"] == [*recipe_files(), *data_files(), *study_files(), *search_files()]


def test_python_m_trajgen_is_the_command(built: Built) -> None:
    assert built.run("-m", "trajgen", "--version").strip() == trajgen.__version__
    listed = built.run("-m", "trajgen", "list")
    assert "multiscale" in listed and "pointmaze/umaze-dwell" in listed and "num_scales" in listed
    refused = subprocess.run(
        [sys.executable, "-m", "trajgen", "trian"], capture_output=True, text=True, timeout=60, check=False
    )
    assert refused.returncode == 2 and "Did you mean 'train'?" in refused.stderr


def test_the_unpacked_wheel_does_the_main_job_elsewhere(built: Built, tiny_place: Path) -> None:
    """At debug size, on the data set that the other tests made."""
    quick = ("evaluation.latency=false", "evaluation.reference=false", "engine.budget=0.1")
    datasets = f"import os; os.environ['MINARI_DATASETS_PATH'] = {str(tiny_place / 'datasets')!r}; "
    words = ["train", "recipe=mage", *tiny.TRAIN, *quick]
    blank = "from trajgen.viz import figure; figure.write = lambda _, path: path.touch(); "
    built.run("-c", f"{datasets}{blank}from trajgen.cli import main; main({words!r})")
    run = built.elsewhere / "runs" / "mage-umaze-dwell-s0"
    assert {"summary.md", "evaluation.json", "config.json", "metrics.jsonl"} <= {path.name for path in run.iterdir()}
    assert (run / "checkpoints" / "final.safetensors").is_file() and [*run.glob("plots/*.png")]
    assert {path.name for path in built.elsewhere.iterdir()} == {"runs"}
