"""The README and the pages: their code runs, their commands fit the program, their links lead somewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from html import unescape
from pathlib import Path

import pytest
import yaml
from pages import DOCS, FENCE, PAGES, README, ROOT, blocks, commands, run_python, write_files

import trajgen
from trajgen.config import compose
from trajgen.core import registry
from trajgen.core.options import structure
from trajgen.core.types import Batch, Cond, KnownCodes, Plan, Transitions
from trajgen.data.options import DataOptions
from trajgen.experiments.definition import read_study
from trajgen.experiments.search_space import read_search

LINK = re.compile(r"\]\(([^)\s]+)\)")
RUN = "runs/mage-umaze-dwell-s0"
"""The run folder that the pages speak of."""
MOST_WORDS = 28_200
"""Of all pages together; the borders of tables are no words."""


def link_run(folder: Path, run: Path) -> None:
    """Puts a run where the pages say that it is."""
    (folder / "runs").mkdir()
    (folder / RUN).symlink_to(run, target_is_directory=True)


PAGES_WITH_PYTHON = [
    page for page, path in PAGES.items() if blocks(path, "python") and not page.startswith("docs/compose/")
]
"""The others are examples of components, which ``test_compose.py`` tries in a composition."""


@pytest.mark.parametrize("page", PAGES_WITH_PYTHON)
def test_python_blocks_run(page: str, folder: Path, request: pytest.FixtureRequest) -> None:
    """In the order in which they stand; a block that names its file is written and imported."""
    if any(RUN in code for code in blocks(PAGES[page], "python")):
        link_run(folder, request.getfixturevalue("tiny_run"))
    assert run_python(page, folder) == len(blocks(PAGES[page], "python"))


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
        if "planner" in values or "defaults" in values:
            (folder / "recipe_of_a_page.yaml").write_text(block, encoding="utf-8")
            components, named = set(compose(["recipe=recipe_of_a_page.yaml"]).components), {*values} & {*registry.KINDS}
            assert components == named or ("defaults" in values and named < components)
        elif "variants" in values:
            (folder / "study_of_a_page.yaml").write_text(block, encoding="utf-8")
            assert read_study(folder / "study_of_a_page.yaml").variants
        elif "space" in values:
            (folder / "search_of_a_page.yaml").write_text(block, encoding="utf-8")
            search = read_search(folder / "search_of_a_page.yaml")
            assert search.params_of(compose(search.overrides({}, {})))
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
    text = PAGES["docs/concepts.md"].read_text(encoding="utf-8").partition("## Shapes")[2]
    for record in (Batch, Cond, KnownCodes, Plan, Transitions):
        (row, *rows) = [line for line in text.splitlines() if line.startswith(f"- `{record.__name__}.")]
        names = {word for line in (row, *rows) for word in re.findall(r"`(?:\w+\.)?(\w+)`", line.split(": ")[0])}
        assert names == {field.name for field in fields(record)}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built without a warning, and without a network: whatever is asked of another machine is refused."""
    folder = tmp_path_factory.mktemp("site")
    offline = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    # Where the site is published there is no ruff, which would be started for each of hundreds of signatures.
    code = "import sys; sys.modules['ruff'] = None; from mkdocs.__main__ import cli; cli()"
    done = subprocess.run(
        [sys.executable, "-c", code, "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | offline,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_has_every_page(site: Path) -> None:
    for page in DOCS.rglob("*.md"):
        name = page.relative_to(DOCS).with_suffix("")
        folder = name.parent if name.name == "index" else name
        assert (site / folder / "index.html").exists(), page


def test_no_index_of_a_formula_became_emphasis(site: Path) -> None:
    for page in site.rglob("index.html"):
        taken = re.findall(r"<em>[^<]*</em>", page.read_text(encoding="utf-8"))
        assert not [text for text in taken if "=" in text or "{" in text], page


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = {line.rpartition(" ")[2] for line in navigation.splitlines() if line.endswith(".md")}
    assert listed == {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}


def test_the_site_stays_short() -> None:
    words = {
        path.relative_to(DOCS): len(re.findall(r"\S*\w\S*", path.read_text("utf-8"))) for path in DOCS.rglob("*.md")
    }
    longest = [f"{page} {count}" for page, count in sorted(words.items(), key=lambda item: -item[1])[:5]]
    assert sum(words.values()) <= MOST_WORDS, f"shorten what is there before adding; the longest pages: {longest}"


def test_the_page_of_changes_is_the_changelog(site: Path) -> None:
    shown = " ".join(unescape(re.sub(r"<[^>]+>", "", (site / "changelog" / "index.html").read_text("utf-8"))).split())
    plain = [line for line in (ROOT / "CHANGELOG.md").read_text("utf-8").splitlines() if line.startswith("### ")]
    assert plain and all(line.removeprefix("### ") in shown for line in plain)
    assert "Keep a Changelog" in shown and "CHANGELOG.md" not in shown


def test_the_api_shows_signatures_and_docstrings(site: Path) -> None:
    shown = unescape(re.sub(r"<[^>]+>", "", (site / "api" / "experiments" / "index.html").read_text("utf-8")))
    assert "load_policy" in shown and "A trained policy, ready to act." in shown
    assert "plain values that replace those of the run" in shown  # an argument, by its docstring


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


def test_search_finds_words_within_options_and_the_page_of_own_data(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    words = re.split(index["config"]["separator"], "policy.replan_interval sampler=top_p own_data.md")
    assert {"replan", "interval", "top", "own", "data"} <= {*words}
    assert "stopWordFilter" not in index["config"]["pipeline"]  # which would drop "own"
    assert any(doc["title"] == "Own data" for doc in index["docs"])
    boosts = {doc["location"]: doc.get("boost", 1.0) for doc in index["docs"]}  # pages that explain come first
    assert boosts["api/policies/"] < boosts["evaluate/"] == boosts["own_data/"] == 1.0


def test_a_term_is_explained_where_a_page_first_uses_it(site: Path) -> None:
    text = (site / "evaluate" / "index.html").read_text(encoding="utf-8")
    explained = re.findall(r'<abbr title="([^"]*)">([^<]*)</abbr>', text)
    table = PAGES["docs/concepts.md"].read_text(encoding="utf-8").partition("## Terms")[2]
    assert len(explained) > 5 and len({term.lower().rstrip("s") for _, term in explained}) == len(explained)
    for meaning, term in explained:
        assert unescape(meaning) in table
        assert re.search(rf"^- \*\*.*{term.rstrip('s')}", table, re.MULTILINE | re.IGNORECASE)
    assert "<abbr" not in (site / "concepts" / "index.html").read_text(encoding="utf-8")


def test_the_site_asks_no_other_machine_for_anything(site: Path) -> None:
    for page in (site / "index.html", site / "results" / "index.html"):
        text = page.read_text(encoding="utf-8")
        assert "assets/site.css" in text and "assets/site.js" in text
        assert not re.findall(r'<(?:script|img|iframe)[^>]* src="(?:https?:)?//', text)
        assert not re.findall(r'<link[^>]*rel="(?:stylesheet|preconnect|preload)"[^>]*href="(?:https?:)?//', text)
