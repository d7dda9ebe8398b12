"""The README and the pages: their code runs, their commands fit the program, their links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from math import prod
from pathlib import Path

import pytest
import yaml

import trajgen
from trajgen import cli, runs
from trajgen.cli.data import DATA_HELP, MakeOptions
from trajgen.cli.words import key_values
from trajgen.config import Config
from trajgen.core import registry
from trajgen.core.options import structure
from trajgen.data import makers, store
from trajgen.data.options import DataOptions

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = {str(path.relative_to(ROOT)): path for path in (README, *sorted((ROOT / "docs").glob("*.md")))}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\w+\.(?:py|yaml))\b")
LINK = re.compile(r"\]\(([^)\s]+)\)")
RUN = "runs/mage-umaze-dwell-s0"
"""The run folder that the pages speak of."""


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in a language."""
    return [code for tongue, code in FENCE.findall(page.read_text(encoding="utf-8")) if tongue == language]


def commands(page: Path) -> list[list[str]]:
    """The words after ``trajgen`` of each such command in a page's bash blocks."""
    parts = [
        shlex.split(part, comments=True)
        for block in blocks(page, "bash")
        for line in block.splitlines()
        for part in line.split("&&")
    ]
    return [words[1:] for words in parts if words and Path(words[0]).name == "trajgen"]


def write_files(page: Path, folder: Path) -> None:
    """Writes the blocks of a page that begin with a file's name."""
    for code in (*blocks(page, "python"), *blocks(page, "yaml")):
        if name := FILE.match(code):
            (folder / name[1]).write_text(code, encoding="utf-8")


def called(name: str) -> list[object]:
    """All commands of all pages that begin with ``name``, as parameters of a test."""
    return [
        pytest.param(page, words[1:], id=f"{name}: {shlex.join(words[1:])}")
        for page, path in PAGES.items()
        for words in commands(path)
        if words[0] == name
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, from which modules can be imported; their components are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for key in [key for key, (found, _) in registry._own.items() if not found.module.startswith("trajgen.")]:
        del registry._own[key]
    for name in [path.stem for path in tmp_path.glob("*.py")]:
        sys.modules.pop(name, None)


def link_run(folder: Path, run: Path) -> None:
    """Puts a run where the pages say that it is."""
    (folder / "runs").mkdir()
    (folder / RUN).symlink_to(run, target_is_directory=True)


def command_names() -> set[str]:
    return {words[0] for path in PAGES.values() for words in commands(path)}


def test_every_command_of_the_pages_is_checked_below() -> None:
    assert command_names() == {"train", "evaluate", "sample", "data", "list"}


@pytest.mark.parametrize("page", [page for page, path in PAGES.items() if blocks(path, "python")])
def test_python_blocks_run(page: str, folder: Path, request: pytest.FixtureRequest) -> None:
    """In the order in which they stand, in a new interpreter; a block that names its file is written and imported."""
    write_files(PAGES[page], folder)
    code = blocks(PAGES[page], "python")
    script = "\n".join(f"import {name[1][:-3]}" if (name := FILE.match(part)) else part for part in code)
    if RUN in script:
        link_run(folder, request.getfixturevalue("tiny_run"))
    (folder / "page.py").write_text(script, encoding="utf-8")
    environment = os.environ | {"MINARI_DATASETS_PATH": str(folder / "datasets"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("page", "words"), called("train"))
def test_train_commands_compose_and_can_be_built(
    page: str, words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the command line reads them, sweeps and files included; only the training itself is left out."""
    write_files(PAGES[page], folder)
    built = []

    def build(config: Config, *_: object) -> None:
        runs.dry_run(config)
        built.append(config)

    monkeypatch.setattr(runs, "train", build)
    cli.main(["train", *words])
    sizes = [word.count(",") + 1 for word in words if "-m" in words and "[" not in word]
    assert len(built) == (0 if {"--help", "--cfg"} & {*words} else prod(sizes))


@pytest.mark.parametrize(("page", "words"), called("evaluate"))
def test_evaluate_commands_fit_a_run(page: str, words: list[str], folder: Path, tiny_run: Path) -> None:
    write_files(PAGES[page], folder)
    link_run(folder, tiny_run)
    values = key_values(words)
    assert values.pop("run") == RUN
    policy = runs.load_policy(RUN, imports=tuple(values.pop("imports", ())), overrides=values)
    assert policy.options.replan == values.get("policy", {}).get("replan", policy.options.replan)


@pytest.mark.parametrize(("page", "words"), called("sample"))
def test_sample_commands_run(
    page: str, words: list[str], folder: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link_run(folder, tiny_run)
    cli.main(["sample", *words, "device=cpu"])
    assert "condition error of the first state" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("page", "words"), called("data"))
def test_data_commands_name_what_there_is(page: str, words: list[str]) -> None:
    action, *rest = words
    assert action in DATA_HELP
    if action == "make":
        assert rest[0] in makers.MAKERS
        structure(MakeOptions, key_values(rest[1:]), "")
    elif action != "list":
        assert store.ID.fullmatch(rest[0])


@pytest.mark.parametrize(("page", "words"), called("list"))
def test_list_commands_run(page: str, words: list[str], folder: Path) -> None:
    """As a person runs them, with modules of their own in the current folder."""
    write_files(PAGES[page], folder)
    program = Path(sys.executable).with_name("trajgen")
    done = subprocess.run([program, "list", *words], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("page", [page for page, path in PAGES.items() if blocks(path, "yaml")])
def test_yaml_blocks_are_recipes_or_data(page: str) -> None:
    for block in blocks(PAGES[page], "yaml"):
        values = yaml.safe_load(block)
        if "data" in values:
            assert structure(DataOptions, values["data"], "data").id == values["data"]["id"]
        else:
            assert set(values) <= {*registry.KINDS, "policy", "engine"}


def test_the_entry_point_of_the_pages_is_the_registry_s() -> None:
    (block,) = blocks(PAGES["docs/extend.md"], "toml")
    assert list(tomllib.loads(block)["project"]["entry-points"]) == [registry.ENTRY_POINTS]


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_somewhere(page: str) -> None:
    path = PAGES[page]
    targets = [target for target in LINK.findall(path.read_text(encoding="utf-8")) if "://" not in target]
    missing = [target for target in targets if not (path.parent / target.partition("#")[0]).exists()]
    assert missing == []


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").exists()


def test_the_readme_begins_with_the_two_commands() -> None:
    first, second = FENCE.findall(README.read_text(encoding="utf-8"))[:2]
    for language, code in (first, second):
        assert language == "bash"
        assert len(code.splitlines()) == 1
    assert commands(README)[0] == ["train", "recipe=mage"]
    assert "pytest" in second[1]


def test_continuous_integration_runs_the_readme_s_test_command() -> None:
    done = subprocess.run(["bash", ROOT / ".ci" / "run", "--show"], capture_output=True, text=True, check=True)
    assert done.stdout == blocks(README, "bash")[1]


def test_citation_names_this_version_and_the_paper_of_the_readme() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == trajgen.__version__
    (entry,) = blocks(README, "bibtex")
    for author in citation["preferred-citation"]["authors"]:
        assert f"{author['family-names']}, {author['given-names']}" in entry
