"""Recipes, data presets and studies by path, from strangers: plain values, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trajgen import experiments
from trajgen.cli import main
from trajgen.config import RECIPES, compose, read_yaml
from trajgen.core.errors import ConfigError
from trajgen.experiments.cells import make_rows
from trajgen.experiments.definition import read_study

TRACE = "executed"
RECIPE = (RECIPES / "bc.yaml").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a module ``trap``, which leaves a file behind when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", "it is out")
    (tmp_path / "trap.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / TRACE)!r}).touch()\ndef run(*a, **k): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trap", raising=False)
    return tmp_path


def test_the_recipe_as_it_is_composes(folder: Path) -> None:
    (folder / "given.yaml").write_text(RECIPE)
    assert compose(["recipe=given.yaml", "data=pointmaze/umaze-dwell"]).recipe == "given"


SECRET = "${oc.env:SECRET}"
HYDRA = "hydra: {callbacks: {x: {_target_: trap.run}}}\n"
DEEP = 100_000
LAUGHS = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))
TEXTS: list[Any] = [
    pytest.param("data: !!python/object/apply:trap.run []\n", id="a call"),
    pytest.param("data: !!python/name:trap.run\n", id="a name"),
    pytest.param("data: !!python/module:trap\n", id="a module"),
    pytest.param("data: !!python/object/new:trap.run {}\n", id="an object"),
    pytest.param("data: !trap {}\n", id="an own tag"),
    pytest.param(RECIPE + "_target_: trap.run\n", id="a target"),
    pytest.param(RECIPE + "prior: {name: transformer, _target_: trap.run}\n", id="a target of a part"),
    pytest.param(RECIPE + "prior: {name: os.system}\n", id="a name that is not registered"),
    pytest.param(RECIPE + "prior: {name: _Base}\n", id="a private name"),
    pytest.param("- a\n- list\n", id="a list"),
    pytest.param("a: [\n", id="not YAML"),
    pytest.param(RECIPE.replace("chunk: 1}", f"chunk: 1, env_id: '{SECRET}'}}"), id="the environment"),
    pytest.param(RECIPE.replace("chunk: 1}", "chunk: 1, env_id: '${now:%Y}'}"), id="the time"),
    pytest.param(RECIPE + f"'{SECRET}': 1\n", id="the environment in a key"),
    pytest.param(RECIPE + HYDRA, id="a callback of Hydra's"),
    pytest.param(RECIPE + "hydra: {job: {env_set: {A: b}}}\n", id="the environment of a job"),
    pytest.param(RECIPE + "defaults: [{override /hydra/launcher: joblib}]\n", id="a launcher"),
    pytest.param(RECIPE + "defaults: [/hydra/callbacks/x]\n", id="a group of Hydra's"),
    pytest.param(RECIPE + "defaults: [{/hydra/callbacks@hydra.callbacks.x: x}]\n", id="a package of Hydra's"),
    pytest.param(RECIPE + "defaults: [../../etc/x]\n", id="a file elsewhere"),
    pytest.param(RECIPE + "defaults: [/etc/passwd]\n", id="a file by its path"),
    pytest.param(RECIPE + "defaults: [given]\n", id="itself"),
    pytest.param(RECIPE + f"defaults: ['{SECRET}']\n", id="the environment in its defaults"),
    pytest.param(RECIPE + "defaults: {_target_: trap.run}\n", id="defaults that are no list"),
    pytest.param("a0: &a0 [1]\n" + LAUGHS, id="a billion laughs"),
    pytest.param("data: " + "[" * 2000 + "]" * 2000, id="deep lists"),
    pytest.param("data: " + "[" * 10**6 + "]" * 10**6, id="very deep lists"),
    pytest.param("# " + "a" * 2**24 + "\n" + RECIPE, id="sixteen megabytes"),
]


PRESET = (RECIPES / "data" / "pointmaze" / "umaze-dwell.yaml").read_text(encoding="utf-8")
PRESETS: list[Any] = [
    pytest.param("data: !!python/object/apply:trap.run []\n", id="a call"),
    pytest.param(PRESET.replace("data: {", f"data: {{env_id: '{SECRET}', "), id="the environment"),
    pytest.param(PRESET + HYDRA, id="a callback of Hydra's"),
]


CASES = [
    pytest.param(group, *case.values, id=f"{group}: {case.id}", marks=case.marks)
    for group, cases in (("recipe", TEXTS), ("data", PRESETS))
    for case in cases
]


@pytest.mark.parametrize(("group", "text"), CASES)
def test_a_file_that_is_not_plain_is_refused(
    group: str, text: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[Any] = []
    monkeypatch.setattr(experiments, "train", lambda *arguments: began.append(arguments))
    (folder / "given.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        main(["train", f"{group}=given.yaml", "--debug"])
    assert len(str(caught.value)) < 3000
    assert began == [] and not (folder / TRACE).exists()


@pytest.mark.parametrize(
    "word",
    [
        pytest.param(f"prior.depth={SECRET}"),
        pytest.param(f"data.id={SECRET}"),
        "prior=os.system",
        "prior._target_=trap.run",
        "+_target_=trap.run",
        "run_dir=/etc",
        "resume=true",
    ],
)
def test_a_study_that_is_not_plain_is_refused(word: str, folder: Path) -> None:
    (folder / "odd_study.yaml").write_text(f"base: ['{word}']\nvariants: {{one: [], two: [seed=1]}}\nseeds: [0]\n")
    with pytest.raises(ConfigError, match="plain values" if SECRET in word else None):
        make_rows(read_study(folder / "odd_study.yaml"))
    assert not (folder / TRACE).exists()


EVIL = "import pathlib\npathlib.Path('executed').touch()\n"
COMPOSE = "from trajgen.config import compose; compose({words}[:1]); compose({words})"
RUN = "from trajgen.config import hydra_run; hydra_run({words} + ['--cfg', 'job'])"


@pytest.mark.parametrize(
    ("code", "flags"),
    [(COMPOSE, []), (RUN, ["-P"])],
    ids=["compose with the current folder on the path", "hydra_run as the console script"],
)
def test_nothing_of_the_current_folder_is_imported(code: str, flags: list[str], folder: Path) -> None:
    (folder / "given.yaml").write_text(RECIPE)
    (folder / "hydra_plugins" / "evil").mkdir(parents=True)
    (folder / "hydra_plugins" / "evil" / "__init__.py").write_text(EVIL)
    info = folder / "evil_parts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: evil-parts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[trajgen.components]\nevil = evil_parts\n")
    for name in ("evil_parts", "joblib", "submitit", "optuna"):
        (folder / f"{name}.py").write_text(EVIL if name == "evil_parts" or flags else "")
    (folder / "harmless.py").write_text("")
    environment = {**os.environ, "PYTHONPATH": str(RECIPES.parent)}
    command = [sys.executable, *flags, "-c", code.format(words=["recipe=given.yaml", "imports=[harmless]"])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert not (folder / TRACE).exists()


def test_the_current_folder_comes_after_installed_packages_and_only_for_imports(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(folder))])
    (folder / "given.yaml").write_text(RECIPE)
    compose(["recipe=given.yaml"])
    assert str(folder) not in sys.path
    (folder / "yaml.py").write_text(EVIL)
    (folder / "harmless_parts.py").write_text("")
    monkeypatch.delitem(sys.modules, "harmless_parts", raising=False)
    compose(["recipe=given.yaml", "imports=[harmless_parts]"])
    assert sys.path[-1] == str(folder)


def test_shipped_files_are_plain() -> None:
    paths = sorted(RECIPES.rglob("*.yaml"))
    assert len(paths) > 20
    for path in paths:
        assert read_yaml(path) and "${" not in path.read_text(encoding="utf-8")
