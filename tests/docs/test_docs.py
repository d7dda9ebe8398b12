"""The README and the pages: their code runs, their commands fit the program, their links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import fields
from math import prod
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import FENCE, FILE, PAGES, README, ROOT, blocks, commands, refusals, write_files

import trajgen
from trajgen import cli, runs
from trajgen.cli.bench import read as read_bench
from trajgen.cli.data import DATA_HELP, MakeOptions
from trajgen.cli.words import key_values
from trajgen.config import Config, compose
from trajgen.core import registry
from trajgen.core.options import structure
from trajgen.core.types import Batch, Cond, Given, Plan
from trajgen.data import makers, store
from trajgen.data.options import DataOptions
from trajgen.programs.export import SUFFIX
from trajgen.studies import run as studies
from trajgen.studies.definition import Study, read_study
from trajgen.studies.space import read_search

LINK = re.compile(r"\]\(([^)\s]+)\)")
RUN = "runs/mage-umaze-dwell-s0"
"""The run folder that the pages speak of."""


def called(name: str) -> list[Any]:
    """All commands of all pages that begin with ``name``, as parameters of a test."""
    return [
        pytest.param(page, words[1:], id=f"{name}: {shlex.join(words[1:])}")
        for page, path in PAGES.items()
        for words in commands(path)
        if words[0] == name
    ]


def link_run(folder: Path, run: Path) -> None:
    """Puts a run where the pages say that it is."""
    (folder / "runs").mkdir()
    (folder / RUN).symlink_to(run, target_is_directory=True)


def prepare(page: str, folder: Path) -> None:
    """Writes what the commands of a page need: its files, and the skeletons that it has ``trajgen new`` write."""
    write_files(PAGES[page], folder)
    for words in commands(PAGES[page]):
        if words[0] == "new":
            cli.main(words)


def command_names() -> set[str]:
    return {words[0] for path in PAGES.values() for words in commands(path)}


def test_every_command_of_the_pages_is_checked() -> None:
    here = {"train", "evaluate", "sample", "data", "list", "study", "check", "new", "plot", "video", "report"}
    here |= {"search", "export", "bench"}
    assert command_names() <= here <= {*cli.COMMANDS}


IN_A_NEW_INTERPRETER = [
    page for page, path in PAGES.items() if blocks(path, "python") and not page.startswith("docs/compose/")
]
"""The others are examples of components, which ``test_compose.py`` tries in a composition."""


@pytest.mark.parametrize("page", IN_A_NEW_INTERPRETER)
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


@pytest.mark.parametrize(("page", "words"), [case for case in called("train") if "docs/compose" not in case.values[0]])
def test_train_commands_compose_and_can_be_built(
    page: str, words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sweeps and files included; only the training itself is left out.

    Those of the README, and those that speak to Hydra, go through the command line, which takes twice as long. Those of
    the pages on composing take a step of training too, in ``test_compose.py``.
    """
    prepare(page, folder)
    if page != "README.md" and not {*words} & {"-m", "--help", "--cfg"}:
        runs.dry_run(compose(words))
        return
    built = []

    def build(config: Config, *_: object) -> None:
        runs.dry_run(config)
        built.append(config)

    monkeypatch.setattr(runs, "train", build)
    cli.main(["train", *words])
    sizes = [word.count(",") + 1 for word in words if "-m" in words and "[" not in word]
    assert len(built) == (0 if {"--help", "--cfg"} & {*words} else prod(sizes))


@pytest.mark.parametrize(
    ("page", "words", "said"), [(p, *each) for p, path in PAGES.items() for each in refusals(path)]
)
def test_refusals_are_those_of_the_page(
    page: str,
    words: list[str],
    said: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_files(PAGES[page], folder)
    monkeypatch.setattr(runs, "train", lambda config, *_: runs.dry_run(config))
    with pytest.raises(SystemExit):
        cli.main(words)
    assert capsys.readouterr().err.strip() == said.strip()


@pytest.mark.parametrize(("page", "words"), called("study"))
def test_study_commands_ask_for_variants_that_work(
    page: str, words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every variant composes and can be built; the variants of shipped studies are tested with the studies."""
    prepare(page, folder)
    asked: list[Study] = []
    monkeypatch.setattr(studies, "run", lambda study, *_, **__: asked.append(study))
    cli.main(["study", *words])
    if "--help" not in words and not any(word.startswith("study=") for word in words):
        assert studies.dry_run(studies.rows_of(asked[0])) == {}


@pytest.mark.parametrize(("page", "words"), called("check"))
def test_check_commands_find_nothing_wrong(
    page: str, words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(page, folder)
    cli.main(["check", *words])
    assert "contracts that apply are kept" in capsys.readouterr().out


@pytest.mark.parametrize(("page", "words"), called("new"))
def test_new_commands_write_a_file(page: str, words: list[str], folder: Path) -> None:
    cli.main(["new", *words])
    assert [path.suffix for path in folder.iterdir()] == [".py"]


@pytest.mark.parametrize(("page", "words"), called("evaluate"))
def test_evaluate_commands_fit_a_run(page: str, words: list[str], folder: Path, tiny_run: Path) -> None:
    prepare(page, folder)
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


@pytest.mark.parametrize(("page", "words"), called("export"))
def test_export_commands_name_the_run_of_the_pages_and_options_that_it_has(
    page: str, words: list[str], folder: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link_run(folder, tiny_run)
    asked: list[dict[str, Any]] = []

    def written(policy: Any, out: Path, **options: Any) -> None:
        out.mkdir(parents=True)
        asked.append(options)

    monkeypatch.setattr("trajgen.programs.export.export", written)
    cli.main(["export", *words, "out=exported"])
    (options,) = asked
    assert options["format"] in SUFFIX and options["batch"] >= 1


@pytest.mark.parametrize(("page", "words"), called("bench"))
def test_bench_commands_are_understood(page: str, words: list[str]) -> None:
    assert words[0] in ("decision", "train", "data")
    runs.dry_run(compose(read_bench(words[1:]).overrides))


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
def test_list_commands_run(page: str, words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(page, folder)
    capsys.readouterr()
    cli.main(["list", *words])
    assert capsys.readouterr().out


def test_own_modules_are_found_in_the_current_folder(folder: Path) -> None:
    """As a person runs it: the console script does not look where it is run by itself."""
    write_files(README, folder)
    program = Path(sys.executable).with_name("trajgen")
    done = subprocess.run(
        [program, "list", "sampler", "imports=[my_samplers]"], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "min_p" in done.stdout


@pytest.mark.parametrize("page", [page for page, path in PAGES.items() if blocks(path, "yaml")])
def test_yaml_blocks_are_recipes_data_or_studies(page: str, folder: Path) -> None:
    for block in blocks(PAGES[page], "yaml"):
        values = yaml.safe_load(block)
        if "planner" in values:
            (folder / "recipe_of_a_page.yaml").write_text(block, encoding="utf-8")
            assert set(compose(["recipe=recipe_of_a_page.yaml"]).components) == {*values} & {*registry.KINDS}
        elif "variants" in values:
            (folder / "study_of_a_page.yaml").write_text(block, encoding="utf-8")
            assert read_study(folder / "study_of_a_page.yaml").variants
        elif "space" in values:
            (folder / "search_of_a_page.yaml").write_text(block, encoding="utf-8")
            search = read_search(folder / "search_of_a_page.yaml")
            assert search.inside(compose(search.words({}))) is not None
        elif "data" in values:
            assert structure(DataOptions, values["data"], "data").id == values["data"]["id"]
        else:
            assert {*values} <= {*registry.KINDS, "policy", "engine"}


def test_the_entry_point_of_the_pages_is_the_registry_s() -> None:
    (block,) = blocks(PAGES["docs/extend.md"], "toml")
    assert list(tomllib.loads(block)["project"]["entry-points"]) == [registry.ENTRY_POINTS]


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_somewhere(page: str) -> None:
    path = PAGES[page]
    targets = [target for target in LINK.findall(path.read_text(encoding="utf-8")) if "://" not in target]
    missing = [target for target in targets if not (path.parent / target.partition("#")[0]).exists()]
    assert missing == []


def test_the_shapes_of_concepts_name_every_field() -> None:
    text = PAGES["docs/concepts.md"].read_text(encoding="utf-8").partition("| value | shape |")[2]
    for record in (Batch, Cond, Given, Plan):
        (row, *rows) = [line for line in text.splitlines() if line.startswith(f"| `{record.__name__}.")]
        names = {word for line in (row, *rows) for word in re.findall(r"`(?:\w+\.)?(\w+)`", line.split("|")[1])}
        assert names == {field.name for field in fields(record)}


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
