"""The pages on composing: their examples keep their contracts, train and plan; their tables say what the code says."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path
from typing import Any

import pytest
import tables
import tiny
import torch
from debug_size import trains_and_acts
from pages import COMPOSE, DOCS, FILE, PAGES, ROOT, blocks, commands, write_files

from trajgen.assemble import assemble
from trajgen.config import compose
from trajgen.core import registry
from trajgen.core.registry import KINDS, build, component, names, spec
from trajgen.core.types import KnownCodes

LINES = 40
"""Of code, at most, in a component of one's own."""


def example(kind: str) -> str:
    """The code of the one complete example of a kind's page."""
    (code,) = blocks(COMPOSE / f"{kind}.md", "python")
    return code


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_a_page_with_one_example_and_the_commands_to_try_it(kind: str) -> None:
    page = COMPOSE / f"{kind}.md"
    name = FILE.match(example(kind))
    assert name is not None
    imports = f"imports=[{Path(name[1]).stem}]"
    commands_shown = {words[0] for words in commands(page) if imports in words}
    assert {"check", "train"} <= commands_shown
    assert f"]({kind}.md)" in (COMPOSE / "index.md").read_text(encoding="utf-8")
    assert f"compose/{kind}.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_is_short_documented_and_new(kind: str, folder: Path) -> None:
    code = example(kind)
    documented: set[int] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            documented |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = [line for number, line in enumerate(code.splitlines(), 1) if line.strip() and number not in documented]
    assert len([line for line in lines if not line.startswith("#")]) <= LINES
    shipped = names(kind)
    write_files(COMPOSE / f"{kind}.md", folder)
    registry.load_imports([path.stem for path in folder.glob("*.py")])
    (name,) = {*names(kind)} - {*shipped}
    example_spec = spec(kind, name)
    assert example_spec.options
    about = component(kind, name).__doc__ or ""
    for option in example_spec.options:
        assert f"{option.name}:" in about


@pytest.mark.parametrize(
    ("kind", "words"),
    [(kind, words[1:]) for kind in KINDS for words in commands(COMPOSE / f"{kind}.md") if words[0] == "train"],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_an_example_trains_and_plans_in_its_recipe(kind: str, words: list[str], folder: Path) -> None:
    write_files(COMPOSE / f"{kind}.md", folder)
    config = compose(words)
    component = registry.component(kind, config.components[kind]["name"])
    assert component.__module__ in {path.stem for path in folder.glob("*.py")}
    trains_and_acts(config)


@pytest.mark.parametrize(
    "words", [words[1:] for words in commands(COMPOSE / "index.md") if words[0] == "train"], ids=" ".join
)
def test_the_new_recipe_and_its_swaps_train_and_plan(words: list[str], folder: Path) -> None:
    write_files(COMPOSE / "index.md", folder)
    config = compose([word for word in words if word not in ("--cfg", "job")])
    assert set(config.components) <= set(KINDS) and "planner" in config.components
    trains_and_acts(config)


@pytest.mark.parametrize(
    "page", [page for page, path in PAGES.items() if tables.MARKED.search(path.read_text("utf-8"))]
)
def test_tables_say_what_the_code_says(page: str) -> None:
    text = PAGES[page].read_text(encoding="utf-8")
    assert text == tables.fresh(text), "stale: python tests/docs/tables.py writes the tables of the pages anew"


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_lists_what_is_shipped(kind: str) -> None:
    marks = {(what, about) for _, what, about, _ in tables.MARKED.findall((COMPOSE / f"{kind}.md").read_text("utf-8"))}
    assert ("components", kind) in marks
    if kind not in ("view", "schedule", "conditioner"):  # they have no protocol
        assert "protocol" in {what for what, _ in marks}


def wiring_of_the_page() -> set[str]:
    """The names of the wiring that a component can require, as the page on own parts lists them."""
    text = (DOCS / "extend.md").read_text(encoding="utf-8")
    wiring = text.partition("<!--wiring-->\n")[2].partition("<!--end-->")[0]
    rows = re.findall(r"^- (.*?):", wiring, re.MULTILINE)
    return {name.strip(" `") for row in rows for name in row.split(",")}


def test_what_the_page_offers_is_what_a_composition_provides(folder: Path) -> None:
    """Where the page says that a component can require it, a planner that requires all of it gets it."""
    offered = sorted(wiring_of_the_page())
    (folder / "curious.py").write_text(
        "from torch import nn\n\nfrom trajgen import register\n\n\n"
        '@register("planner", "curious")\n'
        "class Curious(nn.Module):\n"
        f"    def __init__(self, {', '.join(offered)}):\n"
        "        super().__init__()\n"
        f"        self.wiring = dict({', '.join(f'{name}={name}' for name in offered)})\n",
        encoding="utf-8",
    )
    registry.load_imports(["curious"])
    wiring: Any = assemble(tiny.nodes(planner="curious"), tiny.SPACE, tiny.WINDOW).wiring
    assert {*wiring} == {*offered}
    assert wiring["goal_state"] == tiny.WINDOW.goal_state and wiring["code_dim"] == tiny.SMALL["code_dim"]


def test_the_page_offers_whatever_shipped_components_ask_for() -> None:
    used = {w for kind in KINDS for n in names(kind) for w in spec(kind, n).wiring if kind != "schedule"}
    assert used <= wiring_of_the_page()


def test_the_example_of_a_schedule_gives_the_lengths_of_its_page(folder: Path) -> None:
    write_files(COMPOSE / "schedule.md", folder)
    registry.load_imports(["my_schedules"])
    assert build("schedule", {"name": "fibonacci"}, length=8).lengths == (1, 2, 3, 5, 8)
    assert build("schedule", {"name": "fibonacci", "first": 2}, length=8).lengths == (2, 3, 5, 8)
    assert build("schedule", {"name": "fibonacci"}, length=1).lengths == (1,)


def test_the_example_of_a_tokenizer_keeps_what_is_slow(folder: Path) -> None:
    """Its basis is orthonormal: a window of low frequencies comes back, and a constant is the first code alone."""
    write_files(COMPOSE / "tokenizer.md", folder)
    registry.load_imports(["my_tokenizers"])
    wiring = {"schedule": lambda n: tiny.schedule("unit", n), "features": 3, "horizon": 16}
    tokenizer: Any = build("tokenizer", {"name": "cosine", "frequencies": 16}, **wiring)
    x = torch.randn(2, 16, 3)
    torch.testing.assert_close(tokenizer.points(tokenizer.encode(x).codes), x)
    few: Any = build("tokenizer", {"name": "cosine", "frequencies": 4}, **wiring)
    codes = few.encode(torch.ones(1, 16, 3)).codes
    torch.testing.assert_close(codes[:, 0], torch.full((1, 3), 4.0))
    torch.testing.assert_close(codes[:, 1:], torch.zeros(1, 3, 3))


def test_the_example_of_a_sampler_keeps_what_is_typical(folder: Path) -> None:
    """Of one likely code and many equally unlikely ones, the likely one can be the least typical (arXiv 2202.00666)."""
    write_files(COMPOSE / "sampler.md", folder)
    registry.load_imports(["my_samplers"])
    prior = type("Drawn", (), {"start": None, "step": None})()
    sampler: Any = build("sampler", {"name": "typical", "mass": 0.5}, prior=prior, vocabulary=101)
    share = torch.cat([torch.tensor([0.3]), torch.full((100,), 0.007)])
    sampled = sampler.sample_fn(share.log().expand(1, 2000, -1), torch.Generator().manual_seed(0))
    assert 0 not in sampled and len(sampled.unique()) == 72  # 72 · 0.007 is the least that reaches 0.5


def test_the_example_of_a_view_starts_at_zero(folder: Path) -> None:
    write_files(COMPOSE / "view.md", folder)
    registry.load_imports(["my_views"])
    view: Any = build("view", {"name": "relative", "keep_state": False}, state_dim=4)
    moved = view.read(view(tiny.batch()), "displacement")
    assert view.features == 5 and not moved[:, 0].any() and view.read(view(tiny.batch()), "state") is None
    torch.testing.assert_close(moved[:, 3], tiny.batch().states[:, 3] - tiny.batch().states[:, 0])


def test_the_example_of_a_way_to_draw_fills_in_the_confident_tokens_first(folder: Path) -> None:
    """Each round predicts from the codes that stay; known ones are never masked; a cosine says how many are."""
    write_files(COMPOSE / "drawing.md", folder)
    registry.load_imports(["my_drawing"])
    tokenizer: Any = tiny.planner().tokenizer
    tokens, masks = tokenizer.schedule.tokens, []

    def fill(codes: torch.Tensor, mask: torch.Tensor, _: object) -> torch.Tensor:
        masks.append(mask)
        certainty = 20 + 10.0 * torch.arange(tokens)  # each token's code is its place, and the last one is the surest
        return torch.eye(tokenizer.vocabulary)[:tokens].mul(certainty[:, None]).expand(len(codes), -1, -1)

    known_codes = KnownCodes(torch.full((2, tokens), 1), (torch.arange(tokens) == 0).expand(2, -1))
    sampler: Any = build("sampler", {"name": "confident", "rounds": 3})
    plan = sampler(type("Prior", (), {"fill": staticmethod(fill)})(), tokenizer, tiny.cond(2), None, known_codes)
    assert plan.codes.tolist() == [[1, *range(1, tokens)]] * 2
    counts = [int(tokens * math.cos(math.pi / 6 * n)) for n in (1, 2)]
    places = torch.arange(tokens)
    assert torch.equal(masks[0], (places > 0).expand(2, -1))
    for mask, count in zip(masks[1:], counts, strict=True):
        assert torch.equal(mask, ((places > 0) & (places <= count)).expand(2, -1))
