"""The files for a public repository: workflows that call the same checks, an image of what a wheel holds."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").glob("*.yml")}


def steps(name: str) -> list[str]:
    """The commands of a workflow."""
    jobs = WORKFLOWS[name]["jobs"].values()
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


def test_workflows_call_the_checks_of_every_clone() -> None:
    assert set(WORKFLOWS) == {"tests", "docs", "release"}
    assert steps("tests")[0] == ".ci/run" and ".ci/run" in steps("release")
    assert any("mkdocs build --strict" in step for step in steps("docs"))
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100
    for workflow in WORKFLOWS.values():
        assert all("@" in step["uses"] for job in workflow["jobs"].values() for step in job["steps"] if "uses" in step)


def test_the_tests_that_take_minutes_run_every_night() -> None:
    workflow: Any = WORKFLOWS["tests"]
    job = workflow["jobs"]["nightly"]
    assert job["if"] == "github.event_name == 'schedule'" and workflow[True]["schedule"]  # YAML reads 'on' as true
    command = subprocess.run([ROOT / ".ci" / "run", "--show"], capture_output=True, text=True, check=True).stdout
    assert command.rstrip().endswith("pytest -n 2")
    assert job["steps"][-1]["run"].endswith('"$(.ci/run --show) -m nightly"')


def test_a_release_has_the_version_of_its_tag() -> None:
    (check,) = [step for step in steps("release") if "__version__" in step]
    line = check[check.index('"') :].replace("\\", "").replace("${GITHUB_REF_NAME#v}", "")
    assert '__version__ = ""' in line
    text = (ROOT / "trajgen" / "__init__.py").read_text()
    assert sum(each.startswith('__version__ = "') for each in text.splitlines()) == 1


def test_the_image_is_made_of_files_that_exist_and_are_not_ignored() -> None:
    text = (ROOT / "Dockerfile").read_text()
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [word for line in text.splitlines() if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert copied and {*copied} == allowed and all((ROOT / name).exists() for name in copied)
    project = (ROOT / "pyproject.toml").read_text()
    extras = next(line for line in text.splitlines() if line.startswith("ARG EXTRAS=")).partition("=")[2].split(",")
    assert all(f"\n{extra} = [" in project for extra in extras)
