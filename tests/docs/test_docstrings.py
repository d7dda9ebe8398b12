"""Docstrings: public names say what they are in a sentence; components explain their options and name their source."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import tables
from pages import DOCS, ROOT

from trajgen.config import SECTIONS
from trajgen.core.registry import KINDS, ROOMS, component, names, spec
from trajgen.engine.options import StageOptions

API = sorted((DOCS / "api").glob("*.md"))
WITHOUT_SOURCE = {
    "encoder/identity": "nothing is learnt or computed",
    "encoder/timm": "whatever backbone of timm, whose card names its own",
    "action/latent_state": "the paper's is latent",
    "decoder/identity": "nothing is learnt or computed",
    "decoder/plain": "a plain network",
    "critic/length": "no paper of its own: the way along a plan",
    "sampler/greedy": "older than any paper that names it",
    "sampler/temperature": "older than any paper that names it",
    "schedule/explicit": "whatever is given",
    "schedule/linear": "made here, to be compared with geometric",
    "schedule/auto": "made here: the paper sets K by hand",
    "schedule/two_level": "made here: K = 2",
    "return_target/best": "made here, for a constant that nobody needs to know",
    "return_target/quantile": "made here; the loss is that of quantile regression",
}
"""Components that come from no paper, and why none is named."""
SOURCE = re.compile(r"arXiv \d{4}\.\d{5}|MAGE|Decision Transformer|Trajectory Transformer")
SHIPPED = [
    (kind, name) for kind in KINDS for name in names(kind) if component(kind, name).__module__.startswith("trajgen.")
]


def files() -> dict[str, Path]:
    """The modules of the API pages, and where they lie."""
    paths = {}
    for page in API:
        for module in tables.modules(page):
            module_spec = importlib.util.find_spec(module)
            assert module_spec is not None and module_spec.origin is not None, module
            paths[module] = Path(module_spec.origin)
    return paths


def public(module: str, path: Path) -> Iterator[tuple[str, str | None]]:
    """The public names of a module with their docstrings; methods too, where components and what they share live.

    A network's ``forward`` is what its class says, and so is ``train``.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    yield module, ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            yield f"{module}.{node.name}", ast.get_docstring(node)
            if isinstance(node, ast.ClassDef) and module.split(".")[1] in (*ROOMS, "nn", "policies"):
                for inner in node.body:
                    said_by_the_class = ("forward", "train", "_")
                    if isinstance(inner, ast.FunctionDef) and not inner.name.startswith(said_by_the_class):
                        yield f"{module}.{node.name}.{inner.name}", ast.get_docstring(inner)


@pytest.mark.parametrize("module", files())
def test_public_names_say_what_they_are_in_a_sentence(module: str) -> None:
    for name, doc in public(module, files()[module]):
        assert doc, f"{name} has no docstring"
        first = " ".join(doc.split("\n\n")[0].split())
        assert first.endswith((".", "?", ":")), f"{name}: {first}"
        assert not first[0].isalpha() or first[0].isupper() or first.split()[0] in ("f", "f̂"), f"{name}: {first}"


@pytest.mark.parametrize(("kind", "name"), SHIPPED)
def test_components_explain_their_wiring_and_options(kind: str, name: str) -> None:
    about = tables.arguments(component(kind, name))
    described = spec(kind, name)
    parameters = {*described.wiring, *(option.name for option in described.options)}
    missing = {option.name for option in described.options} - {*about}
    assert not missing, f"Args: of {kind} {name} leaves out {', '.join(sorted(missing))}"
    assert {*about} <= parameters, (
        f"Args: of {kind} {name} names what it does not take: {', '.join({*about} - parameters)}"
    )


@pytest.mark.parametrize(("kind", "name"), SHIPPED)
def test_components_name_their_source(kind: str, name: str) -> None:
    doc = component(kind, name).__doc__ or ""
    if f"{kind}/{name}" in WITHOUT_SOURCE:
        first = " ".join(doc.split("\n\n")[0].split())
        assert not re.search(r"arXiv \d{4}\.\d{5}", first), f"{kind} {name} names a source; take it out of OWN"
    else:
        assert SOURCE.search(doc), f"{kind} {name} names neither paper nor section"


def test_what_has_no_source_is_shipped() -> None:
    assert {*WITHOUT_SOURCE} <= {f"{kind}/{name}" for kind, name in SHIPPED}


@pytest.mark.parametrize("name", [*SECTIONS, "stage"])
def test_settings_are_explained(name: str) -> None:
    cls = StageOptions if name == "stage" else SECTIONS[name]
    assert {*cls.__dataclass_fields__} <= {*tables.attributes(cls)}


def test_every_room_is_on_one_page_of_the_api() -> None:
    listed = [module for page in API for module in tables.modules(page)]
    assert len(listed) == len({*listed})
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert all(f"api/{page.name}" in navigation for page in API)
    rooms = {module.split(".")[1] for module in listed}
    inside = {"cli", "templates", "bench"}  # for the command line alone
    package = ROOT / "trajgen"
    present = {path.stem for path in package.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert {room for room in present if not room.startswith("_")} - inside <= rooms
    assert {spec(kind, name).module for kind, name in SHIPPED} <= {*listed}
